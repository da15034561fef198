"""Small random models of many architectures, built from their configs."""

from __future__ import annotations

from typing import Any

from tamis.models.lm import LanguageModel

_SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_GEMMA = {**_SHAPE, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}

ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SHAPE),
    "llama-tied": ("LlamaConfig", {**_SHAPE, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2Config", _SHAPE),
    "qwen2-window": (
        "Qwen2Config",
        {**_SHAPE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**_SHAPE, "head_dim": 16}),
    "mistral": ("MistralConfig", {**_SHAPE, "sliding_window": None}),
    "mistral-window": ("MistralConfig", {**_SHAPE, "sliding_window": 8}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "num_hidden_layers": 6}),
    "gpt2": ("GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt-neox": ("GPTNeoXConfig", {k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"}),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 32,
        },
    ),
    "phi": ("PhiConfig", _SHAPE),
    "phi3-window": ("Phi3Config", {**_SHAPE, "sliding_window": 8, "pad_token_id": 0}),
    "olmo2": ("Olmo2Config", _SHAPE),
    "mixtral": ("MixtralConfig", {**_SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
"""Config class and its arguments, by name."""


def build(name: str, dtype: str = "float32", **changes: Any) -> LanguageModel:
    """The model `name` of the zoo with random weights; it has no tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind, shape = ZOO[name]
    config = getattr(transformers, kind)(**{**shape, **changes})
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
    for parameter in model.parameters():  # biases and norms too, which start as zeros and ones
        parameter.data += 0.05 * torch.randn_like(parameter)
    return LanguageModel(name, None, config, None, dtype, "cpu", model.requires_grad_(False))
