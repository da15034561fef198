"""Adapters of PEFT with random weights on the models of the zoo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tamis.models.lm import LanguageModel
from tests.models.zoo import build


def tuned(name: str, dtype: str = "float32", config: Any = None, **lora: Any) -> LanguageModel:
    """The model `name` of the zoo with an adapter: by `config`, or LoRA of all its linear layers."""
    import peft
    import torch

    lm = build(name, dtype)
    given = {"r": 3, "lora_alpha": 12, "lora_dropout": 0.0, "target_modules": "all-linear", **lora}
    torch.manual_seed(1)
    model = peft.get_peft_model(lm.model, config or peft.LoraConfig(task_type="CAUSAL_LM", **given))
    names = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    for name, parameter in model.named_parameters():
        if name in names:  # B begins as zeros, whose A has no gradient
            parameter.data += 0.1 * torch.randn_like(parameter)
    return replace(lm, adapter="random", model=model.eval().requires_grad_(False), trained=names)
