"""tamis: which rows of instruction data to train on, and was it worth it."""
