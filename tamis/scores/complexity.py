"""How complex a scorer model finds the instruction, from 1 to 6.

**Paper.** Liu, Zeng, He, Jiang, He 2024, What Makes Good Data for Alignment? A Comprehensive Study of
Automatic Data Selection in Instruction Tuning (DEITA), arXiv:2312.15685.
**Definition.** As `quality`, but the prompt holds the instruction alone: sum_{j=1..6} j softmax_j of the
logits of "1" to "6".
**Needs.** `model`, a scorer tuned to answer with a digit, and the `prompt` that it was tuned with: "card"
(the string of its model card), a file, a text with {instruction}, or "plain".
**Gives.** float64 (n,), in (1, 6) unless summed, higher is more complex. Statuses as in `quality`;
`truncated`: the instruction lost its end.
**Cost.** One forward pass over the instruction and the prompt; six rows of the head.
**Departs.** As `quality`. Exchanges without a reply are left out here too, so that both score the same ones.
**Relations.** `deita` multiplies it by `quality`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tamis.core.method import Method
from tamis.representations._context import Context
from tamis.scores._digits import Asker, DigitScorer, check_turns, derived


@dataclass(frozen=True)
class Config:
    """`model`: the scorer; `prompt`: "card", "plain", a text or a file; `turns`: "mean", "sum" or "first"."""

    model: str = ""
    prompt: str = "card"
    turns: str = "mean"

    def __post_init__(self) -> None:
        check_turns(self.turns)


def prepare(config: Config, context: Context) -> DigitScorer:
    """The scorer for `config`; raises RequestError without a model, digits or a prompt."""
    asker = Asker("complexity", config.model, config.prompt, context, "complexity.model")
    return DigitScorer([asker], config.turns)


def derive(
    config: Config, stored: Mapping[str, np.ndarray], status: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and statuses (n,) from what is stored of each row."""
    return derived("complexity", config.turns, stored, status)


METHOD = Method(
    "complexity",
    prepare,
    Config,
    __doc__ or "",
    needs=("scorer",),
    derive=derive,
    paths=("model", "prompt"),
)
