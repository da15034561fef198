"""Gradients of single rows with respect to an adapter, at every checkpoint of a warm-up (LESS).

**Paper.** Xia, Malladi, Gururangan, Arora, Chen 2024, LESS: Selecting Influential Data for Targeted
Instruction Tuning, arXiv:2402.04333; one row a query and any selection: arXiv:2602.14696 (2026).
**Definition.** At checkpoint k, g = gradient of the row's mean loss over its response tokens with respect to
the adapter. Pool rows: G = `preconditioner`(g, Adam's moments there), by default m' / sqrt(v' + 1e-8) with m'
= 0.9 m + 0.1 g, v' = 0.999 v + 0.001 g^2; query rows: g. Both are projected to `dimensions` (the same
projection at every checkpoint) and brought to length 1; S[q, j] = sum_k w_k cos(g_q, G_j), w_k the mean
learning rate of the epoch over the sum of all. `less-fast`: all checkpoints only for the `shortlist` (0.2) of
the rows that go first by the first one, the queries taking turns; the others cannot be chosen.
**Needs.** A causal language model and a query set. A strategy trains the adapter itself (`share` 0.05 of the
pool, at most `rows` 10,000; `recipe` less-warmup), or `checkpoints` names PEFT folders of your own.
**Gives.** Per checkpoint: vectors (n, d) of length 1, `dtype`; norms (n,) of g, losses (n,). Higher is
better. Not scored: `no_target_tokens`, `refused`, `too_long`, `non_finite`, `failed`. `truncated`: the loss
is over the tokens that are left.
**Cost.** Per checkpoint 4 P operations a token (a forward and a backward pass, the base frozen); d x 2 bytes
a row, or with `keep="similarity"` 4 bytes a row and query. Warm-up: 4 P a token and epoch of its rows.
**Departs.** Dropout is off unless `dropout`; then its noise follows from the row. The projection is a count
sketch (`projection="rademacher"` is LESS's own, "none" keeps all numbers). Features are not cast to float16
before it. Rows without a target have a status, not a score. `aggregate` "cosines" is LESS's mean over the
queries of a sub-task (their `source`), "gradients" the paper's text; groups may be of unequal size.
**Relations.** With `doubly-greedy` and `aggregate=cosines` it is LESS as published; `preconditioner=rms` is
bergson's. Prefers short rows: look at the lengths in the report. `loss-gradients`: plain g on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.representations._context import Context

if TYPE_CHECKING:
    from tamis.models.checkpoints import Checkpoint
    from tamis.representations._gradient_encoder import GradientEncoder

PRECONDITIONERS = ("less", "adam", "rms", "sign", "none")
PROJECTIONS = ("count-sketch", "rademacher", "none")
AGGREGATES = ("none", "cosines", "gradients")
KEEPS = ("vectors", "similarity")
DTYPES = ("float16", "float32")
FAST = 0.2
SHORTLISTS = {"less": None, "less-fast": FAST, "loss-gradients": None}
WARM_UP = {"strategy": "random", "share": 0.05, "rows": 10_000, "recipe": "less-warmup"}


@dataclass(frozen=True)
class Config:
    """`preconditioner`, with Adam's `beta1`, `beta2`, `epsilon`; `projection` to `dimensions`, by
    `projection_seed`; `dropout`; `aggregate` of query rows; `keep` "vectors", or "similarity": only the
    numbers that a query set needs; `dtype` of what is kept; `shortlist`: share of the rows that all
    checkpoints are for. `checkpoints`: a folder, or a list of folders, with `learning_rates` where none are
    recorded."""

    preconditioner: str = "less"
    projection: str = "count-sketch"
    dimensions: int = 8192
    projection_seed: int = 0
    dropout: bool = False
    aggregate: str = "none"
    keep: str = "vectors"
    dtype: str = "float16"
    shortlist: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    checkpoints: str | Sequence[str] = ""
    learning_rates: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("preconditioner", PRECONDITIONERS),
            ("projection", PROJECTIONS),
            ("aggregate", AGGREGATES),
            ("keep", KEEPS),
            ("dtype", DTYPES),
            ("dropout", (True, False)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(str, known))}"
                )
        if not isinstance(self.dimensions, int) or self.dimensions < 1:
            raise ValueError(f"dimensions={self.dimensions!r}: expected a whole number, 1 or more")
        if self.shortlist is not None and not 0 < self.shortlist <= 1:
            raise ValueError(
                f"shortlist={self.shortlist!r}: expected a share of the rows, above 0, at most 1"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ValueError("beta1 and beta2 must be 0 or more and below 1, epsilon above 0")
        given = self.checkpoints
        if not isinstance(given, str):
            object.__setattr__(self, "checkpoints", tuple(map(str, given)))
        if self.learning_rates is not None:
            rates = self.learning_rates
            listed = rates if isinstance(rates, (list, tuple)) else [rates]
            object.__setattr__(self, "learning_rates", tuple(map(float, listed)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Gradients:
    """The encoders of one side, one for each checkpoint, and the `weights` of their cosines, which sum to 1.
    Without checkpoints, because the strategy has yet to train them, there are none."""

    config: Config
    context: Context
    parts: tuple[GradientEncoder, ...]
    weights: tuple[float, ...]

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that determines the numbers; nothing while the adapter is not trained."""
        if not self.parts:
            return {}
        return {"parts": [part.recipe for part in self.parts], "weights": list(self.weights)}

    @property
    def execution(self) -> dict[str, Any]:
        """How it runs here, and the checkpoints."""
        if not self.parts:
            return {}
        found = dict(self.parts[-1].execution)
        found["checkpoints"] = [
            {
                "folder": str(part.checkpoint.folder),
                "learning_rate": part.checkpoint.learning_rate,
                "weight": w,
            }
            for part, w in zip(self.parts, self.weights, strict=True)
        ]
        return found

    def need_parts(self) -> None:
        """Raise RequestError where there is no checkpoint."""
        if not self.parts:
            raise RequestError(
                f"less takes gradients of an adapter, and {self.context.model} is a whole model: give the "
                "checkpoints of one with --set less.checkpoints=FOLDER, or use `tamis select`, or "
                "tamis.warm_up(pool, model=…) from Python, which train one"
            )


def shortlist_of(signal: str | None, parameters: Mapping[str, Any]) -> float | None:
    """Share of the rows that `signal` takes the gradients of all checkpoints for; None for all, and for other
    signals."""
    if signal not in SHORTLISTS:
        return None
    given = parameters.get("shortlist")
    return SHORTLISTS[signal] if given is None else float(given)


def has_checkpoints(folder: str) -> bool:
    """Whether a folder is a PEFT adapter, or holds epoch-k or checkpoint-k that are."""
    path = Path(folder).expanduser()
    below = (path, *path.glob("epoch-*"), *path.glob("checkpoint-*")) if path.is_dir() else ()
    return any((one / "adapter_config.json").exists() for one in below)


def prepare(shortlist: float | None, plain: bool, config: Config, context: Context) -> Gradients:
    """The encoders of the context's side: of `config.checkpoints`, or of those below the context's model."""
    if shortlist is not None and config.shortlist is None:
        config = replace(config, shortlist=shortlist)
    if plain:
        config = replace(config, preconditioner="none")
    if context.model is None and not config.checkpoints:
        raise RequestError("less needs a model: give --model PATH_OR_ID")
    given = config.checkpoints or (context.model if has_checkpoints(str(context.model)) else None)
    if given is None:
        return Gradients(config, context, (), ())
    from tamis.models.checkpoints import find_checkpoints
    from tamis.representations._gradient_encoder import GradientEncoder

    found: list[Checkpoint] = find_checkpoints(given, config.learning_rates)
    base = context.model if config.checkpoints else None
    parts = tuple(GradientEncoder(config, context, checkpoint, base) for checkpoint in found)
    rates = np.array([checkpoint.learning_rate for checkpoint in found])
    return Gradients(config, context, parts, tuple((rates / rates.sum()).tolist()))


_CARD = (__doc__ or "").partition("\n\n")[2]


def _method(name: str, about: str, shortlist: float | None = None, plain: bool = False) -> Method:
    run = partial(prepare, shortlist, plain)
    return Method(name, run, Config, f"{about}\n\n{_CARD}", needs=("model",), paths=("checkpoints",))


METHODS = (
    _method("less", "Gradients of rows, as Adam would apply them, over the checkpoints of a warm-up (LESS)."),
    _method("less-fast", "LESS with all checkpoints for the best fifth by the first one alone.", FAST),
    _method("loss-gradients", "Plain gradients of rows over the checkpoints of a warm-up.", plain=True),
)
