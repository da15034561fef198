"""What a representation is given besides its own parameters, and what it gives back for a run of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from tamis.pools.pool import Message, Pool


@dataclass(frozen=True)
class Context:
    """Settings of a run that every signal shares; `device`, `batch_tokens` and
    `store` are never in a recipe."""

    model: str | None = None
    template: str = "auto"
    max_tokens: int = 2048
    dtype: str = "auto"
    device: str = "auto"
    role: str = "pool"  # "pool" or "query": which side of T§1.4 the rows are rendered as
    remote_code: bool = False
    batch_tokens: int | None = None
    compatible: bool = False
    store: str | Path = ".tamis"  # where named imports and stored counts are looked up
    queries: Mapping[str, Pool] = field(default_factory=dict)  # for scores that need a target


@dataclass(frozen=True)
class Encoded:
    """A run of b rows, encoded: arrays by name, status codes (b,) uint8, rendered tokens (b,) int32, and the
    reason of every row that was refused or failed, by its number in the run."""

    arrays: dict[str, np.ndarray]
    status: np.ndarray
    tokens: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)


class Encoder(Protocol):
    """A configured representation, ready to encode rows."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Everything that determines the numbers; no device, no batch size."""

    @property
    def dimensions(self) -> int:
        """d of the vectors."""

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations that one rendered token costs; 0 when no model runs."""

    @property
    def execution(self) -> Mapping[str, Any]:
        """How it runs here: device, batching and the like; outside the identity."""

    def encode(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Encoded:
        """Encode rows; `advance(tokens)` is called as work is done."""


@runtime_checkable
class Outside(Protocol):
    """A signal that was made elsewhere: it is read by the place of a row, not made from its text."""

    def match(self, ids: np.ndarray) -> dict[str, int]:
        """Match it to the rows with these ids (n,), before anything is read; counts."""

    def rows(self, start: int, stop: int) -> Any:
        """The rows [start, stop) of those: `Encoded` of a representation, `Scored` of a score."""
