"""Language models: messages to token ids and loss mask, weights, and hidden states of many rows."""
