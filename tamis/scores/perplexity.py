"""Mean negative log-likelihood of a row under a language model, in nats a token.

**Paper.** Ivison, Zhang, Brahman, Koh, Dasigi 2025, Large-Scale Data Selection for Instruction Tuning,
arXiv:2503.01807 (Top-PPL, Mid-PPL); after Yin and Rush 2024.
**Definition.** -(1/k) sum_i ln P(t_i | t_1 .. t_{i-1}) over the k tokens that count. `tokens="all"`: all
tokens of the rendered row but the first, prompt included, as published; "response": those of the assistant
turns that `turns` names ("first" exchange, "last" or "all"), end of turn included. The logarithm of the
perplexity, so that it cannot overflow and ranks the same.
**Needs.** A causal language model; rows with messages.
**Gives.** float64 (n,), higher is harder for the model. Not scored: `empty_response`, `no_target_tokens`,
`too_long` (the prompt alone fills --max-tokens), `refused`, `non_finite`, `failed`. `truncated`: the mean is
over what is left.
**Cost.** One pass, 2 P operations a token; logits only where a token counts. Shared with `ifd` where that ran
with `whole` losses.
**Departs.** The released script also scores rows whose response is empty or cut off altogether;
`compatible=True` does.
**Relations.** Strategies `ppl-top` and `ppl-mid`. `tokens="response"` is the numerator of `ifd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tamis.core.method import Method
from tamis.core.status import code
from tamis.representations._context import Context
from tamis.scores._likelihood import TURNS, LikelihoodScorer

TOKENS = ("all", "response")


@dataclass(frozen=True)
class Config:
    """`tokens` that count: "all" or "response"; `turns`: "first", "last" or "all"; `compatible`: also rows
    without a response; `model`: another one than the run's."""

    tokens: str = "all"
    turns: str = "all"
    compatible: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("tokens", TOKENS), ("turns", TURNS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")


class PerplexityScorer(LikelihoodScorer):
    """Derives the mean from the stored losses."""

    def __init__(self, config: Config, context: Context) -> None:
        whole = config.tokens == "all"
        super().__init__("perplexity", context, config.model, config.turns, whole, direct=False)
        self.config = config

    def derive(self, stored: Mapping[str, np.ndarray], status: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) and statuses (n,) from the losses and their statuses."""
        values = stored["nll_all" if self.config.tokens == "all" else "nll_response"].copy()
        if self.config.compatible and self.config.tokens == "all":
            status = np.where(np.isfinite(values) & (status > code("truncated")), code("ok"), status)
        return np.where(status <= code("truncated"), values, np.nan), status.astype(np.uint8)


def prepare(config: Config, context: Context) -> PerplexityScorer:
    """The scorer for `config`."""
    return PerplexityScorer(config, context)


METHOD = Method("perplexity", prepare, Config, __doc__ or "", needs=("model",))
