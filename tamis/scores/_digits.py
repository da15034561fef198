"""Scores by models that were tuned to answer with a digit from 1 to 6: one forward pass for each exchange.

Nothing is generated: the score is the expectation over the six digits after the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.digest import digest
from tamis.core.errors import RequestError
from tamis.core.status import code
from tamis.models.lm import load_model, shared_model
from tamis.models.render import Renderer, tokenizer_fingerprint
from tamis.representations._context import Context
from tamis.scores._context import Scored
from tamis.scores._digit_prompts import Exchange, digit_tokens, exchanges, parsed, prompt_ids, prompt_of

if TYPE_CHECKING:
    from tamis.models.losses import LossEngine
    from tamis.pools.pool import Message

TURNS = ("sum", "mean", "first")
DIGITS = np.arange(1, 7)


def check_turns(turns: str) -> None:
    """Raise ValueError for another word than those of `TURNS`."""
    if turns not in TURNS:
        raise ValueError(f"turns={turns!r}: expected one of {', '.join(TURNS)}")


def expected_digit(logits: np.ndarray) -> np.ndarray:
    """sum_j j softmax_j (b,) float64 of the logits (b, 6) of the digits 1 to 6.

    A digit at minus infinity has no share. NaN where one is NaN or infinite, or none has a share.
    """
    given = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        weights = np.exp(given - given.max(axis=1, keepdims=True))
        found: np.ndarray = weights @ DIGITS / weights.sum(axis=1)
    return found


class Asker:
    """One scorer model with its prompt, for `aspect` "quality" or "complexity"."""

    def __init__(self, aspect: str, model: str | None, prompt: str, context: Context, example: str) -> None:
        if not model:
            raise RequestError(
                f"{aspect} needs a scorer, a model that was tuned to answer with a digit from 1 to 6: "
                f"give --set {example}=PATH_OR_ID"
            )
        self.aspect, self.path, self.context = aspect, model, context
        self.described = load_model(
            model, context.dtype, context.device, context.remote_code, tokenizer_only=True
        )
        self.renderer = Renderer(self.described.tokenizer, "none", context.max_tokens)
        self.digits = digit_tokens(self.described.tokenizer, model)
        text = prompt_of(prompt, aspect, model)
        self.prompt = parsed(text, aspect)
        self._text = text

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Weights, tokenizer, prompt, digits and length."""
        return {
            "model": self.described.fingerprint,
            "model_dtype": self.described.dtype,
            "tokenizer": tokenizer_fingerprint(self.described.tokenizer),
            "digits": self.digits.tolist(),
            "prompt": digest(self._text),
            "max_tokens": self.context.max_tokens,
        }

    @cached_property
    def engine(self) -> LossEngine:
        """The loaded model."""
        from tamis.models.losses import LossEngine

        context = self.context
        lm = shared_model(self.path, context.dtype, context.device, context.remote_code)
        lm.check_positions(context.max_tokens)
        return LossEngine(lm, context.batch_tokens)

    def count(self, asked: Sequence[Exchange]) -> int:
        """Tokens of the prompts, after truncation."""
        ids = self.renderer.token_ids([self.prompt.text(exchange)[0] for exchange in asked])
        return sum(min(len(each), self.context.max_tokens) for each in ids)

    def ask(
        self, asked: Sequence[Exchange], advance: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
        """Expected digits (b,) float64, NaN where there is none; status codes (b,); tokens (b,); reasons."""
        ids, shortened = prompt_ids(self.renderer, self.prompt, asked, self.context.max_tokens)
        values, tokens = np.full(len(asked), np.nan), np.zeros(len(asked), np.int64)
        status = np.where(shortened, code("truncated"), code("ok")).astype(np.uint8)
        rows = [i for i, each in enumerate(ids) if each is not None]
        reasons: dict[int, str] = {}
        for i in set(range(len(asked))).difference(rows):
            status[i] = code("too_long")
            reasons[i] = f"{self.aspect}: nothing of it fits beside its prompt into {self.context.max_tokens}"
        if not rows:
            return values, status, tokens, reasons
        sequences = [each for each in ids if each is not None]
        tokens[rows] = [len(each) for each in sequences]
        values[rows] = expected_digit(self.engine.next_logits(sequences, self.digits, advance))
        for k, i in enumerate(rows):
            if not np.isfinite(values[i]):
                failed = self.engine.failed.get(k)
                status[i] = code("failed" if failed else "non_finite")
                reasons[i] = f"{self.aspect}: {failed or 'a logit is not a finite number'}"
        return values, status, tokens, reasons


class DigitScorer:
    """Scores rows by one or two `askers`; `turns` as in `TURNS`. With two, what counts is their product, turn
    by turn. Sums over the turns, the first turn and their number are stored; `turns` is read from those."""

    def __init__(self, askers: Sequence[Asker], turns: str) -> None:
        self.askers, self.turns = tuple(askers), turns
        self._key = "product" if len(self.askers) > 1 else self.askers[0].aspect

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The askers, and whether all turns were asked about."""
        return {
            "stored_as": "digits",
            **{asker.aspect: asker.recipe for asker in self.askers},
            "asked": "first" if self.turns == "first" else "all",
        }

    @property
    def execution(self) -> dict[str, Any]:
        """Device, dtype and the scorers."""
        first = self.askers[0].described
        models = {asker.aspect: asker.path for asker in self.askers}
        return {"device": first.device, "dtype": first.dtype, "scorers": models}

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of the prompts of each row, of all scorers, after truncation."""
        counts = []
        for messages in conversations:
            asked = exchanges(messages)[: 1 if self.turns == "first" else None]
            counts.append(sum(asker.count(asked) for asker in self.askers))
        return counts

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Rows by their exchanges. A row with an exchange that cannot be scored is not scored."""
        count = len(conversations)
        status = np.zeros(count, np.uint8)
        asked: list[Exchange] = []
        rows: list[int] = []
        for row, messages in enumerate(conversations):
            found = exchanges(messages)
            found = found[:1] if self.turns == "first" else found
            asked += found
            rows += [row] * len(found)
            if not found:
                answered = any(m.role == "assistant" and m.content.strip() for m in messages)
                spoken = any(m.role == "assistant" for m in messages)
                status[row] = code("empty_response" if spoken and not answered else "no_target_tokens")
        of = np.array(rows, np.int64)
        begins = np.unique(of, return_index=True)[1]
        columns: dict[str, np.ndarray] = {"turns": np.bincount(of, minlength=count).astype(np.int32)}
        product, tokens, flops = np.ones(len(asked)), np.zeros(count, np.int64), 0.0
        reasons: dict[int, str] = {}
        for asker in self.askers:
            values, found_status, read, why = asker.ask(asked, advance)
            columns |= _by_row(asker.aspect, values, of, begins, count)
            product = product * values
            np.maximum.at(status, of, found_status)
            flops += sum(n * asker.described.forward_flops(n) for n in read.tolist())
            tokens += np.bincount(of, weights=read, minlength=count).astype(np.int64)
            for i, reason in why.items():
                reasons.setdefault(int(of[i]), reason)
        if len(self.askers) > 1:
            columns |= _by_row("product", product, of, begins, count)
        values = np.where(status <= code("truncated"), columns[self._key], np.nan)
        return Scored(values, status, tokens.astype(np.int32), reasons, columns, flops=flops)

    def derive(self, stored: Mapping[str, np.ndarray], status: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) by `turns`, and statuses (n,)."""
        return derived(self._key, self.turns, stored, status)


def derived(
    key: str, turns: str, stored: Mapping[str, np.ndarray], status: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and statuses (n,) from the sums, first turns and numbers of turns that are stored."""
    if turns == "first":
        values = stored[f"{key}_first"]
    else:
        values = stored[key] / np.maximum(stored["turns"], 1) if turns == "mean" else stored[key]
    return np.where(status <= code("truncated"), values, np.nan), status


def _by_row(
    name: str, values: np.ndarray, of: np.ndarray, begins: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """Sum over the turns of each row and its first turn, (count,) float64, NaN without a turn."""
    total, first = np.full(count, np.nan), np.full(count, np.nan)
    if len(of):
        total[of[begins]] = np.add.reduceat(values, begins)
        first[of[begins]] = values[begins]
    return {name: total, f"{name}_first": first}
