"""Mean negative log-likelihood of a row under a language model, in nats a token.

**Paper.** Ivison, Zhang, Brahman, Koh, Dasigi 2025, Large-Scale Data Selection for Instruction Tuning,
arXiv:2503.01807 (Top-PPL, Mid-PPL); after Yin and Rush 2024.
**Definition.** -(1/k) sum_i ln P(t_i | t_1 .. t_{i-1}) over the k tokens that count. `tokens="all"`: all
tokens of the rendered row but the first, prompt included, as published; "response": those of the assistant
turns that `turns` names ("first" exchange, "last" or "all"), end of turn included; "prompt": what comes
before the first answer, assistant header included, but its first token (Cherry's stage 1). The logarithm of
the perplexity, so that it cannot overflow and ranks the same.
**Needs.** A causal language model; rows with messages.
**Gives.** float64 (n,), higher is harder for the model. Not scored: `empty_response`, `no_target_tokens`,
`too_long` (the prompt alone fills --max-tokens), `refused`, `non_finite`, `failed`. `truncated`: the mean is
over what is left.
**Cost.** One pass, 2 P operations a token, head included; stored once for all `tokens` but "prompt", and for
`ifd`. With `turns` other than "first" rows of several exchanges pass twice: the first exchange, which `ifd`
asks for, and what this rule takes. All others pass once.
**Departs.** The released script also scores rows whose response is empty or cut off altogether;
`compatible=True` does.
**Relations.** Strategies `ppl-top` and `ppl-mid`. `tokens="response"` is the numerator of `ifd`.
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
from tamis.scores._likelihood import before as before_turns

if TYPE_CHECKING:
    from tamis.pools.pool import Message

TOKENS = ("all", "response", "prompt")


@dataclass(frozen=True)
class Config:
    """`tokens` that count: "all", "response" or "prompt"; `turns`: "first", "last" or "all";
    `compatible`: also rows without a response; `model`: another one than the run's."""

    tokens: str = "all"
    turns: str = "all"
    compatible: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("tokens", TOKENS), ("turns", TURNS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")


def derived(
    config: Config, stored: Mapping[str, np.ndarray], status: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and statuses (n,) from the losses and their statuses."""
    if config.tokens == "prompt":
        return stored["values"], status
    values = stored["nll_all" if config.tokens == "all" else "nll_response"].copy()
    if config.compatible and config.tokens == "all":
        status = np.where(np.isfinite(values) & (status > code("truncated")), code("ok"), status)
    return np.where(status <= code("truncated"), values, np.nan), status.astype(np.uint8)


class PerplexityScorer(LikelihoodScorer):
    """Derives the mean from the stored losses."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__("perplexity", context, config.model, config.turns)
        self.config = config

    def derive(self, stored: Mapping[str, np.ndarray], status: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) and statuses (n,) from the losses and their statuses."""
        return derived(self.config, stored, status)


class PromptScorer(LikelihoodScorer):
    """Scores prompts alone; nothing of the responses passes through the model."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__("perplexity", context, config.model, "first")
        self.compatible = config.compatible

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Weights, text and part; no device and no batching."""
        names = ("model", "renderer", "model_dtype")
        own = {"part": "prompt", "compatible": self.compatible}
        return {**own, **{name: super(PromptScorer, self).recipe[name] for name in names}}

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each prompt."""
        return [len(row.ids) for row in self.renderer.render_prompts(conversations)]

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Mean loss of b prompts."""
        rendered = self.renderer.render_prompts(conversations)
        status = np.array([code(row.status) for row in rendered], np.uint8)
        status[[row.status in ("ok", "truncated") and len(row.ids) < 2 for row in rendered]] = code(
            "no_target_tokens"
        )
        if not self.compatible:
            for i, messages in enumerate(conversations):
                if status[i] <= code("truncated"):
                    status[i] = code(_answered(messages, rendered[i].status))
        reasons = {i: row.reason for i, row in enumerate(rendered) if row.reason}
        asked = np.flatnonzero(status <= code("truncated")).tolist()
        rows = Losses(rendered, [], status, reasons)
        ids = [rendered[row].ids for row in asked]
        losses = self._losses(rows, ids, [np.arange(len(each)) > 0 for each in ids], advance)
        values = np.full(len(rendered), np.nan)
        for k, row in enumerate(asked):
            values[row] = losses[k].mean(dtype=np.float64)
            self._broken(rows, row, k, values)
        return rows.scored(values)


def _answered(messages: Sequence[Message], status: str) -> str:
    """`status`, unless there is no answer to the prompt or it is blank."""
    answer = next((message.content for message in messages if message.role == "assistant"), None)
    return "no_target_tokens" if answer is None else status if answer.strip() else "empty_response"


def prepare(config: Config, context: Context) -> LikelihoodScorer:
    """The scorer for `config`."""
    return (PromptScorer if config.tokens == "prompt" else PerplexityScorer)(config, context)


def before(config: Config) -> tuple[str, dict[str, Any]] | None:
    """The score that is stored before this one."""
    return None if config.tokens == "prompt" else before_turns(config)


METHOD = Method(
    "perplexity", prepare, Config, __doc__ or "", needs=("model",), derive=derived, paths=("model",),
    before=before,
)  # fmt: skip
