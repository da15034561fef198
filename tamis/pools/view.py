"""Some rows of a pool, as a pool of their own for those who only read ids and texts."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from tamis.core.digest import bytes_digest, digest
from tamis.pools.pool import Message, Pool, Row


class PoolRows:
    """The rows of `pool` at `positions` (k,) int64, in that order. Its digest names pool and positions."""

    def __init__(self, pool: Pool, positions: np.ndarray) -> None:
        self.pool, self.positions = pool, np.asarray(positions, np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def digest(self) -> str:
        """Name of the content."""
        return digest({"pool": self.pool.digest, "rows": bytes_digest([self.positions.tobytes()])})

    @property
    def ids(self) -> np.ndarray:
        """Ids (k,) '<U32'."""
        found: np.ndarray = self.pool.ids[self.positions]
        return found

    @property
    def chars(self) -> np.ndarray:
        """Characters in the contents of each row (k,) int64."""
        return np.asarray(self.pool.chars)[self.positions]

    def row(self, number: int) -> Row:
        """The row of that number; its position is the pool's."""
        return self.pool.row(int(self.positions[number]))

    def conversations(self, start: int = 0, stop: int | None = None) -> list[list[Message]]:
        """Turns of the rows of [start, stop)."""
        return list(self.pool.messages_at(self.positions[start:stop]))
