"""Instruction-following difficulty: how much the prompt helps the model with the response.

**Paper.** Li, Zhang, Li, Chen, Chen, Cheng, Wang, Zhou, Xiao 2023, From Quantity to Quality: Boosting LLM
Performance with Self-Guided Data Selection for Instruction Tuning, arXiv:2308.12032; Li, Zhang, He, Li, Zhao,
Wang, Cheng, Zhou 2024, Superfiltering, arXiv:2402.00530.
**Definition.** s(A|Q) and s(A): mean loss of the same response tokens in context and after the assistant
header alone. `ratio="loss"` (Cherry): s(A|Q) / s(A); "perplexity" (Superfiltering): exp(s(A|Q) - s(A)). Below
1 the prompt helps; above 1 it misleads. `turns`: the "first" exchange, the "last", or "all" (means over all
tokens of all turns; directly, each turn after a header of its own).
**Needs.** A causal language model (a small one will do for the perplexity ratio: `model`).
**Gives.** float64 (n,) > 0, higher is harder to follow. Not scored: `empty_response`, `no_target_tokens`,
`too_long` (the prompt alone fills --max-tokens), `refused`, `non_finite`, `failed`. `truncated`: the tokens
that are left, the same in both passes.
**Cost.** Two passes: prompt and response, which is that of `perplexity` and stored as such, and the response
again. In the first the LM head also works for the prompt (2 d V operations a token), so that it serves both.
**Departs.** Both passes score the same token ids (the released codes may differ by one, and lose the first
token of Superfiltering's direct pass); responses end with their end of turn; rows above 1 keep their number
and are left out by the strategies, which count them; several turns by a stated rule.
**Relations.** Strategies `ifd`, `ifd-ppl`, `cherry`, `superfiltering`. The two ratios rank differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.method import Method
from tamis.core.status import code
from tamis.representations._context import Context
from tamis.scores._context import Scored
from tamis.scores._likelihood import TURNS, LikelihoodScorer, Losses

if TYPE_CHECKING:
    from tamis.pools.pool import Message

RATIOS = ("loss", "perplexity")
MUCH_ABOVE_ONE = 0.05


@dataclass(frozen=True)
class Config:
    """`ratio`: "loss" or "perplexity"; `turns`: "first", "last" or "all"; `model`: another than the run's."""

    ratio: str = "loss"
    turns: str = "first"
    model: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("ratio", RATIOS), ("turns", TURNS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")


def derived(
    config: Config, stored: Mapping[str, np.ndarray], status: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and statuses (n,) from the losses and their statuses."""
    given, alone = stored["nll_response"], stored["nll_direct"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = given / alone if config.ratio == "loss" else np.exp(given - alone)
    scored = status <= code("truncated")
    status = np.where(scored & ~np.isfinite(values), code("non_finite"), status).astype(np.uint8)
    return np.where(status <= code("truncated"), values, np.nan), status


class IfdScorer(LikelihoodScorer):
    """Adds the direct losses to those in context, and derives the ratio from both."""

    row_bytes = LikelihoodScorer.row_bytes - 4

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__("ifd", context, config.model, config.turns)
        self.config = config

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Weights, text and turns; no device and no batching."""
        return {**super().recipe, "direct": True}

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of the direct pass of each row."""
        rows = self._rows(conversations)
        counts = [0] * len(conversations)
        for turn in rows.turns:
            counts[turn.row] += len(self.opening) + turn.stop - turn.start
        return counts

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Both passes of b rows."""
        rows = self._rows(conversations)
        self._in_context(rows, list(range(len(conversations))), advance)
        return self._with_direct(rows, advance)

    def further(
        self, conversations: Sequence[Sequence[Message]], before: Scored, advance: Callable[[int], None]
    ) -> Scored:
        """The direct pass of b rows; their losses in context are those of `before`."""
        rows = self._rows(conversations)
        rows.status, rows.reasons = before.status.copy(), dict(before.reasons)
        rows.columns = dict(before.columns)
        return self._with_direct(rows, advance)

    def _with_direct(self, rows: Losses, advance: Callable[[int], None]) -> Scored:
        head = len(self.opening)
        turns = [turn for turn in rows.turns if rows.status[turn.row] <= code("truncated")]
        ids = [np.concatenate([self.opening, rows.rendered[t.row].ids[t.start : t.stop]]) for t in turns]
        losses = self._losses(rows, ids, [np.arange(len(each)) >= head for each in ids], advance)
        total, alone = np.zeros(len(rows.rendered)), rows.add("nll_direct")
        for turn, found in zip(turns, losses, strict=True):
            total[turn.row] += found.sum(dtype=np.float64)
        for k, turn in enumerate(turns):
            alone[turn.row] = total[turn.row] / rows.columns["tokens_response"][turn.row]
            self._broken(rows, turn.row, k, alone)
        for name in ("nll_all", "tokens_all"):
            del rows.columns[name]
        return rows.scored(rows.columns["nll_response"])

    def derive(self, stored: Mapping[str, np.ndarray], status: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) and statuses (n,) from the losses and their statuses."""
        return derived(self.config, stored, status)

    def warnings_of(self, values: np.ndarray) -> list[str]:
        """What a reader of these values should know."""
        scored = values[np.isfinite(values)]
        above = float((scored > 1).mean()) if len(scored) else 0.0
        if above <= MUCH_ABOVE_ONE:
            return []
        return [
            f"{above:.0%} of the rows have IFD above 1: for them the prompt makes the response less likely; "
            f"the template ({self.context.template}) or the model may not suit these rows"
        ]


def prepare(config: Config, context: Context) -> IfdScorer:
    """The scorer for `config`."""
    return IfdScorer(config, context)


def before(config: Config) -> tuple[str, dict[str, Any]]:
    """The score that is stored before this one: the losses in context."""
    return "perplexity", {"turns": config.turns, "model": config.model}


METHOD = Method(
    "ifd", prepare, Config, __doc__ or "", needs=("model",), derive=derived, paths=("model",), before=before
)
