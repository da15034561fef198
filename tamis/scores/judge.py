"""A language model's rating of a row's response, from 0 to 5, by any OpenAI-compatible server.

**Paper.** Chen et al. 2024, AlpaGasus: Training A Better Alpaca with Fewer Data, arXiv 2307.08701.
**Definition.** s_j = the number on the first line of the judge's reply to (instruction, response) of the
row's first exchange, rated on one `dimension` by one `rubric`; temperature 0, top_p 1, 256 new tokens. A
reply without such a number is asked for once more with a reminder of the form. Halves and other decimals
count.
**Needs.** `url` of the server (up to /v1) and `model`, its name there; the key, if any, in the environment
variable `key_env`. Extra `judge`. Rows with an assistant turn.
**Gives.** float64 (n,) in [0, 5], higher is better; most are ties. Not scored: `empty_response`,
`no_target_tokens`, `parse_error` (no number in two replies), `refused`, `too_long` (for the judge), `failed`
(every attempt failed; `failures="stop"` stops the run instead). Columns: class of the reply, times asked.
**Cost.** One call a row, two where the first reply has no number; about 220 tokens more than the row, and up
to 256 of reply. Replies are kept: what was answered is never asked again.
**Departs.** The released scorer gives -1, or half the points, to replies of another form (`_judge_parse.py`
has its readers). Its prompt has no marks around the row's text; here a row cannot address the judge.
Instruction and input are one text, as the pool has them; a system prompt is shown.
**Relations.** Strategy `alpagasus` takes the top of it; with `top-k.least=4.5` the published threshold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.digest import digest
from tamis.core.errors import RequestError, RunError
from tamis.core.extras import need
from tamis.core.method import Method
from tamis.core.status import code
from tamis.models._replies import Replies
from tamis.models._spending import Prices, Spending
from tamis.models.served import Client, Failure, Reply, Server, check_key
from tamis.representations._context import Context
from tamis.scores._context import Scored
from tamis.scores._judge_parse import CLASSES, Verdict, read_reply
from tamis.scores._judge_prompt import RUBRICS, body_of, first_exchange, prompt_digest, question

if TYPE_CHECKING:
    from tamis.pools.pool import Message, Pool
    from tamis.scores._judge_prompt import Exchange

KEY_ENV = "TAMIS_JUDGE_KEY"
RUNNING = (
    "url", "key_env", "concurrency", "per_minute", "deadline_s", "retries", "pause_s", "max_calls", "max_usd",
    "usd_per_million_input", "usd_per_million_output", "failures",
)  # fmt: skip
"""Parameters that say how and where it runs, and are in no recipe."""

UNRATED = 0.05  # share of rows from which it is said
SAMPLE = 2048  # rows that an estimate reads
_EXCERPT = 120


@dataclass(frozen=True)
class Config:
    """`model` and `url` of the server; `dimension` rated, and its `rubric` in words (known for accuracy and
    helpfulness). Sampling: `temperature`, `top_p`, `max_new_tokens`. Running: `key_env`, `concurrency`,
    `per_minute` (requests), `deadline_s` of one attempt, `retries`, `pause_s` before the first of them,
    doubling; `max_calls` and `max_usd` of one command, with `usd_per_million_input` and
    `usd_per_million_output`; `failures`: "status" or "stop"."""

    model: str = ""
    url: str = ""
    dimension: str = "accuracy"
    rubric: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    key_env: str = KEY_ENV
    concurrency: int = 8
    per_minute: float | None = None
    deadline_s: float = 120.0
    retries: int = 5
    pause_s: float = 1.0
    max_calls: int | None = None
    max_usd: float | None = None
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    failures: str = "status"

    def __post_init__(self) -> None:
        for name in ("model", "url", "dimension", "rubric", "key_env"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a text; quote it")
        if not self.rubric and self.dimension not in RUBRICS:
            raise ValueError(
                f"dimension={self.dimension!r}: say what it is in rubric=…; known: {', '.join(RUBRICS)}"
            )
        if self.failures not in ("status", "stop"):
            raise ValueError(f"failures={self.failures!r}: expected 'status' or 'stop'")
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("expected max_new_tokens >= 1, temperature >= 0 and top_p above 0, up to 1")
        for name in ("max_calls", "max_usd", "usd_per_million_input", "usd_per_million_output"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        priced = self.usd_per_million_input or self.usd_per_million_output
        if self.max_usd is not None and not priced:
            raise ValueError("max_usd needs prices: usd_per_million_input and usd_per_million_output")
        if self.url:
            self.server()

    def server(self) -> Server:
        """Where and how requests are made."""
        return Server(
            self.url,
            self.key_env,
            self.concurrency,
            self.per_minute,
            self.deadline_s,
            self.retries,
            self.pause_s,
        )

    def spending(self) -> Spending:
        """The limits of one command."""
        prices = Prices(self.usd_per_million_input, self.usd_per_million_output)
        return Spending(prices, self.max_calls, self.max_usd)


class _Row:
    """One row of a run: its exchange, and how far the asking is."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.asked = 0
        self.tokens = -1
        self.usage = [0, 0]
        self.verdict: Verdict | None = None
        self.status, self.reason = "", ""


class JudgeScorer:
    """Asks a judge about rows, as far as the store has no reply."""

    def __init__(self, config: Config, context: Context) -> None:
        if not config.model or not config.url:
            raise RequestError(
                "judge needs the server and the model's name there: give --set judge.url=http://HOST:PORT/v1 "
                "--set judge.model=NAME (docs/judge.md says how to run one)"
            )
        need("httpx2", extra="judge")
        check_key(config.server(), asked=config.key_env != KEY_ENV)
        self.config = config
        self.rubric = config.rubric or RUBRICS[config.dimension]
        self.sampling = {
            "temperature": float(config.temperature), "top_p": float(config.top_p),
            "max_tokens": config.max_new_tokens,
        }  # fmt: skip
        self.recipe: dict[str, Any] = {
            "judge": config.model,
            "prompt": prompt_digest(config.dimension, self.rubric),
            "dimension": config.dimension,
            "rubric": self.rubric,
            "sampling": self.sampling,
        }
        self.replies = Replies(context.store, digest(self.recipe))
        self.spending = config.spending()
        self.execution: dict[str, Any] = {}
        self._served: set[str] = set()

    @cached_property
    def _client(self) -> Client:
        return Client(self.config.server(), self.spending)

    # --- before the first call -------------------------------------------------------------------------

    def fit(self, pool: Pool, quiet: bool = True) -> None:
        """Say what judging `pool` will come to, before the first call."""
        self._pool = pool
        positions = np.unique(np.linspace(0, len(pool) - 1, min(len(pool), SAMPLE)).astype(np.int64))
        if quiet or not len(positions):
            return
        talks = list(pool.messages_at(positions))
        print(f"judge: {told(self.estimate(talks, len(pool) / len(positions)))}", file=sys.stderr)

    def rows(self, start: int, stop: int) -> Scored:
        """Rate the rows [start, stop) of that pool."""
        return self.score(self._pool.conversations(start, stop), lambda tokens: None)

    def estimate(self, conversations: Sequence[Sequence[Message]], scale: float = 1.0) -> dict[str, float]:
        """Calls, tokens and money that these rows will take, times `scale`: for one call a row, replies of
        full length and no retries; rows whose replies are kept take none. `most_calls`: with every row asked
        twice."""
        from tamis.models._spending import estimated_tokens

        self.replies.refresh()
        calls = inputs = 0.0
        for messages in conversations:
            exchange = first_exchange(messages)
            if exchange is None or not exchange.response.strip():
                continue
            body = self._body(exchange, again=False)
            if self.replies.get(digest(body)) is None:
                calls += 1
                inputs += estimated_tokens(body)[0]
        calls, inputs = calls * scale, inputs * scale
        outputs = calls * self.config.max_new_tokens
        usd = self.spending.prices.usd(inputs, outputs)
        return {
            "calls": calls, "input_tokens": inputs, "output_tokens": outputs, "usd": usd,
            "most_calls": 2 * calls, "most_usd": 2 * usd, "kept": float(len(self.replies)),
        }  # fmt: skip

    # --- asking ----------------------------------------------------------------------------------------

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Ratings of b rows; `tokens` are those that the server counted for the row, -1 where it did not."""
        count = len(conversations)
        words = ["ok"] * count
        rows: dict[int, _Row] = {}
        later = 0
        for number, messages in enumerate(conversations):
            exchange = first_exchange(messages)
            if exchange is None:
                words[number] = "no_target_tokens"
            elif not exchange.response.strip():
                words[number] = "empty_response"
            else:
                rows[number] = _Row(exchange)
                later += exchange.later
        before = self.spending.calls, self.spending.usd
        try:
            self._ask(list(rows.values()), advance)
        finally:
            self.replies.close()
            self._book(before, list(rows.values()), later)
        return self._scored(count, words, rows)

    def _body(self, exchange: Exchange, again: bool) -> dict[str, Any]:
        messages = question(exchange, self.config.dimension, self.rubric, again)
        return body_of(messages, self.config.model, self.sampling)

    def _ask(self, rows: Sequence[_Row], advance: Callable[[int], None]) -> None:
        """Settle every row: from kept replies first, then by asking; equal requests are made once."""
        self.replies.refresh()
        waiting: dict[str, list[_Row]] = {}
        bodies: list[dict[str, Any]] = []
        keys: list[str] = []
        for row in rows:
            body = self._next(row)
            if body is None:
                continue
            key = digest(body)
            if key not in waiting:
                bodies.append(body)
                keys.append(key)
            waiting.setdefault(key, []).append(row)

        def got(number: int, answer: Reply | Failure) -> dict[str, Any] | None:
            asked = waiting[keys[number]]
            if isinstance(answer, Failure):
                for row in asked:
                    row.status, row.reason = answer.status, answer.reason
                    row.verdict = Verdict("refusal" if answer.status == "refused" else "no_reply")
                return None
            first = asked[0]
            self.replies.add(digest(self._body(first.exchange, again=first.asked > 0)), vars(answer))
            following = [self._next(row) for row in asked]  # all take the reply, and need the same next
            advance(max(first.tokens, 0))
            return following[0]

        if bodies:
            self._client.ask(bodies, got)
        if self.config.failures == "stop":
            self._check_failures(rows)

    def _next(self, row: _Row) -> dict[str, Any] | None:
        """Read the kept replies to a row; the request that it needs next, None when it is settled."""
        while row.verdict is None or (row.verdict.score is None and row.asked < 2 and not row.status):
            body = self._body(row.exchange, again=row.asked > 0)
            kept = self.replies.get(digest(body))
            if kept is None:
                return body
            self._take(row, Reply(**{name: value for name, value in kept.items() if name != "key"}))
        return None

    def _take(self, row: _Row, reply: Reply) -> None:
        row.asked += 1
        self._served.add(reply.model)
        if reply.input_tokens is not None and reply.output_tokens is not None:
            row.usage[0] += reply.input_tokens
            row.usage[1] += reply.output_tokens
            row.tokens = sum(row.usage)
        if reply.refusal or reply.finish == "content_filter":
            row.verdict, row.status = Verdict("refusal"), "refused"
            row.reason = _shown(reply.refusal) or "the server's content filter"
            return
        verdict = read_reply(reply.text, cut=reply.finish == "length")
        quoted = " ".join(verdict.quote.lower().split())
        if quoted and quoted in " ".join(_texts(row.exchange).lower().split()):
            verdict = Verdict("no_number")  # it may be the row's words, repeated
        row.verdict = verdict
        if verdict.score is None:
            row.reason = f"{verdict.word}: {_shown(reply.text)!r}"

    def _check_failures(self, rows: Sequence[_Row]) -> None:
        failed = [row for row in rows if row.status == "failed"]
        if failed:
            raise RunError(
                f"judge: {len(failed)} rows have no reply after all attempts, the first: {failed[0].reason}. "
                "What was answered is kept; the same command asks these again, and judge.failures=status "
                "goes on without them"
            )

    # --- what came of it -------------------------------------------------------------------------------

    def _scored(self, count: int, words: list[str], rows: Mapping[int, _Row]) -> Scored:
        values = np.full(count, np.nan)
        tokens = np.full(count, -1, np.int32)
        columns = {"reply": np.zeros(count, np.uint8), "asked": np.zeros(count, np.uint8)}
        reasons: dict[int, str] = {}
        for number, row in rows.items():
            assert row.verdict is not None
            columns["reply"][number] = CLASSES.index(row.verdict.word)
            columns["asked"][number] = row.asked
            tokens[number] = row.tokens
            if row.verdict.score is not None:
                values[number] = row.verdict.score
                continue
            unread = "refused" if row.verdict.word == "refusal" else "parse_error"
            words[number] = row.status or unread
            reasons[number] = row.reason
        status = np.array([code(word) for word in words], np.uint8)
        return Scored(values, status, tokens, reasons, columns)

    def _book(self, before: tuple[int, float], rows: Sequence[_Row], later: int) -> None:
        """For the ledger: the replies behind the last run of rows, whenever they were made, and what was
        spent on calls just now, lost ones included."""
        read, written = (sum(row.usage[side] for row in rows) for side in (0, 1))
        self.execution = {
            "calls": sum(row.asked for row in rows),
            "usd": round(self.spending.prices.usd(read, written), 6),
            "new_calls": self.spending.calls - before[0],
            "new_usd": round(self.spending.usd - before[1], 6),
            "later_turns_unjudged": later,
            "served_as": sorted(self._served),  # more than one: the server has changed what answers
        }

    def warnings_of(self, values: np.ndarray) -> list[str]:
        """Said of stored ratings (n,) when many are missing."""
        missing = int(np.isnan(values).sum())
        if missing <= UNRATED * len(values):
            return []
        return [
            f"{missing:,} of {len(values):,} rows have no rating: see their statuses, and the judge's replies"
        ]

    def facts(self, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Of a stored score: rows by class of reply; and what this command spent."""
        return {"replies": reply_counts(columns), "spent": self.spending.as_json()}


def reply_counts(columns: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Rows by the class of the reply that decided, and `asked_again`, from the columns of a stored score."""
    counts = np.bincount(columns["reply"], minlength=len(CLASSES))
    found = {word: int(counts[i]) for i, word in enumerate(CLASSES) if counts[i]}
    return {**found, "asked_again": int((np.asarray(columns["asked"]) > 1).sum())}


def told(estimate: Mapping[str, float]) -> str:
    """An estimate in words."""
    found = (
        f"about {estimate['calls']:,.0f} calls with {estimate['input_tokens']:,.0f} tokens, up to "
        f"{estimate['output_tokens']:,.0f} tokens of replies"
    )
    if estimate["usd"]:
        found += f", up to {estimate['usd']:,.2f} US dollars"
    return f"{found}; second asks and retries come on top; {estimate['kept']:,.0f} replies are kept already"


def _texts(exchange: Exchange) -> str:
    return "\n".join((exchange.system, exchange.instruction, exchange.response))


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]} …"


def prepare(config: Config, context: Context) -> JudgeScorer:
    """The scorer for `config`; no request is made."""
    return JudgeScorer(config, context)


METHOD = Method("judge", prepare, Config, __doc__ or "", needs=("server",), paths=RUNNING)
