"""What a score of the rows alone gives back for a run of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from tamis.pools.pool import Message, Pool


@dataclass(frozen=True)
class Scored:
    """A run of b rows, scored: values (b,) float64, NaN where a row has no score; status codes (b,) uint8;
    rendered tokens (b,) int32, −1 where nothing was rendered; the reason of every row that was refused or
    failed, by its number in the run; further columns (b,) that are stored beside the values; and, for the
    ledger, the tokens that were read for it (None: all of `tokens`) and the operations that this took."""

    values: np.ndarray
    status: np.ndarray
    tokens: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    read: int | None = None
    flops: float = 0.0

    @property
    def tokens_read(self) -> int:
        """Tokens that were read for these rows now."""
        return int(np.maximum(self.tokens, 0).sum(dtype=np.int64)) if self.read is None else self.read


class Scorer(Protocol):
    """A configured score, ready for rows.

    A scorer may have `derive(columns, status)`, which gives (values (n,), status (n,)) from what is stored;
    methods that derive from the same columns name those in their recipe as `stored_as` (`_likelihood.py`).
    """

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Everything that determines the numbers; no device, no batch size."""

    @property
    def execution(self) -> Mapping[str, Any]:
        """How it runs here; outside the identity."""

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Score rows; `advance(tokens)` is called as work is done."""


@runtime_checkable
class OfPool(Protocol):
    """A score that sees the pool before a row is scored: it depends on the other rows, or says what it will
    cost."""

    def fit(self, pool: Pool, quiet: bool = True) -> None:
        """Take from the pool, or from the store, what the score of every row needs."""

    def rows(self, start: int, stop: int) -> Scored:
        """Score the rows [start, stop) of that pool, which are one of its shards."""


@runtime_checkable
class Further(Protocol):
    """A score that goes on from the stored numbers of another (`Method.before`), row by row."""

    def further(
        self, conversations: Sequence[Sequence[Message]], before: Scored, advance: Callable[[int], None]
    ) -> Scored:
        """Score rows of which the score before has given `before`."""
