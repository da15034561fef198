"""One pass over a similarity: each query's best rows, or each row's mean, best or worst score.

Memory is m × K for the lists and n for the reductions, never m × n. Only rows that are usable and whose
scores are all finite enter; the others are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tamis.core.similarity import ArraySimilarity, Similarity, finite_columns

_LOW_HALF = 0xFFFFFFFF
_MAGNITUDE = np.int32(0x7FFFFFFF)
_STEP_BITS = 8
_STEP_ROWS = 1 << _STEP_BITS


def scan(similarity: Similarity) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
    """(start, scores (m, b), choosable (b,) bool, usable rows of the block that have a score not finite)."""
    for start, block in similarity.blocks():
        usable = similarity.usable[start : start + block.shape[1]]
        finite = finite_columns(block)
        yield start, block, usable & finite, int((usable & ~finite).sum())


@dataclass(frozen=True, eq=False)
class Lists:
    """Each query's best rows, best first, ties to the smaller row.

    `rows` int64 and `scores` (m, K); `length` (m,) entries that count; `complete` (m,): nothing follows
    them.
    """

    rows: np.ndarray
    scores: np.ndarray
    length: np.ndarray
    complete: np.ndarray
    nan_count: int = 0


@dataclass(frozen=True, eq=False)
class After:
    """Where each query's list goes on: after (`score`, `row`) in its order, both (m,)."""

    score: np.ndarray
    row: np.ndarray


def best(similarity: Similarity, depth: int, after: After | None = None) -> Lists:
    """The `depth` best rows of each query, exactly: row by row of an array, else in one pass over blocks."""
    if isinstance(similarity, ArraySimilarity):
        return _best_of_array(similarity, depth, after)
    return _best_of_stream(similarity, depth, after)


def _best_of_array(similarity: ArraySimilarity, depth: int, after: After | None) -> Lists:
    candidates = np.flatnonzero(similarity.usable)
    depth = min(depth, len(candidates))
    rows = np.zeros((similarity.m, depth), np.int64)
    scores = np.zeros((similarity.m, depth), similarity.scores.dtype)
    length, complete = np.zeros(similarity.m, np.int64), np.ones(similarity.m, bool)
    for q in range(similarity.m):
        pool, values = candidates, similarity.scores[q, candidates]
        if after is not None:
            bound, row = after.score[q], after.row[q]
            keep = (values < bound) | ((values == bound) & (pool > row))
            pool, values = pool[keep], values[keep]
        complete[q] = len(pool) <= depth
        if 0 < depth < len(pool):
            kth = np.partition(values, len(values) - depth)[len(values) - depth]
            keep = values > kth
            # Of the rows that tie with the last place, the smaller positions get it.
            keep[np.flatnonzero(values == kth)[: depth - int(keep.sum())]] = True
            pool, values = pool[keep], values[keep]
        order = np.argsort(-values, kind="stable")[:depth]
        length[q] = len(order)
        rows[q, : len(order)], scores[q, : len(order)] = pool[order], values[order]
    return Lists(rows, scores, length, complete)


def _packed(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 that is larger for the better entry: the score's bits made monotone, then the row from above."""
    bits = (scores + np.float32(0.0)).view(np.int32)  # adding 0 turns -0.0 into 0.0, which must tie with it
    keys = (bits ^ ((bits >> np.int32(31)) & _MAGNITUDE)).astype(np.int64)
    keys <<= 32
    keys |= _LOW_HALF - rows
    return keys


def _unpacked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    monotone = (keys >> 32).astype(np.int32)
    bits = monotone ^ ((monotone >> np.int32(31)) & _MAGNITUDE)
    return bits.view(np.float32), _LOW_HALF - (keys & _LOW_HALF)


class _Filter:
    """The K best keys of m queries: survivors of a moving threshold are appended, full buffers are compacted.

    Rows must come in ascending order: a later row that ties with a query's K-th score then never enters, so
    the comparison is strict and masses of equal scores cost nothing.
    """

    def __init__(self, m: int, depth: int) -> None:
        self.depth = depth
        self.room = 2 * depth + _STEP_ROWS
        self.keys = np.zeros((m, self.room), np.int64)
        self.fill = np.zeros(m, np.int64)
        self.seen = np.zeros(m, np.int64)
        self.threshold = np.full(m, -np.inf, np.float32)
        self._firsts = np.arange(m) * self.room

    def add(self, counts: np.ndarray, keys: np.ndarray) -> None:
        """Survivors of at most `_STEP_ROWS` rows: `keys` by query, `counts` (m,) of them."""
        self.seen += counts
        for q in np.flatnonzero(self.fill + counts > self.room).tolist():
            kept = np.partition(self.keys[q, : self.fill[q]], self.fill[q] - self.depth)[-self.depth :]
            self.keys[q, : self.depth] = kept
            self.fill[q] = self.depth
            self.threshold[q] = _unpacked(kept.min(keepdims=True))[0][0]
        shift = self._firsts + self.fill - (np.cumsum(counts) - counts)
        self.keys.ravel()[np.repeat(shift, counts) + np.arange(len(keys))] = keys
        self.fill += counts

    def lists(self, nan_count: int) -> Lists:
        rows = np.zeros((len(self.fill), self.depth), np.int64)
        scores = np.zeros((len(self.fill), self.depth), np.float32)
        length = np.minimum(self.fill, self.depth)
        for q, kept in enumerate(length):
            best_first = np.sort(self.keys[q, : self.fill[q]])[::-1][:kept]
            scores[q, :kept], rows[q, :kept] = _unpacked(best_first)
        # A threshold turns rows away only after a compaction, and by then more than `depth` were seen.
        return Lists(rows, scores, length, self.seen <= self.depth, nan_count)


def _best_of_stream(similarity: Similarity, depth: int, after: After | None) -> Lists:
    m = similarity.m
    found = _Filter(m, min(depth, max(1, int(similarity.usable.sum()))))
    hits = np.empty((m, _STEP_ROWS), bool)
    nan_count = 0
    for start, block, choosable, not_finite in scan(similarity):
        nan_count += not_finite
        # A few rows at a time: what follows makes a dozen passes over its input, which then stay in cache.
        for first in range(0, block.shape[1], _STEP_ROWS):
            scores = np.ascontiguousarray(block.T[first : first + _STEP_ROWS], np.float32)
            hit = scores > found.threshold
            if not choosable.all():
                hit &= choosable[first : first + _STEP_ROWS, None]
            if after is not None:
                hit &= scores <= after.score
                ties = scores == after.score
                ties &= np.arange(start + first, start + first + len(scores))[:, None] <= after.row
                hit &= ~ties
            hits[:, : len(hit)] = hit.T
            hits[:, len(hit) :] = False
            at = np.flatnonzero(hits)
            query, row = at >> _STEP_BITS, at & (_STEP_ROWS - 1)
            keys = _packed(scores.ravel()[row * m + query], row + (start + first))
            found.add(np.count_nonzero(hits, axis=1), keys)
    return found.lists(nan_count)


def column_means(block: np.ndarray) -> np.ndarray:
    """Mean of each column of (m, b), float64, so close to exact that equal means stay equal.

    A float64 sum of float32 numbers loses nothing unless their sizes differ by more than about 2^20. Float64
    numbers are summed with the rounding error of each addition carried along (Knuth's two-sum), and that of
    the division is put right (Dekker's product), so that the mean is the exact one, rounded once.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if block.dtype == np.float32:
            return np.asarray(np.add.reduce(block, axis=0, dtype=np.float64) / len(block))
        total, error = np.zeros(block.shape[1]), np.zeros(block.shape[1])
        for row in block:
            grown = total + row
            part = grown - total
            error += (total - (grown - part)) + (row - part)
            total = grown
        mean = total / len(block)
        shifted = mean * (2.0**27 + 1)
        high = shifted - (shifted - mean)
        rest = ((total - high * len(block)) - (mean - high) * len(block)) + error
        return np.asarray(mean + rest / len(block))


@dataclass(frozen=True, eq=False)
class Reduced:
    """One number a row: `key` (n,) float64, NaN where `choosable` (n,) is False; `query` (n,) or None."""

    key: np.ndarray
    choosable: np.ndarray
    query: np.ndarray | None
    nan_count: int
    passes: int = 1


def reduce_rows(similarity: Similarity, how: str) -> Reduced:
    """Mean ("mean"), largest ("max") or smallest ("min") score of each row over the queries, in one pass.

    "max" and "min" also say which query it was, the first among ties. Means are sums in float64.
    """
    key = np.full(similarity.n, np.nan)
    query = None if how == "mean" else np.zeros(similarity.n, np.int32)
    choosable = np.zeros(similarity.n, bool)
    nan_count = 0
    for start, block, good, not_finite in scan(similarity):
        span = slice(start, start + block.shape[1])
        nan_count += not_finite
        choosable[span] = good
        if query is None:
            key[span] = column_means(block)
        else:
            at = block.argmax(axis=0) if how == "max" else block.argmin(axis=0)
            query[span] = at
            key[span] = block[at, np.arange(block.shape[1])]
    key[~choosable] = np.nan
    return Reduced(key, choosable, query, nan_count)


@dataclass(frozen=True, eq=False)
class GroupedSimilarity:
    """Scores of groups of queries, each group's largest or mean. `groups` (m,) numbers from 0."""

    inner: Similarity
    groups: np.ndarray
    how: str = "max"

    @property
    def m(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def n(self) -> int:
        return self.inner.n

    @property
    def usable(self) -> np.ndarray:
        return self.inner.usable

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for start, block in self.inner.blocks():
            yield start, self._grouped(block)

    def columns(self, positions: np.ndarray) -> np.ndarray:
        return self._grouped(self.inner.columns(positions))

    def restrict(self, mask: np.ndarray) -> GroupedSimilarity:
        return replace(self, inner=self.inner.restrict(mask))

    def _grouped(self, block: np.ndarray) -> np.ndarray:
        by_row = np.empty((block.shape[1], self.m), np.float64 if self.how == "mean" else block.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            for group in range(self.m):
                of_group = block[self.groups == group]
                if self.how == "mean":
                    by_row[:, group] = column_means(of_group)
                else:
                    by_row[:, group] = of_group.max(axis=0)
        by_row[~finite_columns(block)] = np.nan  # a maximum would hide the -inf of one query
        return by_row.T


def grouped(similarity: Similarity, groups: np.ndarray, how: str = "max") -> Similarity:
    """Scores of the groups; of an array, an array again, which is smaller than what it came from."""
    view = GroupedSimilarity(similarity, groups, how)
    if not isinstance(similarity, ArraySimilarity):
        return view
    table = np.concatenate([view._grouped(block) for _, block in similarity.blocks()], axis=1)
    return ArraySimilarity(table, similarity.usable, similarity.block_rows)
