"""How good a scorer model finds the response to its instruction, from 1 to 6.

**Paper.** Liu, Zeng, He, Jiang, He 2024, What Makes Good Data for Alignment? A Comprehensive Study of
Automatic Data Selection in Instruction Tuning (DEITA), arXiv:2312.15685.
**Definition.** For each exchange with an instruction and a response: q = sum_{j=1..6} j softmax_j(z), z the
logits of the tokens "1" to "6" after the scorer's prompt. `turns`: "mean" or "sum" of the exchanges, or the
"first".
**Needs.** `model`, a scorer tuned to answer with a digit, and the `prompt` that it was tuned with: "card"
(the string of its model card), a file, a text with {instruction} and {response}, or "plain".
**Gives.** float64 (n,), in (1, 6) unless summed, higher is better. Not scored: `empty_response`,
`no_target_tokens`, `too_long` (no token of the response fits), `non_finite`, `failed`. `truncated`: the
response lost its end; the words after it never are cut.
**Cost.** One forward pass over instruction, response and prompt; six rows of the head.
**Departs.** The released code generates to get one row of logits, and gives 3.0 where a digit is missing;
here digits that are no single tokens are an error before work, and nothing else gets a number. Exchanges
without a reply are left out; released, they are scored with an empty one. A system turn is part of the first
instruction. Digits are the bare tokens, if all six exist, else those after a space.
**Relations.** `deita` multiplies it by `complexity`; a study that ranks by it alone calls that DEITA
(strategy `deita-quality`).
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
    asker = Asker("quality", config.model, config.prompt, context, "quality.model")
    return DigitScorer([asker], config.turns)


def derive(
    config: Config, stored: Mapping[str, np.ndarray], status: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and statuses (n,) from what is stored of each row."""
    return derived("quality", config.turns, stored, status)


METHOD = Method(
    "quality",
    prepare,
    Config,
    __doc__ or "",
    needs=("scorer",),
    derive=derive,
    paths=("model", "prompt"),
)
