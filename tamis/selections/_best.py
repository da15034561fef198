"""One pass over a similarity: each query's best rows, or each row's mean, best or worst score.

Memory is m × K for the lists and n for the reductions, never m × n. Only rows that are usable and whose
scores are all finite enter; the others are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tamis.core.similarity import ArraySimilarity, Similarity, finite_columns

_LOW_HALF = np.uint64(0xFFFFFFFF)


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
    """uint64 that is larger for the better entry: the score's bits made monotone, then the row reversed."""
    bits = (scores + np.float32(0.0)).view(np.uint32)  # adding 0 turns -0.0 into 0.0, which must tie with it
    monotone = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(0x80000000))
    return (monotone.astype(np.uint64) << np.uint64(32)) | (_LOW_HALF - rows.astype(np.uint64))


def _unpacked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    monotone = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(monotone >> np.uint32(31), monotone & np.uint32(0x7FFFFFFF), ~monotone)
    return bits.view(np.float32), (_LOW_HALF - (keys & _LOW_HALF)).astype(np.int64)


class _Filter:
    """Keeps the K best keys of m queries: survivors of a moving threshold are appended, full buffers
    compacted.

    Rows must come in ascending order: a later row that ties with a query's K-th score then never enters, so
    the comparison is strict and masses of equal scores cost nothing.
    """

    def __init__(self, m: int, depth: int) -> None:
        self.depth = depth
        self.room = 2 * depth
        self.keys = np.zeros((m, self.room), np.uint64)
        self.fill = np.zeros(m, np.int64)
        self.seen = np.zeros(m, np.int64)
        self.threshold = np.full(m, -np.inf, np.float32)

    def add(self, queries: np.ndarray, keys: np.ndarray) -> None:
        """Survivors of one block: `queries` (s,) ascending, `keys` (s,)."""
        counts = np.bincount(queries, minlength=len(self.fill))
        self.seen += counts
        ends = np.cumsum(counts)
        starts = ends - counts
        full = self.fill + counts > self.room
        for q in np.flatnonzero(full).tolist():
            merged = np.concatenate([self.keys[q, : self.fill[q]], keys[starts[q] : ends[q]]])
            self._compact(q, merged)
        fits = ~full[queries]
        inside = np.arange(len(queries)) - starts[queries] + self.fill[queries]
        self.keys[queries[fits], inside[fits]] = keys[fits]
        self.fill[~full] += counts[~full]

    def _compact(self, q: int, keys: np.ndarray) -> None:
        keep = np.partition(keys, len(keys) - self.depth)[len(keys) - self.depth :]
        self.keys[q, : self.depth] = keep
        self.fill[q] = self.depth
        self.threshold[q] = _unpacked(keep.min()[None])[0][0]

    def lists(self, nan_count: int) -> Lists:
        rows = np.zeros((len(self.fill), self.depth), np.int64)
        scores = np.zeros((len(self.fill), self.depth), np.float32)
        length = np.minimum(self.fill, self.depth)
        for q, kept in enumerate(length):
            top = np.sort(self.keys[q, : self.fill[q]])[::-1][:kept]
            scores[q, :kept], rows[q, :kept] = _unpacked(top)
        # A threshold turns rows away only after a compaction, and by then more than `depth` were seen.
        return Lists(rows, scores, length, self.seen <= self.depth, nan_count)


def _best_of_stream(similarity: Similarity, depth: int, after: After | None) -> Lists:
    m = similarity.m
    found = _Filter(m, min(depth, max(1, int(similarity.usable.sum()))))
    short = np.uint16 if m < 1 << 16 else np.int64  # 16 bits are sorted by radix
    nan_count = 0
    hits = np.empty((0, m), bool)
    for start, block, choosable, not_finite in scan(similarity):
        nan_count += not_finite
        by_row = block.T
        if len(hits) < len(by_row):
            hits = np.empty(by_row.shape, bool)
        hit = np.greater(by_row, found.threshold, out=hits[: len(by_row)])
        if not choosable.all():
            hit &= choosable[:, None]
        if after is not None:
            hit &= by_row <= after.score
        row, query = np.divmod(np.flatnonzero(hit), m)
        order = np.argsort(query.astype(short), kind="stable")
        row, query = row[order], query[order]
        values, row_ids = by_row[row, query].astype(np.float32), row + start
        if after is not None:
            later = (values < after.score[query]) | (row_ids > after.row[query])
            values, row_ids, query = values[later], row_ids[later], query[later]
        found.add(query, _packed(values, row_ids))
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
