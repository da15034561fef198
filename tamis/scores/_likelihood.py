"""Losses of a row's tokens in context, and of its response alone: what perplexity and IFD are made of.

Two things are stored. One pass in context gives the losses of all tokens but the first, so that it serves
every score: the mean over all of them and the mean over the response. A conversation of one exchange is the
same sequence for every rule of `turns`, and passes the model once: the losses under another rule than "first"
take such rows from what is stored under "first". The second thing, the direct pass, is made for IFD alone,
and goes on from the stored losses in context.

Context of a turn: everything before it, as the template writes it. "Directly" means after the assistant
header alone: BOS, the header that the template's generation prompt writes, and then the same token ids that
were scored in context, so that both means are over the same tokens. Where tokenizer and template put nothing
in front, EOS stands first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
COLUMNS = ("nll_all", "tokens_all", "nll_response", "tokens_response")
"""Of the pass in context: means in nats, float64 (b,), NaN where there is none; and the tokens they are over,
int32 (b,)."""
_BLANK_ROW_BYTES = 13  # value, status, tokens


@dataclass(frozen=True)
class _Turn:
    """A response to score: where it stands in its row."""

    row: int
    start: int
    stop: int


@dataclass
class Losses:
    """Rows on their way to a score. `read`, `flops`: tokens that passed the model, and what that took."""

    rendered: list[Rendered]
    turns: list[_Turn]
    status: np.ndarray
    reasons: dict[int, str]
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    read: int = 0
    flops: float = 0.0

    def add(self, name: str) -> np.ndarray:
        """A column of nothing yet."""
        count = len(self.rendered)
        self.columns[name] = (
            np.zeros(count, np.int32) if name.startswith("tokens") else np.full(count, np.nan)
        )
        return self.columns[name]

    def scored(self, values: np.ndarray) -> Scored:
        """The rows with their values, NaN where the status says that there is none."""
        values = np.where(self.status <= code("truncated"), values, np.nan)
        tokens = np.array([len(made.ids) for made in self.rendered], np.int32)
        return Scored(values, self.status, tokens, self.reasons, self.columns, self.read, self.flops)


class LikelihoodScorer:
    """Losses in context by `model`: see the module. `turns`: "first" exchange alone, "last", or "all"
    together."""

    columns = COLUMNS
    row_bytes = _BLANK_ROW_BYTES + 24  # of the stored arrays

    def __init__(self, method: str, context: Context, model: str | None, turns: str) -> None:
        self._path = model or context.model
        if self._path is None:
            raise RequestError(f"{method} needs a model: give --model PATH_OR_ID")
        self.context, self.turns = context, turns
        self._described = load_model(
            self._path, context.dtype, context.device, context.remote_code, tokenizer_only=True
        )
        self.renderer = Renderer(self._described.tokenizer, context.template, context.max_tokens)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Weights, text and turns; no device and no batching."""
        return {
            "stored_as": "likelihood",
            "model": self._described.fingerprint,
            "renderer": self.renderer.recipe,
            "model_dtype": self._described.dtype,
            "turns": self.turns,
        }

    @property
    def execution(self) -> dict[str, Any]:
        """Device and dtype."""
        return {"device": self._described.device, "dtype": self._described.dtype}

    @property
    def head_flops(self) -> float:
        """Operations of the LM head for a token whose loss is wanted."""
        return self._described.head_flops

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
        return _cut(messages, self.turns)

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each row, after truncation, that this pass reads and no stored one has; 0 for a row that
        is refused."""
        own = [self._cut(m) for m in conversations if not self._taken(m)]
        counts = iter(self.renderer.render_many(own))
        return [0 if self._taken(m) else len(next(counts).ids) for m in conversations]

    def _taken(self, messages: Sequence[Message]) -> bool:
        """Whether a row's losses are those of the rule "first"."""
        return self.turns != "first" and len(self._cut(messages)) == len(_cut(messages, "first"))

    # --- scores ----------------------------------------------------------------------------------------

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Losses in context of b rows. `values` is the mean response loss; `columns` has all of `COLUMNS`."""
        rows = self._rows(conversations)
        self._in_context(rows, list(range(len(conversations))), advance)
        return rows.scored(rows.columns["nll_response"])

    def further(
        self,
        conversations: Sequence[Sequence[Message]],
        before: Scored,
        advance: Callable[[int], None],
    ) -> Scored:
        """As `score`, the rows that the rule makes no difference to from `before`, those under "first"."""
        rows = self._rows(conversations)
        taken = np.array([self._taken(messages) for messages in conversations], bool)
        self._in_context(rows, np.flatnonzero(~taken).tolist(), advance)
        for name, column in before.columns.items():
            rows.columns[name][taken] = column[taken]
        rows.status[taken] = before.status[taken]
        for row in np.flatnonzero(taken).tolist():
            rows.reasons.pop(row, None)
            if row in before.reasons:
                rows.reasons[row] = before.reasons[row]
        return rows.scored(rows.columns["nll_response"])

    def _rows(self, conversations: Sequence[Sequence[Message]]) -> Losses:
        """Rows rendered, with what is to be scored of them."""
        cut = [self._cut(messages) for messages in conversations]
        rendered = self.renderer.render_many(cut)
        rows = Losses(rendered, [], np.zeros(len(rendered), np.uint8), {})
        for row, (messages, made) in enumerate(zip(cut, rendered, strict=True)):
            word, reason, found = self._responses(row, messages, made)
            rows.status[row] = code(word)
            rows.turns += found
            if reason:
                rows.reasons[row] = reason
        return rows

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
            whole = not made.truncated or made.mask[-1] or len(runs) == len(answers)
            answers, runs = answers[-1:], runs[-1:] if whole else []
        if not any(answer.strip() for answer in answers):
            return "empty_response", "", []
        if not runs:
            prompt = f"its prompt alone reaches --max-tokens {self.renderer.max_tokens}"
            return "too_long", prompt, []
        if len(runs) == len(answers):  # one run a turn, so those that say nothing can be left out
            runs = [run for run, answer in zip(runs, answers, strict=True) if answer.strip()]
        return "truncated" if made.truncated else "ok", "", runs

    def _in_context(self, rows: Losses, which: Sequence[int], advance: Callable[[int], None]) -> None:
        """Fill the columns of the rows `which`; the others stay without a number."""
        columns = {name: rows.add(name) for name in COLUMNS}
        wanted = {row: np.zeros(len(rows.rendered[row].ids) + 1, bool) for row in which}
        for turn in rows.turns:
            if turn.row in wanted:
                wanted[turn.row][turn.start + 1 : turn.stop + 1] = True
        asked = [row for row in which if wanted[row].any() or len(rows.rendered[row].ids) > 1]
        # A sequence begins with one more token where a response is the first thing said.
        ids = [
            np.concatenate([self._first, rows.rendered[row].ids])
            if wanted[row][1]
            else rows.rendered[row].ids
            for row in asked
        ]
        losses = self._losses(rows, ids, [np.arange(len(each)) > 0 for each in ids], advance)
        for k, (row, found) in enumerate(zip(asked, losses, strict=True)):
            own = found[wanted[row][-len(found) :]].astype(np.float64)
            columns["nll_all"][row] = found.mean(dtype=np.float64)
            columns["tokens_all"][row] = len(found)
            columns["tokens_response"][row] = len(own)
            columns["nll_response"][row] = own.mean() if len(own) else np.nan
            self._broken(rows, row, k, columns["nll_response"] if len(own) else columns["nll_all"])

    def _losses(
        self,
        rows: Losses,
        ids: Sequence[np.ndarray],
        wanted: Sequence[np.ndarray],
        advance: Callable[[int], None],
    ) -> list[np.ndarray]:
        found = self._engine.losses(ids, wanted, advance)
        lengths = [len(each) for each in ids]
        body = sum(length * self._described.forward_flops(length) for length in lengths)
        rows.read += sum(lengths)
        rows.flops += body + self.head_flops * sum(map(len, found))
        return found

    def _broken(self, rows: Losses, row: int, sequence: int, means: np.ndarray) -> None:
        """Give a row without a finite mean its status; a number is never made up for it."""
        if rows.status[row] > code("truncated") or np.isfinite(means[row]):
            return
        failed = self._engine.failed.get(sequence)
        rows.status[row] = code("failed" if failed else "non_finite")
        rows.reasons[row] = failed or "a loss is not a finite number"


def _cut(messages: Sequence[Message], turns: str) -> Sequence[Message]:
    """The conversation up to the turn that counts, or all of it."""
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if not answers or turns == "all":
        return messages
    return messages[: (answers[0] if turns == "first" else answers[-1]) + 1]


def before(config: Any) -> tuple[str, dict[str, Any]] | None:
    """The score whose stored losses those in context under `config.turns` take rows from."""
    return None if config.turns == "first" else ("perplexity", {"turns": "first", "model": config.model})


@dataclass(frozen=True)
class _Said:
    role: str
    content: str
