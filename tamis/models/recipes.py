"""Recipes of fine-tuning: named data (`recipes.yaml`), checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from tamis.core.errors import RequestError, unknown_name

METHODS = ("full", "lora")
SCHEDULES = ("linear", "cosine", "constant")
DTYPES = ("float32", "bfloat16")
_ABOUT = ("about", "paper")


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned; AdamW with gradients cut to the norm `clip`.

    `batch_rows`: rows (packed: sequences) of one step, whatever fits on the device at a time. `warmup`:
    share of the steps in which the rate rises; then it falls by `schedule` to zero, or stays. `max_tokens`:
    rows are cut on the right. `neftune`: alpha of uniform noise on the embeddings. `packed`: rows one after
    another in sequences of `max_tokens`, seeing each other. `loss_on_prompt`: every token but the first is a
    target. `weights`: dtype of the weights that are updated; steps of bfloat16 weights are mostly rounded
    away. `compute`: dtype of products, "auto" is bfloat16 on CUDA and float32 elsewhere. `rank`, `alpha`,
    `dropout`, `targets` (names of modules, "all-linear", or "auto": see train.py) matter with `method="lora"`
    only. `epoch_checkpoints`: keep weights and optimizer moments of every epoch.
    """

    method: str = "full"
    epochs: int = 2
    batch_rows: int = 128
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup: float = 0.03
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 1.0
    max_tokens: int = 2048
    neftune: float = 0.0
    packed: bool = False
    loss_on_prompt: bool = False
    weights: str = "float32"
    compute: str = "auto"
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "auto"
    epoch_checkpoints: bool = False

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("schedule", SCHEDULES), ("weights", DTYPES)):
            _among(name, getattr(self, name), known)
        _among("compute", self.compute, ("auto", *DTYPES))
        for name in ("epochs", "batch_rows", "max_tokens", "rank"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more")
        for name in ("learning_rate", "epsilon", "alpha", "clip"):
            if not _number(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number above 0")
        for name in ("warmup", "beta1", "beta2", "dropout"):
            if not _number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected 0 or more, below 1")
        for name in ("weight_decay", "neftune"):
            if not _number(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected 0 or more")
        for name in ("packed", "loss_on_prompt", "epoch_checkpoints"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected true or false")
        object.__setattr__(self, "targets", _targets(self.targets))

    def identity(self) -> dict[str, Any]:
        """The values that determine the weights, as JSON: those of LoRA only where it is used."""
        of_lora = ("rank", "alpha", "dropout", "targets")
        kept = {k: v for k, v in vars(self).items() if self.method == "lora" or k not in of_lora}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def _among(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _targets(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str) and value in ("auto", "all-linear"):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(f"targets={value!r}: expected auto, all-linear, or a list of names of modules")


@cache
def named_recipes() -> dict[str, dict[str, Any]]:
    """The table `recipes.yaml`."""
    text = files("tamis.models").joinpath("recipes.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return table


def resolve_recipe(given: str | Mapping[str, Any] | Recipe, **changes: Any) -> Recipe:
    """A recipe by its name, or by a mapping of values, which may name one under `recipe` to begin with.

    `changes` go over it. Raises RequestError for unknown names and values out of range.
    """
    if isinstance(given, Recipe):
        return _made(lambda: replace(given, **_known(changes)))
    values = {"recipe": given} if isinstance(given, str) else dict(given)
    name = values.pop("recipe", None)
    base: dict[str, Any] = {}
    if name is not None:
        if name not in named_recipes():
            raise unknown_name("recipe", str(name), named_recipes())
        base = {key: value for key, value in named_recipes()[name].items() if key not in _ABOUT}
    whole = {k: _number_of(v) for k, v in {**base, **_known(values), **_known(changes)}.items()}
    return _made(lambda: Recipe(**whole))


def _number_of(value: Any) -> Any:
    """1e-3 without a point is a text in YAML; it is meant as a number."""
    exponent = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
    return float(value) if exponent else value


def _known(values: Mapping[str, Any]) -> Mapping[str, Any]:
    known = [field.name for field in fields(Recipe)]
    for name in values:
        if name not in known:
            raise unknown_name("key of a recipe", str(name), known)
    return values


def _made(make: Any) -> Recipe:
    try:
        recipe: Recipe = make()
    except (TypeError, ValueError) as error:
        raise RequestError(f"recipe: {error}") from error
    return recipe
