"""Checkpoints of an adapter's training: their folders in order, the learning rate of each, AdamW's moments.

What a training leaves is read as it is:

    epoch-1/, epoch-2/ …       `tamis.train` and `MomentsCallback`; the rate is the mean of the epoch
    checkpoint-79/, -158/ …    the `transformers` Trainer; the rate is the mean of those it logged since the
                               checkpoint before (beside it on the disk, or given)

Moments are found by the names of parameters (see _optimizer_files.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tamis.core.digest import digest, known_file_digest
from tamis.core.errors import RequestError
from tamis.models._optimizer_files import MOMENTS, WAYS_OUT, moment_files, read_states

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SERIES = ("epoch", "checkpoint")
_GIVE_RATES = "give less.learning_rates, one rate for each checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """An adapter as it was at one point of its training.

    `folder`: a PEFT adapter (adapter_config.json, adapter_model.safetensors), with moments beside it or not.
    `learning_rate`: mean rate of the epoch, or of the steps since the checkpoint before.
    """

    folder: Path
    learning_rate: float

    @property
    def fingerprint(self) -> dict[str, str]:
        """Digests of contents, never of paths: `adapter` of weights and config, without the name of the base,
        which is a path; and `moments` of their files, where there are any. Contents are read once in a
        process, as long as size and time of change stay the same."""
        config = _json(self.folder / CONFIG)
        config.pop("base_model_name_or_path", None)
        if isinstance(config.get("target_modules"), list):  # a set, in the order of the process that wrote it
            config["target_modules"] = sorted(config["target_modules"])
        found = {"adapter": digest({"config": config, "weights": known_file_digest(_weights(self.folder))})}
        files = moment_files(self.folder)
        if files:
            found["moments"] = digest([known_file_digest(file) for file in files])
        return found


@dataclass(frozen=True)
class Moments:
    """AdamW's moments of every trained parameter.

    `first` (exp_avg) and `second` (exp_avg_sq): float32 on the CPU, by the names of `named_parameters()` and
    in their order, each of its parameter's shape. `step`: steps taken, or None where the file does not say it
    or it is not the same for all.
    """

    first: dict[str, torch.Tensor]
    second: dict[str, torch.Tensor]
    step: int | None


def find_checkpoints(
    given: str | Path | Sequence[str | Path], learning_rates: Sequence[float] | None = None
) -> list[Checkpoint]:
    """The checkpoints below one folder, or those of a list of folders, in order of their steps.

    One folder holds epoch-1, epoch-2 …, or checkpoint-79, checkpoint-158 …, or is itself a checkpoint. A
    list keeps its own order when a step in it is not known. `learning_rates`: one for each, in the order of
    the list, or of the steps below one folder; without them the training's own record is read.
    Raises RequestError for folders that are no checkpoints of an adapter, and where no rate is recorded.
    """
    folders = _listed(given) if not isinstance(given, (str, Path)) else _below(Path(given).expanduser())
    for folder in folders:
        _need_adapter(folder)
    steps = [_step(folder) for folder in folders]
    if learning_rates is None:
        known = dict(zip(folders, steps, strict=True))
        rates = [_recorded_rate(folder, known) for folder in folders]
    else:
        rates = _checked_rates(learning_rates, folders)
    if not any(rates):
        raise RequestError(
            f"{folders[0]}: the learning rates of all {len(folders)} checkpoints are 0, so that none would "
            f"count; {_GIVE_RATES}"
        )
    found = [Checkpoint(folder, rate) for folder, rate in zip(folders, rates, strict=True)]
    if None in steps:
        return found
    return [found[i] for i in sorted(range(len(found)), key=lambda i: steps[i] or 0)]


def read_checkpoint_moments(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> Moments:
    """Moments of a checkpoint for the parameters in `shapes`: every trained one by its name in
    `model.named_parameters()` of the loaded PeftModel, in that order, with its shape.

    Raises RequestError when a file is missing, damaged, sharded or of another optimizer, when parameters and
    states do not fit one to one, and for shapes and values that moments of these parameters cannot have.
    """
    states, where = read_states(checkpoint.folder, shapes)
    found: dict[str, dict[str, torch.Tensor]] = {moment: {} for moment in MOMENTS}
    for name, shape in shapes.items():
        for moment in MOMENTS:
            found[moment][name] = _moment(states[name], moment, name, tuple(shape), where)
    steps = {_steps_taken(state.get("step"), where) for state in states.values()}
    return Moments(found[MOMENTS[0]], found[MOMENTS[1]], steps.pop() if len(steps) == 1 else None)


def _steps_taken(step: Any, where: Path) -> int | None:
    try:
        return None if step is None else int(step)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise RequestError(f"{where}: step={step!r}: expected the number of steps taken") from error


def _moment(
    state: Mapping[str, Any], moment: str, name: str, shape: tuple[int, ...], where: Path
) -> torch.Tensor:
    value = state.get(moment)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise RequestError(f"{where}: {_what_it_is(state)} for {name}, not AdamW's {moment}; {WAYS_OUT}")
    if tuple(value.shape) != shape:
        flat = " (flattened, as by FSDP?)" if value.ndim == 1 < len(shape) else ""
        raise RequestError(
            f"{where}: {moment} of {name} has the shape {tuple(value.shape)}{flat}, the parameter {shape}; "
            "the moments are of another adapter, or their parameters were in another order"
        )
    wide = value.detach().to("cpu", torch.float32).contiguous()
    if not torch.isfinite(wide).all():
        raise RequestError(
            f"{where}: {moment} of {name} is not finite everywhere, so that training had gone wrong there; "
            "take an earlier checkpoint, or train again at a lower rate"
        )
    if moment == "exp_avg_sq" and (wide < 0).any():
        raise RequestError(
            f"{where}: {moment} of {name} is negative somewhere, which a mean of squares is not"
        )
    return wide


def _what_it_is(state: Mapping[str, Any]) -> str:
    if "state1" in state or any(getattr(value, "dtype", None) == torch.uint8 for value in state.values()):
        return "quantised states, as of an 8-bit optimizer (state1, state2),"
    if "exp_avg_sq_row" in state:
        return "Adafactor's factored states (exp_avg_sq_row)"
    if "momentum_buffer" in state:
        return "SGD's momentum_buffer"
    return f"{', '.join(sorted(state)) or 'no state'}"


# --- folders ---------------------------------------------------------------------------------------------


def _listed(given: Sequence[str | Path]) -> list[Path]:
    folders = [Path(path).expanduser() for path in given]
    if not folders:
        raise RequestError("checkpoints: the list is empty; give a folder, or a list of folders")
    seen: set[Path] = set()
    for folder in folders:
        _need_folder(folder)
        if folder.resolve() in seen:
            raise RequestError(f"checkpoints: {folder} is given twice; name each checkpoint once")
        seen.add(folder.resolve())
    return folders


def _below(folder: Path) -> list[Path]:
    _need_folder(folder)
    series = {kind: _numbered(folder, kind) for kind in _SERIES}
    found = [kind for kind in _SERIES if series[kind]]
    if len(found) > 1:
        raise RequestError(
            f"{folder}: it has both epoch-… and checkpoint-… folders; give the list of those that are meant"
        )
    if found:
        return [path for _, path in sorted(series[found[0]].items())]
    if (folder / CONFIG).is_file():
        return [folder]
    raise RequestError(
        f"{folder}: no checkpoints; expected epoch-1, epoch-2 … (tamis.train with epoch_checkpoints, or "
        f"MomentsCallback), checkpoint-N (the Trainer), or {CONFIG} in the folder itself"
    )


def _numbered(folder: Path, kind: str) -> dict[int, Path]:
    paths = {path: re.fullmatch(rf"{kind}-(\d+)", path.name) for path in folder.iterdir() if path.is_dir()}
    return {int(match[1]): path for path, match in paths.items() if match}


def _need_folder(folder: Path) -> None:
    if folder.is_file():
        raise RequestError(f"checkpoints: {folder} is a file; give the folder it is in")
    if not folder.is_dir():
        raise RequestError(f"checkpoints: {folder}: no such folder")


def _need_adapter(folder: Path) -> None:
    if (folder / CONFIG).is_file():
        _json(folder / CONFIG), _weights(folder)
        return
    if (folder / "config.json").is_file():
        raise RequestError(
            f"{folder}: a whole model (config.json, no {CONFIG}); gradients are taken of adapters: train "
            "with method: lora"
        )
    raise RequestError(
        f"{folder}: no {CONFIG}, so that it is no adapter; save the adapter there "
        "(model.save_pretrained, which MomentsCallback does by itself)"
    )


def _weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise RequestError(f"{folder}: {CONFIG} without the adapter's weights; expected {WEIGHTS[0]} beside it")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RequestError(f"{path}: not readable as JSON ({error}); save the checkpoint again") from error
    if not isinstance(found, dict):
        raise RequestError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


# --- steps and rates -------------------------------------------------------------------------------------


def _step(folder: Path) -> int | None:
    for name, key in (("epoch.json", "step"), ("trainer_state.json", "global_step")):
        if (folder / name).is_file():
            step = _json(folder / name).get(key)
            if isinstance(step, int):
                return step
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else None


def _recorded_rate(folder: Path, steps: Mapping[Path, int | None]) -> float:
    if (folder / "epoch.json").is_file():
        mean = _json(folder / "epoch.json").get("learning_rate_mean")
        if mean is None:
            raise RequestError(f"{folder}/epoch.json: it has no learning_rate_mean; {_GIVE_RATES}")
        return _rate(mean, f"{folder}/epoch.json: learning_rate_mean")
    path = folder / "trainer_state.json"
    step = steps[folder]
    if not path.is_file() or step is None:
        raise RequestError(
            f"{folder}: no learning rate; looked for epoch.json and trainer_state.json. {_GIVE_RATES}"
        )
    before = _before(folder, step, steps)
    entries = [entry for entry in _json(path).get("log_history") or [] if "learning_rate" in entry]
    logged = [
        _rate(entry["learning_rate"], f"{path}: learning_rate")
        for entry in entries
        if before < entry.get("step", -1) <= step
    ]
    if not logged:
        raise RequestError(
            f"{path}: no learning rate was logged in the steps {before + 1} to {step}; {_GIVE_RATES} "
            "(or train with logging_steps=1)"
        )
    return sum(logged) / len(logged)


def _before(folder: Path, step: int, steps: Mapping[Path, int | None]) -> int:
    """Step of the checkpoint before, in the same folder: one that was given, or one beside it on the disk."""
    beside = folder.resolve().parent
    given = [other for path, other in steps.items() if path.resolve().parent == beside and other is not None]
    earlier = [other for other in (*given, *_numbered(beside, "checkpoint")) if other < step]
    return max(earlier, default=0)


def _checked_rates(rates: Sequence[float], folders: Sequence[Path]) -> list[float]:
    if isinstance(rates, (str, bytes)) or not isinstance(rates, Sequence):
        raise RequestError(f"less.learning_rates={rates!r}: expected a list of numbers")
    if len(rates) != len(folders):
        raise RequestError(
            f"less.learning_rates: {len(rates)} rates for {len(folders)} checkpoints "
            f"({', '.join(folder.name for folder in folders)}); one for each is needed"
        )
    return [_rate(rate, "less.learning_rates") for rate in rates]


def _rate(value: Any, what: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise RequestError(f"{what}={value!r}: expected a number, 0 or more")
    return float(value)
