"""Losses of a row's response, given its prompt and given nothing: what perplexity and IFD are made of.

One run serves every score that is derived from it. Context of a turn: everything before it, as the template
writes it. "Directly" means after the assistant header alone: BOS, the header that the template's generation
prompt writes, and then the same token ids that were scored in context, so that both means are over the same
tokens. Where tokenizer and template put nothing in front, EOS stands first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.status import code
from tamis.models.lm import load_model, shared_model
from tamis.models.render import Rendered, Renderer
from tamis.models.spans import Refused
from tamis.representations._context import Context
from tamis.scores._context import Scored

if TYPE_CHECKING:
    from tamis.models.losses import LossEngine
    from tamis.pools.pool import Message

TURNS = ("first", "last", "all")
COLUMNS = ("nll_all", "tokens_all", "nll_response", "tokens_response", "nll_direct")
"""Means in nats, float64 (b,), NaN where there is none; and the tokens they are over, int32 (b,)."""


@dataclass(frozen=True)
class _Turn:
    """A response to score: where it stands in its row."""

    row: int
    start: int
    stop: int


class LikelihoodScorer:
    """Scores rows by `model`: see the module. `whole`: also the mean over all tokens but the first, prompt
    included. `direct`: also the direct losses. `turns`: "first" exchange alone, "last", or "all" together."""

    def __init__(
        self, method: str, context: Context, model: str | None, turns: str, whole: bool, direct: bool
    ) -> None:
        self._path = model or context.model
        if self._path is None:
            raise RequestError(f"{method} needs a model: give --model PATH_OR_ID")
        self.context, self.turns, self.whole, self.direct = context, turns, whole, direct
        self._described = load_model(
            self._path, context.dtype, context.device, context.remote_code, tokenizer_only=True
        )
        self.renderer = Renderer(self._described.tokenizer, context.template, context.max_tokens)
        self.flops_per_token = 0.0

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Weights, text, turns and which losses; no device and no batching."""
        return {
            "stored_as": "likelihood",
            "model": self._described.fingerprint,
            "renderer": self.renderer.recipe,
            "model_dtype": self._described.dtype,
            "turns": self.turns,
            "whole": self.whole,
            "direct": self.direct,
        }

    @property
    def execution(self) -> dict[str, Any]:
        """Device and dtype."""
        return {"device": self._described.device, "dtype": self._described.dtype}

    @cached_property
    def _engine(self) -> LossEngine:
        from tamis.models.losses import LossEngine

        context = self.context
        lm = shared_model(str(self._path), context.dtype, context.device, context.remote_code)
        lm.check_positions(context.max_tokens)
        return LossEngine(lm, context.batch_tokens)

    # --- text ------------------------------------------------------------------------------------------

    @cached_property
    def opening(self) -> np.ndarray:
        """Ids (k,) int32, k >= 1, that stand before a response that is scored directly."""
        try:
            before = self.renderer.text([_Said("user", "x")])
            after = self.renderer.text([_Said("user", "x")], generation=True)
        except Refused:
            before = after = ""
        header = after[len(before) :].lstrip() if after.startswith(before) else ""
        ids = self.renderer.token_ids([header], opening=False)[0]
        found = np.concatenate([self.renderer.bos_ids, ids])
        return found if len(found) else self._first

    @cached_property
    def _first(self) -> np.ndarray:
        """The token that stands first where a tokenizer adds none: BOS, else EOS."""
        tokenizer = self.renderer.tokenizer
        token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if token is None:
            raise RequestError(f"{self._path}: its tokenizer has neither BOS nor EOS to begin a text with")
        return np.array([token], np.int32)

    def _cut(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation up to the turn that counts, or all of it."""
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not answers or self.turns == "all":
            return messages
        return messages[: (answers[0] if self.turns == "first" else answers[-1]) + 1]

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each row after truncation, of the turns that count; 0 for a row that is refused."""
        return [len(row.ids) for row in self.renderer.render_many([self._cut(m) for m in conversations])]

    # --- scores ----------------------------------------------------------------------------------------

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Losses of b rows. `values` is the mean response loss; `columns` has all of `COLUMNS`."""
        cut = [self._cut(messages) for messages in conversations]
        rendered = self.renderer.render_many(cut)
        count = len(rendered)
        status = np.zeros(count, np.uint8)
        reasons: dict[int, str] = {}
        turns: list[_Turn] = []
        for row, (messages, made) in enumerate(zip(cut, rendered, strict=True)):
            word, reason, found = self._responses(row, messages, made)
            status[row] = code(word)
            turns += found
            if reason:
                reasons[row] = reason
        columns: dict[str, np.ndarray] = {
            name: np.zeros(count, np.int32) if name.startswith("tokens") else np.full(count, np.nan)
            for name in COLUMNS
        }
        self._in_context(rendered, turns, status, reasons, columns, advance)
        if self.direct:
            self._directly(rendered, turns, status, reasons, columns, advance)
        values = columns["nll_response"].copy()
        values[status > code("truncated")] = np.nan
        tokens = np.array([len(made.ids) for made in rendered], np.int32)
        return Scored(values, status, tokens, reasons, columns)

    def _responses(
        self, row: int, messages: Sequence[Message], made: Rendered
    ) -> tuple[str, str, list[_Turn]]:
        """Status, reason and the turns to score of one row."""
        if made.status == "refused":
            return "refused", made.reason, []
        answers = [message.content for message in messages if message.role == "assistant"]
        if not answers:
            return "no_target_tokens", "", []
        edges = np.flatnonzero(np.diff(np.concatenate([[0], made.mask.view(np.int8), [0]])))
        runs = [_Turn(row, int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        if self.turns != "all":
            answers = answers[-1:]
            runs = runs[-1:] if not made.truncated or made.mask[-1] else []
        if not any(answer.strip() for answer in answers):
            return "empty_response", "", []
        if not runs:
            prompt = f"its prompt alone reaches --max-tokens {self.renderer.max_tokens}"
            return "too_long", prompt, []
        if len(runs) == len(answers):  # one run a turn, so those that say nothing can be left out
            runs = [run for run, answer in zip(runs, answers, strict=True) if answer.strip()]
        return "truncated" if made.truncated else "ok", "", runs

    def _in_context(
        self,
        rendered: Sequence[Rendered],
        turns: Sequence[_Turn],
        status: np.ndarray,
        reasons: dict[int, str],
        columns: Mapping[str, np.ndarray],
        advance: Callable[[int], None],
    ) -> None:
        wanted = [np.zeros(len(made.ids) + 1, bool) for made in rendered]
        for turn in turns:
            wanted[turn.row][turn.start + 1 : turn.stop + 1] = True
        spoken = [self.whole and len(made.ids) > 1 for made in rendered]
        rows = [row for row, mask in enumerate(wanted) if mask.any() or spoken[row]]
        # A sequence begins with one more token where a response is the first thing said.
        sequences, scored = [], []
        for row in rows:
            response = wanted[row]
            first = response[1]
            ids = np.concatenate([self._first, rendered[row].ids]) if first else rendered[row].ids
            mask = response if first else response[1:]
            if self.whole:
                mask = np.arange(len(ids)) > 0
            sequences.append(ids)
            scored.append(mask)
        losses = self._engine.losses(sequences, scored, advance)
        for k, (row, found) in enumerate(zip(rows, losses, strict=True)):
            response = wanted[row][-len(sequences[k]) :]
            own = found[response[scored[k]]].astype(np.float64)
            if self.whole:
                columns["nll_all"][row] = found.mean(dtype=np.float64)
                columns["tokens_all"][row] = len(found)
            columns["tokens_response"][row] = len(own)
            columns["nll_response"][row] = own.mean() if len(own) else np.nan
            self._broken(row, k, columns["nll_response"] if len(own) else columns["nll_all"], status, reasons)

    def _directly(
        self,
        rendered: Sequence[Rendered],
        turns: Sequence[_Turn],
        status: np.ndarray,
        reasons: dict[int, str],
        columns: Mapping[str, np.ndarray],
        advance: Callable[[int], None],
    ) -> None:
        head = len(self.opening)
        sequences = [np.concatenate([self.opening, rendered[t.row].ids[t.start : t.stop]]) for t in turns]
        losses = self._engine.losses(sequences, [np.arange(len(ids)) >= head for ids in sequences], advance)
        total = np.zeros(len(rendered))
        for k, (turn, found) in enumerate(zip(turns, losses, strict=True)):
            total[turn.row] += found.sum(dtype=np.float64)
            columns["nll_direct"][turn.row] = total[turn.row] / columns["tokens_response"][turn.row]
            self._broken(turn.row, k, columns["nll_direct"], status, reasons)

    def _broken(
        self, row: int, sequence: int, means: np.ndarray, status: np.ndarray, reasons: dict[int, str]
    ) -> None:
        """Give a row without a finite mean its status; a number is never made up for it."""
        if status[row] > code("truncated") or np.isfinite(means[row]):
            return
        failed = self._engine.failed.get(sequence)
        status[row] = code("failed" if failed else "non_finite")
        reasons[row] = failed or "a loss is not a finite number"


@dataclass(frozen=True)
class _Said:
    role: str
    content: str
