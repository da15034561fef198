"""Optimizer moments by parameter name, and the learning rate of every step, as training goes on.

A callback for any training with the `transformers` Trainer:

    trainer = Trainer(..., callbacks=[MomentsCallback("moments")])

At the end of epoch k it writes, in FOLDER/epoch-k:

    adapter_model.safetensors, adapter_config.json the adapter, when the model is a PeftModel
    exp_avg.safetensors, exp_avg_sq.safetensors    AdamW's moments of every trained parameter, by its name in
                                                   `model.named_parameters()`; the step count in the metadata
    epoch.json                                     epoch (from 1), steps so far, mean rate of the epoch

and FOLDER/learning_rates.jsonl: step (from 1), epoch (from 1) and the rate that step was taken with.
`tamis.models.checkpoints.find_checkpoints` reads FOLDER.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from tamis.core.errors import RunError
from tamis.core.files import append_line, read_json, replacing, write_json

MOMENTS = ("exp_avg", "exp_avg_sq")
RATES = "learning_rates.jsonl"


class MomentsCallback(TrainerCallback):
    """Writes moments, learning rates and the adapter below `folder`, at the end of every epoch.

    `moments=False`: without moments. `weights=False`: without the adapter, for a training that saves it there
    itself. Weights of a model that is no PeftModel are not written.
    """

    def __init__(self, folder: str | Path, moments: bool = True, weights: bool = True) -> None:
        self.folder = Path(folder)
        self.moments, self.weights = moments, weights

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Drop the rates of steps that are taken anew after a restart."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / RATES
        kept = [entry for entry in read_rates(self.folder) if entry["step"] <= state.global_step]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The rate is read before the step, because afterwards the schedule has moved on."""
        entry = {
            "step": state.global_step + 1,
            "epoch": int(state.epoch) + 1,
            "learning_rate": given["optimizer"].param_groups[0]["lr"],
        }
        append_line(self.folder / RATES, entry)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the epoch's folder."""
        epoch = round(state.epoch)
        folder = self.folder / f"epoch-{epoch}"
        folder.mkdir(exist_ok=True)
        if self.weights and isinstance(given["model"], PeftModel):
            save_weights(given["model"], folder)
        if self.moments:
            write_moments(folder, given["model"], given["optimizer"], state.global_step)
        rates = [entry["learning_rate"] for entry in read_rates(self.folder) if entry["epoch"] == epoch]
        mean = sum(rates) / len(rates) if rates else None
        write_json(
            folder / "epoch.json", {"epoch": epoch, "step": state.global_step, "learning_rate_mean": mean}
        )


def save_weights(model: Any, folder: Path) -> None:
    """Weights and config of a model, or of its adapter alone; equal weights leave equal bytes."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, with an empty form
    config = folder / "adapter_config.json"
    if config.exists():  # a set, written in the order of this process
        found = read_json(config)
        if isinstance(found["target_modules"], list):
            found["target_modules"].sort()
        write_json(config, found)


def write_moments(folder: Path, model: Any, optimizer: Any, step: int) -> None:
    """Write the moments of every trained parameter of `model` below `folder`, one file for each moment."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for moment in MOMENTS:
        found = {}
        for name, parameter in trained.items():
            state: Mapping[str, Any] = optimizer.state.get(parameter, {})
            if moment not in state or state[moment].shape != parameter.shape:
                raise RunError(
                    f"the optimizer has no {moment} of its shape for {name}: moments are written for AdamW "
                    "on one device, not for other or sharded optimizers"
                )
            found[name] = state[moment].detach().cpu().contiguous()
        with replacing(folder / f"{moment}.safetensors") as temporary:
            save_file(found, temporary, metadata={"step": str(step)})


def read_moments(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(exp_avg, exp_avg_sq, steps taken) of an epoch's folder: tensors on the CPU by parameter name."""
    found, step = [], 0
    for moment in MOMENTS:
        with safe_open(Path(folder) / f"{moment}.safetensors", framework="pt") as file:
            found.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            step = int(file.metadata()["step"])
    return found[0], found[1], step


def read_rates(folder: str | Path) -> list[dict[str, Any]]:
    """Step, epoch and learning rate of every step; a torn last line of a killed run is left out."""
    path = Path(folder) / RATES
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def epochs_of(folder: str | Path) -> list[dict[str, Any]]:
    """`epoch.json` of every epoch below `folder`, in order."""
    found = [read_json(path) for path in Path(folder).glob("epoch-*/epoch.json")]
    return sorted(found, key=lambda entry: int(entry["epoch"]))
