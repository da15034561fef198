"""Checkpoints of a small adapter as a training leaves them, with moments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def checkpoints(base: str, folder: Path, epochs: int = 2, scale: float = 0.1, **lora: Any) -> Path:
    """epoch-1 … with random weights (zeros with `scale` 0) and moments of the model at `base`."""
    import peft
    import torch
    import transformers
    from safetensors.torch import save_file

    for epoch in range(1, epochs + 1):
        torch.manual_seed(epoch)
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        given = {"r": 2, "target_modules": ["q_proj", "v_proj"], **lora}
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **given))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            parameter.data = scale * torch.randn_like(parameter)
        target = folder / f"epoch-{epoch}"
        model.save_pretrained(target)
        first = {name: 1e-3 * torch.randn(p.shape) for name, p in trained.items()}
        second = {name: 1e-6 * torch.rand(p.shape) for name, p in trained.items()}
        for name, moments in (("exp_avg", first), ("exp_avg_sq", second)):
            save_file(moments, target / f"{name}.safetensors", metadata={"step": str(epoch)})
        record = {"epoch": epoch, "step": epoch, "learning_rate_mean": 1e-3 / epoch}
        (target / "epoch.json").write_text(json.dumps(record))
    return folder


def edit(folder: Path, name: str, **changes: Any) -> Path:
    """Change some keys of a JSON file."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder
