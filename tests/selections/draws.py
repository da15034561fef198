"""What hypothesis draws for selections: score matrices full of ties, in memory and as streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from tamis.core.similarity import ArraySimilarity


@st.composite
def tied_scores(draw: st.DrawFn, most_queries: int = 5, most_rows: int = 12) -> np.ndarray:
    """(m, n) float32 with few distinct values, both zeros among them."""
    m, n = draw(st.integers(1, most_queries)), draw(st.integers(1, most_rows))
    values = st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.25, 0.5, 1.0])
    return np.array(draw(st.lists(values, min_size=m * n, max_size=m * n)), np.float32).reshape(m, n)


class Stream:
    """An array behind the streamed interface, so that nothing can take the in-memory path."""

    def __init__(self, scores: np.ndarray, usable: np.ndarray | None = None, block_rows: int = 3) -> None:
        self.scores = np.asarray(scores, np.float32)
        self.m, self.n = self.scores.shape
        self.usable = np.ones(self.n, bool) if usable is None else usable
        self.block_rows = block_rows

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self.n, self.block_rows):
            if self.usable[start : start + self.block_rows].any():
                block = self.scores[:, start : start + self.block_rows].copy()
                yield start, block
                block[:] = 7e7  # a consumer that keeps a block must not get away with it

    def columns(self, positions: np.ndarray) -> np.ndarray:
        return self.scores[:, positions]

    def restrict(self, mask: np.ndarray) -> Stream:
        return Stream(self.scores, self.usable & mask, self.block_rows)


def both(scores: np.ndarray, block_rows: int = 3) -> list[ArraySimilarity | Stream]:
    """The same scores in memory and as a stream."""
    return [ArraySimilarity(scores), Stream(scores, block_rows=block_rows)]
