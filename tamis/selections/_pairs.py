"""Inner products of all pairs of some rows, in blocks, for methods that compare pool rows with each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tamis.core.vectors import Vectors, products, unit

HELD_BYTES = 1 << 30
STEP_ROWS = 1024
_READ_ROWS = 4096
_ONE_WITHIN = 1e-6


class UnitRows:
    """The rows at `positions` scaled to length 1, read by number: with `keep` held in memory up to
    `HELD_BYTES` (sparse ones always), else read again each time.

    Numbers are float32, or float64 when `wide` (sparse ones stay float32). Rows of zeros stay zero, and
    lengths within 1e-6 of 1 are left as they are stored.
    """

    def __init__(
        self, vectors: Vectors, positions: np.ndarray, wide: bool = False, keep: bool = True
    ) -> None:
        self.vectors, self.positions = vectors, positions
        self.type = np.float64 if wide else np.float32
        self._held: Any = None
        if not keep:
            return
        dense = isinstance(vectors.take(positions[:1]), np.ndarray)
        if not dense:
            self._held = self._read(slice(None))
        elif len(positions) * vectors.d * np.dtype(self.type).itemsize <= HELD_BYTES:
            held = np.empty((len(positions), vectors.d), self.type)
            for start in range(0, len(positions), _READ_ROWS):
                held[start : start + _READ_ROWS] = self._read(slice(start, start + _READ_ROWS))
            self._held = held

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        return self._read(rows) if self._held is None else self._held[rows]

    def _read(self, rows: slice | np.ndarray) -> Any:
        taken = self.vectors.take(self.positions[rows])
        if not isinstance(taken, np.ndarray):
            return unit(taken)
        taken = taken.astype(self.type, copy=False)
        length = np.linalg.norm(taken, axis=1, keepdims=True)
        length[np.abs(length - 1) <= _ONE_WITHIN] = 1
        return taken / np.maximum(length, self.type(1e-12))


def pair_blocks(rows: UnitRows, step: int = STEP_ROWS) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """(rows, columns, their inner products) for the blocks on and above the diagonal; a block is the
    caller's."""
    for first in range(0, len(rows), step):
        left_span = slice(first, min(first + step, len(rows)))
        left = rows[left_span]
        for second in range(first, len(rows), step):
            right_span = slice(second, min(second + step, len(rows)))
            right = left if second == first else rows[right_span]
            yield left_span, right_span, products(left, right)
