"""AdamW's moments in the files that trainings leave, matched to parameters by name; never by a guess.

    exp_avg.safetensors, exp_avg_sq.safetensors    `MomentsCallback`: by name
    optimizer.pt, optimizer.bin                    the `transformers` Trainer, accelerate: by position
    optimizer.bin                                  LESS, and FSDP's full state dict: by name

Positions become names by the groups' `param_names` where they have them, else by how the groups are made:

    one group      every trained parameter, in the order of `named_parameters()`
    two groups     the Trainer's: with weight decay, and without (biases, and norms by name or by class)
    four groups    peft's LoRA+: A and other matrices, embeddings, B, B without decay

A norm's class is not known here. Names that only a class would decide are taken where the sizes of the groups
leave one way; anything else is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tamis.core.errors import RequestError

NAMED = ("exp_avg.safetensors", "exp_avg_sq.safetensors")
SAVED = ("optimizer.pt", "optimizer.bin")
MOMENTS = ("exp_avg", "exp_avg_sq")
_SHARDED = (
    "optimizer_[0-9]*",
    "*.distcp",
    "global_step*",
    "*zero_pp_rank_*",
    "*_optim_states.pt",
    "optimizer.pt_[0-9]*",
    "rank*-of-*-optimizer.pt",
)
_WRAPPERS = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "default")
_NORM = re.compile(r"layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
WAYS_OUT = (
    "train with tamis.models.moments.MomentsCallback, or take a preconditioner without moments (none or sign)"
)

Shapes = Mapping[str, tuple[int, ...]]
States = dict[str, dict[str, Any]]


def moment_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that hold moments, in a fixed order; empty when there are none."""
    return [folder / name for name in (*NAMED, *SAVED) if (folder / name).is_file()]


def read_states(folder: Path, shapes: Shapes) -> tuple[States, Path]:
    """The state of every parameter in `shapes` by its name there, and the file, to say where it is from.

    A state has exp_avg and exp_avg_sq, not yet checked against the shape, and maybe step. Raises RequestError
    when there is no file or more than one kind, or when names and states do not fit one to one.
    """
    files = moment_files(folder)
    names = [file.name for file in files]
    if names == list(NAMED):
        return by_name(_read_named(files), shapes, folder), folder
    if len(names) != 1 or names[0] in NAMED:
        raise _not_one(folder, names)
    saved, where = _load(files[0]), files[0]
    states = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise RequestError(f"{where}: expected the state dict of an optimizer, with states under 'state'")
    states = {key: state for key, state in states.items() if state}  # a frozen parameter has an empty one
    if not states:
        raise RequestError(
            f"{where}: it holds no states, as of SGD, or as before the first step. Train with AdamW; or "
            f"{WAYS_OUT}"
        )
    if all(isinstance(key, str) for key in states):
        return by_name(states, shapes, where), where
    groups = saved.get("param_groups")
    if not all(isinstance(key, int) for key in states) or not isinstance(groups, list):
        raise RequestError(f"{where}: expected states by name, or by number with param_groups beside them")
    return by_position(states, groups, shapes, where), where


def _not_one(folder: Path, names: Sequence[str]) -> RequestError:
    if names and set(names) <= set(NAMED):
        other = next(name for name in NAMED if name not in names)
        return RequestError(f"{folder}: {names[0]} is there, {other} is not; both are needed")
    if names:
        return RequestError(
            f"{folder}: moments in {', '.join(names)}; which of them are meant is not known: keep one kind"
        )
    shards = sorted(path.name for pattern in _SHARDED for path in folder.glob(pattern))
    if shards:
        return RequestError(
            f"{folder}: the optimizer is saved in shards ({shards[0]}), which are not read; save it whole "
            f"(FSDP: FULL_STATE_DICT) or train the adapter on one device; or {WAYS_OUT}"
        )
    return RequestError(
        f"{folder}: no moments of an optimizer; looked for {NAMED[0]} with {NAMED[1]}, {', '.join(SAVED)}. "
        f"Save the optimizer with each checkpoint (save_only_model=False), or {WAYS_OUT}"
    )


def _load(file: Path) -> Any:
    """What `torch.save` wrote, when it is tensors and plain values; no code of a file is ever run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> RequestError:
    first = (str(error).strip().splitlines() or [""])[0]
    return RequestError(
        f"{file}: not readable as tensors and plain values ({type(error).__name__}: {first}); it is damaged, "
        f"or of an optimizer with objects of its own. Save the checkpoint again, or {WAYS_OUT}"
    )


def _read_named(files: Sequence[Path]) -> States:
    found: States = {}
    for moment, path in zip(MOMENTS, files, strict=True):
        try:
            with safe_open(path, framework="pt") as file:
                step = (file.metadata() or {}).get("step")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        for name, tensor in tensors.items():
            state = found.setdefault(name, {"step": step})
            state[moment] = tensor
            if state["step"] != step:
                raise RequestError(
                    f"{path}: after {step} steps, {files[0].name} after {state['step']}; they are not of one "
                    "checkpoint"
                )
    return {name: {k: v for k, v in state.items() if v is not None} for name, state in found.items()}


# --- by name ---------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """A parameter's name without wrappers of FSDP, compile and DDP, and without the adapter's `default`."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts[1:] if parts[:1] == ["module"] else parts)


def by_name(states: Mapping[str, dict[str, Any]], shapes: Shapes, where: Path) -> States:
    """States of names that are those of `shapes` but for wrappers: every one, no other, each once."""
    flat = [name for name in states if "flat_param" in name]
    if flat:
        raise RequestError(
            f"{where}: {flat[0]} is a flattened parameter of FSDP, which has lost the names in it; save the "
            f"full state dict (FULL_STATE_DICT), or {WAYS_OUT}"
        )
    found, wanted = _plain(states, where), _plain(shapes, where)
    missing = [name for plain, name in wanted.items() if plain not in found]
    if missing:
        near = difflib.get_close_matches(missing[0], states, n=1, cutoff=0.0)
        raise RequestError(
            f"{where}: no moments for {len(missing)} of the {len(shapes)} trained parameters, first "
            f"{missing[0]}; nearest name there: {near[0] if near else 'none'}. Are they of this adapter?"
        )
    extra = [name for plain, name in found.items() if plain not in wanted]
    if extra:
        raise RequestError(
            f"{where}: moments of {len(extra)} parameters that the adapter does not train, first {extra[0]}; "
            f"it trains {len(shapes)}. Are they of this adapter?"
        )
    return {name: states[found[plain]] for plain, name in wanted.items()}


def _plain(names: Mapping[str, Any], where: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        plain = plain_name(name)
        if plain in found:
            raise RequestError(
                f"{where}: {found[plain]} and {name} are one name without wrappers and adapter; rename one"
            )
        found[plain] = name
    return found


# --- by position -----------------------------------------------------------------------------------------


def by_position(
    states: Mapping[int, dict[str, Any]], groups: list[Any], shapes: Shapes, where: Path
) -> States:
    """States of numbers: by `param_names` of the groups, else by the rule that makes so many groups."""
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        raise RequestError(f"{where}: param_groups: expected mappings that list their numbers under 'params'")
    held = [[number for number in group["params"] if number in states] for group in groups]
    if len({n for group in held for n in group}) != len(states) or sum(map(len, held)) != len(states):
        raise RequestError(
            f"{where}: {len(states)} states, but the groups list {sum(map(len, held))} of them; the file "
            "does not fit together: save the checkpoint again"
        )
    if any("param_names" in group for group in groups):
        return by_name(_named(states, groups, where), shapes, where)
    counts = [len(group) for group in held]
    ways = [way for way in _ways(shapes, len(groups)) if [len(group) for group in way] == counts]
    if len(ways) > 1:
        ways = [way for way in ways if _shapes_fit(way, held, states, shapes)]
    if len(ways) != 1:
        by_rule = " or ".join(
            dict.fromkeys("+".join(str(len(group)) for group in way) for way in _ways(shapes, len(groups)))
        )
        problem = "cannot be told apart" if ways else "do not fit"
        raise RequestError(
            f"{where}: {'+'.join(map(str, counts))} states in {len(groups)} groups {problem}: the "
            f"{len(shapes)} trained parameters would be {by_rule or 'in one, two or four groups'} "
            f"(Trainer, LoRA+). Give the optimizer named parameters, or {WAYS_OUT}"
        )
    names = [name for group in ways[0] for name in group]
    numbers = [number for group in held for number in group]
    found = {name: states[number] for name, number in zip(names, numbers, strict=True)}
    return {name: found[name] for name in shapes}


def _named(states: Mapping[int, dict[str, Any]], groups: list[Any], where: Path) -> States:
    named: States = {}
    for group in groups:
        names = group.get("param_names", [])
        if len(names) != len(group["params"]):
            raise RequestError(
                f"{where}: a group has {len(group['params'])} parameters and {len(names)} param_names; they "
                "must be as many"
            )
        for name, number in zip(names, group["params"], strict=True):
            if name in named:
                raise RequestError(f"{where}: param_names has {name} twice; each parameter needs its own")
            if number in states:
                named[name] = states[number]
    return named


def _ways(shapes: Shapes, groups: int) -> list[list[list[str]]]:
    """Names by group, for every way in which norms may have been told from the rest, each way once."""
    names = list(shapes)
    if groups == 1:
        return [[names]]
    kinds = {name: _kind(name, shape) for name, shape in shapes.items()}
    found: list[list[list[str]]] = []
    for undecayed in ({"norm", "vector"}, {"norm"}, {"vector"}, set[str]()):
        bare = [name for name in names if kinds[name] in undecayed | {"bias"}]
        if groups == 2:
            way = [[name for name in names if name not in set(bare)], bare]
        elif groups == 4:
            way = _loraplus(shapes, set(bare))
        else:
            return []
        if way not in found:
            found.append(way)
    return found


def _loraplus(shapes: Shapes, bare: set[str]) -> list[list[str]]:
    groups: list[list[str]] = [[], [], [], []]
    for name, shape in shapes.items():
        if "lora_embedding_" in name:
            groups[1].append(name)
        elif "lora_B" in name or len(shape) == 1:
            groups[3 if name in bare else 2].append(name)
        else:
            groups[0].append(name)
    return groups


def _kind(name: str, shape: tuple[int, ...]) -> str:
    """What the Trainer's rule sees: bias and norm by name; a vector may be of a norm, by its class."""
    if "bias" in name.lower():
        return "bias"
    if _NORM.search(name.lower()):
        return "norm"
    return "vector" if len(shape) == 1 and "lora_" not in name else "matrix"


def _shapes_fit(
    way: list[list[str]], held: list[list[int]], states: Mapping[int, dict[str, Any]], shapes: Shapes
) -> bool:
    return all(
        tuple(getattr(states[number].get(MOMENTS[0]), "shape", ())) == tuple(shapes[name])
        for names, numbers in zip(way, held, strict=True)
        for name, number in zip(names, numbers, strict=True)
    )
