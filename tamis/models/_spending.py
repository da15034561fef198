"""Calls, tokens and money of requests to a server, with limits that are kept before a request is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tamis.core.errors import RunError

if TYPE_CHECKING:
    from tamis.models.served import Reply

CHARACTERS_PER_TOKEN = 4.0
MESSAGE_TOKENS = 4  # of a chat template around each message


@dataclass(frozen=True)
class Prices:
    """US dollars of a million tokens."""

    input: float = 0.0
    output: float = 0.0

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """Price of some tokens."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


def estimated_tokens(body: Mapping[str, Any]) -> tuple[float, float]:
    """Tokens that a request will be charged, about: one for four ASCII characters or one other; and the most
    that it can be answered with."""
    text = "".join(message["content"] for message in body["messages"])
    plain = sum(character.isascii() for character in text)
    count = plain / CHARACTERS_PER_TOKEN + (len(text) - plain) + MESSAGE_TOKENS * len(body["messages"])
    return count, float(body["max_tokens"])


@dataclass(frozen=True)
class Begun:
    """A request under way: tokens as estimated, as expected of this server, and the most of the reply."""

    counted: float
    expected: float
    answered: float


@dataclass
class Spending:
    """What was spent, and the most that may be. Requests under way count with what they may come to, so that
    no limit is passed; a reply without token counts, and an attempt that may have been billed without one,
    count with their estimate (`uncounted`: how many)."""

    prices: Prices = field(default_factory=Prices)
    max_calls: int | None = None
    max_usd: float | None = None
    calls: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    uncounted: int = 0
    _open_usd: float = 0.0
    _seen: tuple[float, float] = (0.0, 0.0)

    @property
    def usd(self) -> float:
        """Money spent."""
        return self.prices.usd(self.input_tokens, self.output_tokens)

    def begin(self, body: Mapping[str, Any]) -> Begun | None:
        """Count a request that is about to be made; None while those under way must be waited for, lest
        `max_usd` be passed. Raises RunError at a limit."""
        counted, answered = estimated_tokens(body)
        estimate, actual = self._seen
        # Once the server has counted some requests, the estimate has learnt its tokenizer; till then, twice.
        expected = counted * (actual / estimate if estimate else 2.0)
        usd = self.prices.usd(expected, answered)
        if self.max_calls is not None and self.calls >= self.max_calls:
            raise RunError(
                f"max_calls: {self.calls:,} calls were made; what was answered is kept, and the same command "
                "asks the rest with as many again"
            )
        if self.max_usd is not None and self.usd + usd > self.max_usd:
            raise RunError(
                f"max_usd: {self.usd:.4f} US dollars of {self.max_usd:g} were spent, and another call may "
                "pass that; what was answered is kept, and the same command asks the rest with as much again"
            )
        if self.max_usd is not None and self.usd + self._open_usd + usd > self.max_usd:
            return None
        self.calls += 1
        self._open_usd += usd
        return Begun(counted, expected, answered)

    def end(self, begun: Begun, reply: Reply | None, billed: bool) -> None:
        """Settle a request: by the counts of its reply, by the estimate if it may have been `billed`."""
        self._open_usd -= self.prices.usd(begun.expected, begun.answered)
        if reply is not None and reply.input_tokens is not None and reply.output_tokens is not None:
            self.input_tokens += reply.input_tokens
            self.output_tokens += reply.output_tokens
            self._seen = self._seen[0] + begun.counted, self._seen[1] + reply.input_tokens
        elif reply is not None or billed:
            self.uncounted += 1
            self.input_tokens += begun.expected
            self.output_tokens += begun.answered

    def as_json(self) -> dict[str, float]:
        """Calls, tokens and money so far."""
        return {
            "calls": self.calls, "input_tokens": round(self.input_tokens), "uncounted": self.uncounted,
            "output_tokens": round(self.output_tokens), "usd": round(self.usd, 6),
        }  # fmt: skip
