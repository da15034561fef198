"""Complexity of the instruction times quality of the response, summed over the turns.

**Paper.** Liu, Zeng, He, Jiang, He 2024, What Makes Good Data for Alignment? A Comprehensive Study of
Automatic Data Selection in Instruction Tuning (DEITA), arXiv:2312.15685.
**Definition.** s_j = sum over the exchanges t of row j of c_t q_t, with c_t and q_t as in `complexity` and
`quality`. `turns`: "sum", "mean" or the "first" exchange. `score`: "product", or one factor alone.
**Needs.** Two scorers, `complexity_model` and `quality_model`, and the prompts that they were tuned with
(`complexity_prompt`, `quality_prompt`: "card", a file, a text, or "plain").
**Gives.** float64 (n,), in (1, 36) an exchange, higher is better. Statuses as in `quality`.
**Cost.** Two forward passes for each exchange; both scorers are in memory at once.
**Departs.** As `quality`. With "sum", as in the paper, long conversations come first: two exchanges (2, 4)
and (3, 5) give 23, one of (4, 5) gives 20.
**Relations.** Strategy `deita` takes rows by it, by falling score, that are not too similar to one taken
(selection `diversity-threshold`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tamis.core.method import Method
from tamis.representations._context import Context
from tamis.scores._digits import Asker, DigitScorer, check_turns, derived

SCORES = ("product", "quality", "complexity")


@dataclass(frozen=True)
class Config:
    """The two scorers and their prompts; `turns`: "sum", "mean" or "first"; `score`: see `SCORES`."""

    complexity_model: str = ""
    quality_model: str = ""
    complexity_prompt: str = "card"
    quality_prompt: str = "card"
    turns: str = "sum"
    score: str = "product"

    def __post_init__(self) -> None:
        check_turns(self.turns)
        if self.score not in SCORES:
            raise ValueError(f"score={self.score!r}: expected one of {', '.join(SCORES)}")


def prepare(config: Config, context: Context) -> DigitScorer:
    """The scorer for `config`; raises RequestError without models, digits or prompts."""
    askers = [
        Asker(aspect, getattr(config, f"{aspect}_model"), getattr(config, f"{aspect}_prompt"), context,
              f"deita.{aspect}_model")
        for aspect in ("complexity", "quality")
        if config.score in ("product", aspect)
    ]  # fmt: skip
    return DigitScorer(askers, config.turns)


def derive(
    config: Config, stored: Mapping[str, np.ndarray], status: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and statuses (n,) from what is stored of each row."""
    return derived(config.score, config.turns, stored, status)


METHOD = Method(
    "deita",
    prepare,
    Config,
    __doc__ or "",
    needs=("scorer",),
    derive=derive,
    paths=("complexity_model", "quality_model", "complexity_prompt", "quality_prompt"),
)
