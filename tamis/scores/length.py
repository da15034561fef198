"""Length of the response, in tokens of the model's tokenizer.

**Paper.** Zhao, Andriushchenko, Croce, Flammarion 2024, Long Is More for Alignment: A Simple but
Tough-to-Beat Baseline for Instruction Fine-Tuning, arXiv 2402.04833.
**Definition.** L_j = sum over the assistant turns of row j of the number of tokens of the turn's stripped
content, tokenised alone, without special tokens and before any truncation. `unit`: "tokens", "chars" (code
points) or "words" (runs without white space). `turns`: "all", or "first" for the first assistant turn alone.
**Needs.** Rows; for `unit="tokens"` a model, of which only the tokenizer is read.
**Gives.** float64 (n,), higher is longer. Not scored: `empty_response` when the turns that count are blank,
`no_target_tokens` when the row has no assistant turn.
**Cost.** Tokenisation of the responses; no model pass.
**Departs.** The paper's rows have one turn; several are summed, or the first one is taken, as `turns` says.
White space around a response does not count.
**Relations.** Strategy `longest` takes the top of it; ties go by a seeded hash of the row. Comparisons
that rank by `unit="chars"` choose other rows: a response of few long words is long in characters only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.status import code
from tamis.representations._context import Context
from tamis.scores._context import Scored

if TYPE_CHECKING:
    from tamis.pools.pool import Message

UNITS = ("tokens", "chars", "words")
TURNS = ("all", "first")


@dataclass(frozen=True)
class Config:
    """`unit` of the length: "tokens", "chars" or "words"; `turns` that count: "all" or "first"."""

    unit: str = "tokens"
    turns: str = "all"

    def __post_init__(self) -> None:
        for name, known in (("unit", UNITS), ("turns", TURNS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")


class LengthScorer:
    """Measures responses with `measure`: stripped texts → their lengths."""

    def __init__(
        self, config: Config, measure: Callable[[list[str]], Sequence[int]], tokenizer: str | None = None
    ) -> None:
        self.config = config
        self.recipe: dict[str, Any] = {"unit": config.unit, "turns": config.turns, "tokenizer": tokenizer}
        self.execution: dict[str, Any] = {}
        self._measure = measure

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Lengths of b rows; nothing is rendered, so `tokens` is −1 throughout."""
        values = np.full(len(conversations), np.nan)
        status = np.full(len(conversations), code("ok"), dtype=np.uint8)
        texts: list[str] = []
        rows: list[int] = []
        for row, messages in enumerate(conversations):
            answers = [message.content.strip() for message in messages if message.role == "assistant"]
            counted = answers if self.config.turns == "all" else answers[:1]
            if any(counted):
                texts += counted
                rows += [row] * len(counted)
            else:
                status[row] = code("empty_response" if answers else "no_target_tokens")
        lengths = np.array(self._measure(texts), dtype=np.float64)
        scored = status == code("ok")
        values[scored] = np.bincount(rows, weights=lengths, minlength=len(values))[scored]
        advance(int(lengths.sum()))
        return Scored(values, status, np.full(len(values), -1, dtype=np.int32))


def prepare(config: Config, context: Context) -> LengthScorer:
    """The scorer for `config`; raises RequestError when tokens are asked for and no model is named."""
    if config.unit == "chars":
        return LengthScorer(config, lambda texts: [len(text) for text in texts])
    if config.unit == "words":
        return LengthScorer(config, lambda texts: [len(text.split()) for text in texts])
    if context.model is None:
        raise RequestError(
            "length counts tokens of the model that will be trained, and no model was given: "
            "add --model PATH_OR_ID, or count without one: --set length.unit=chars"
        )
    from tamis.models.lm import load_model
    from tamis.models.render import Renderer, tokenizer_fingerprint

    tokenizer = load_model(context.model, tokenizer_only=True, remote_code=context.remote_code).tokenizer
    renderer = Renderer(tokenizer, template="none")

    def count(texts: list[str]) -> list[int]:
        # Half a surrogate pair has no UTF-8, which tokenizers need; one character for one.
        whole = [text.encode("utf-8", "replace").decode() for text in texts]
        return [len(ids) for ids in renderer.token_ids(whole, opening=False)]

    return LengthScorer(config, count, tokenizer_fingerprint(tokenizer))


METHOD = Method("length", prepare, Config, __doc__)
