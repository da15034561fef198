"""Folders that look like checkpoints of an adapter, with moments in every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Q = "base_model.model.model.layers.0.self_attn.q_proj"
SHAPES = {f"{Q}.lora_A.default.weight": (2, 4), f"{Q}.lora_B.default.weight": (4, 2)}
A, B = SHAPES


def adapter(folder: Path, **files: Any) -> Path:
    """A folder that looks like an adapter, with JSON files."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q", "k"]}')
    save_file({"w": torch.zeros(1)}, folder / "adapter_model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def states_of(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """A state for every name."""
    own = torch.Generator().manual_seed(seed)
    return {
        name: {
            "step": torch.tensor(7.0),
            "exp_avg": torch.randn(shape, generator=own),
            "exp_avg_sq": torch.rand(shape, generator=own),
        }
        for name, shape in shapes.items()
    }


def by_number(
    states: dict[str, dict[str, Any]], groups: list[list[str]], names: bool = False
) -> dict[str, Any]:
    """The same states as a plain optimizer saves them."""
    number = {name: i for i, name in enumerate(name for group in groups for name in group)}
    kept = [{"lr": 1e-3, "params": [number[name] for name in group]} for group in groups]
    if names:
        kept = [{**g, "param_names": list(group)} for g, group in zip(kept, groups, strict=True)]
    return {"state": {number[name]: state for name, state in states.items()}, "param_groups": kept}


def write_named(folder: Path, states: dict[str, Any], step: str | None = "7") -> None:
    for moment in ("exp_avg", "exp_avg_sq"):
        tensors = {name: state[moment].contiguous() for name, state in states.items()}
        save_file(tensors, folder / f"{moment}.safetensors", metadata={"step": step} if step else None)


def write_trainer(folder: Path, states: dict[str, Any]) -> None:
    torch.save(by_number(states, [list(states), []]), folder / "optimizer.pt")


def write_one_group(folder: Path, states: dict[str, Any]) -> None:
    torch.save(by_number(states, [list(states)]), folder / "optimizer.bin")


def write_named_groups(folder: Path, states: dict[str, Any]) -> None:
    turned = list(states)[::-1]
    names = [turned[: len(turned) // 2], turned[len(turned) // 2 :], []]
    torch.save(by_number(states, names, names=True), folder / "optimizer.pt")


def write_less(folder: Path, states: dict[str, Any]) -> None:
    torch.save({"state": states, "param_groups": [{"params": list(states)}]}, folder / "optimizer.bin")


def write_less_plain(folder: Path, states: dict[str, Any]) -> None:
    write_less(folder, {name.replace(".default", ""): state for name, state in states.items()})


def write_wrapped(folder: Path, states: dict[str, Any]) -> None:
    wrapped = {f"module._fsdp_wrapped_module.{name}": state for name, state in states.items()}
    write_less(folder, dict(reversed(wrapped.items())))
