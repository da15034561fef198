"""Weights of hashed n-gram counts, and the cosine of queries and pool rows in blocks of pool rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array, vstack

from tamis.core.errors import RequestError
from tamis.core.similarity import BLOCK_BYTES, MAX_BLOCK_ROWS
from tamis.core.vectors import by_shard, forget_pages, stacked

if TYPE_CHECKING:
    from tamis.representations.ngrams import Config

WEIGHTINGS = ("tfidf", "counts", "binary")

Shard = Mapping[str, np.ndarray]
"""Counts of b rows in compressed rows: `indptr` (b + 1,) int64, `indices` and `counts` (nonzeros,)."""

_QUERY_BYTES = 128 << 20
"""Most bytes of one dense matrix of queries x columns that occur in them."""


def similarity(query: Sequence[Shard], pool: Sequence[Shard], config: Config) -> NgramSimilarity:
    """Cosine of all query rows with all pool rows; both are weighted by the idf of the pool.

    The pool is read twice, once for the idf and once for every pass over the blocks; its shards may be
    memory-mapped. Raises `RequestError` when there is no query row.
    """
    rows = row_vectors(pool, config)
    starts, idf = rows.starts, rows.idf
    weights = [weighted(shard, idf, config) for shard in query]
    if not sum(rows.shape[0] for rows in weights):
        raise RequestError("the query set has no rows, so there is nothing to compare the pool with")
    groups = tuple(_QueryGroup.of(rows) for rows in _groups(vstack(weights, format="csr")))
    usable = np.concatenate([np.diff(shard["indptr"]) > 0 for shard in pool] or [np.zeros(0, bool)])
    return NgramSimilarity(groups, tuple(pool), idf, config, starts, usable)


def row_vectors(pool: Sequence[Shard], config: Config) -> NgramVectors:
    """The pool rows' weighted counts, by the idf of the pool."""
    starts = np.cumsum([0, *(_rows(shard) for shard in pool)])
    idf = inverse_frequencies(document_frequencies(pool, config.buckets), int(starts[-1]))
    return NgramVectors(tuple(pool), idf, config, starts)


@dataclass(frozen=True, eq=False)
class NgramSimilarity:
    """S (m, n) of m queries and n pool rows. `usable` (n,): rows with an n-gram, minus the restricted."""

    groups: tuple[_QueryGroup, ...]
    pool: tuple[Shard, ...]
    idf: np.ndarray  # (D,)
    config: Config
    starts: np.ndarray  # first row of every shard, then n
    usable: np.ndarray

    @property
    def m(self) -> int:
        return sum(group.m for group in self.groups)

    @property
    def n(self) -> int:
        return int(self.starts[-1])

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first pool row, scores (m, b) float32) in pool order, without blocks that have no usable row."""
        size = min(MAX_BLOCK_ROWS, max(64, BLOCK_BYTES // (4 * self.m)))
        for offset, shard in zip(self.starts[:-1], self.pool, strict=True):
            for first in range(0, _rows(shard), size):
                rows = np.arange(first, min(first + size, _rows(shard)))
                if self.usable[offset + rows].any():
                    yield int(offset) + first, self._scores(shard, rows)
            _let_go(shard)

    def columns(self, positions: np.ndarray) -> np.ndarray:
        """Scores (m, k) of the pool rows at `positions`, to the bit those of the blocks."""
        wanted = np.asarray(positions, dtype=np.int64)
        scores = np.empty((self.m, len(wanted)), dtype=np.float32)
        for shard, inside, where in by_shard(self.starts, wanted):
            scores[:, where] = self._scores(self.pool[shard], inside)
        return scores

    def restrict(self, mask: np.ndarray) -> NgramSimilarity:
        """The same scores with only the rows of `mask` (n,) bool left usable."""
        return replace(self, usable=self.usable & mask)

    @property
    def vectors(self) -> NgramVectors:
        """The pool rows' weighted counts."""
        return NgramVectors(self.pool, self.idf, self.config, self.starts)

    def _scores(self, shard: Shard, rows: np.ndarray) -> np.ndarray:
        weights = weighted(_taken(shard, rows), self.idf, self.config)
        return np.concatenate([group.products(weights) for group in self.groups], axis=1).T


@dataclass(frozen=True, eq=False)
class NgramVectors:
    """Weighted counts of pool rows as sparse unit vectors in d = D dimensions, weighted when taken."""

    pool: tuple[Shard, ...]
    idf: np.ndarray
    config: Config
    starts: np.ndarray

    @property
    def n(self) -> int:
        return int(self.starts[-1])

    @property
    def d(self) -> int:
        return self.config.buckets

    def take(self, positions: np.ndarray) -> csr_array:
        """Rows at `positions` (k,), (k, D) float32."""
        parts, order = [], [np.zeros(0, np.int64)]
        for shard, inside, where in by_shard(self.starts, positions):
            parts.append(weighted(_taken(self.pool[shard], inside), self.idf, self.config))
            order.append(where)
        return stacked(parts, order, self.d)


def document_frequencies(shards: Sequence[Shard], buckets: int) -> np.ndarray:
    """Rows in which each bucket occurs, (D,) int64; one shard in memory at a time."""
    frequencies = np.zeros(buckets, dtype=np.int64)
    for shard in shards:
        frequencies += np.bincount(shard["indices"], minlength=buckets)
        _let_go(shard)
    return frequencies


def inverse_frequencies(frequencies: np.ndarray, rows: int) -> np.ndarray:
    """Smoothed idf (D,) float64, ln((1 + rows) / (1 + frequency)) + 1; at least 1, and finite everywhere."""
    idf: np.ndarray = np.log((1 + rows) / (1 + frequencies)) + 1
    return idf


def weighted(shard: Shard, idf: np.ndarray, config: Config) -> csr_array:
    """Rows of a shard weighted by `config` and of length 1, (b, D) float32; a row without n-grams stays 0."""
    indptr, columns = np.asarray(shard["indptr"]), np.asarray(shard["indices"]).astype(np.int32)
    if config.weighting == "binary":
        values = np.ones(len(columns))
    else:
        values = np.asarray(shard["counts"]).astype(np.float64)
        if config.sublinear:
            values = 1 + np.log(values)
    if config.weighting == "tfidf":
        values *= idf[columns]
    rows = np.repeat(np.arange(_rows(shard)), np.diff(indptr))
    values /= np.sqrt(np.bincount(rows, weights=values * values, minlength=_rows(shard)))[rows]
    return csr_array((values.astype(np.float32), columns, indptr), shape=(_rows(shard), config.buckets))


def counts_matrix(shards: Sequence[Shard], config: Config) -> csr_array:
    """Raw counts of all shards as one sparse matrix (n, D) int64, in memory."""
    parts = [
        csr_array((shard["counts"].astype(np.int64), shard["indices"].astype(np.int32), shard["indptr"]),
                  shape=(_rows(shard), config.buckets))
        for shard in shards
    ]  # fmt: skip
    matrix: csr_array = vstack(parts, format="csr")
    return matrix


@dataclass(frozen=True, eq=False)
class _QueryGroup:
    """Some queries as a dense matrix over the columns that occur in them; other columns cannot count."""

    number: np.ndarray  # (D,) int32: row of `dense` of each column, -1 without one
    dense: np.ndarray  # (columns, m) float32

    @classmethod
    def of(cls, queries: csr_array) -> _QueryGroup:
        present, numbers = np.unique(queries.indices, return_inverse=True)
        number = np.full(queries.shape[1], -1, dtype=np.int32)
        number[present] = np.arange(len(present))
        small = csr_array((queries.data, numbers, queries.indptr), shape=(queries.shape[0], len(present)))
        return cls(number, np.ascontiguousarray(small.toarray().T))

    @property
    def m(self) -> int:
        return int(self.dense.shape[1])

    def products(self, rows: csr_array) -> np.ndarray:
        """Inner products (b, m) float32, each summed over ascending columns whatever rows are beside it."""
        numbers = self.number[rows.indices]
        kept = numbers >= 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
        shape = (rows.shape[0], len(self.dense))
        product: np.ndarray = csr_array((rows.data[kept], numbers[kept], indptr), shape=shape) @ self.dense
        return product


def _groups(queries: csr_array) -> Iterator[csr_array]:
    """Consecutive queries, as many at a time as keep the dense matrix within `_QUERY_BYTES`."""
    columns = max(len(np.unique(queries.indices)), 1)
    size = max(_QUERY_BYTES // (4 * columns), 1)
    for start in range(0, queries.shape[0], size):
        yield queries[start : start + size]


def _rows(shard: Shard) -> int:
    return len(shard["indptr"]) - 1


def _let_go(shard: Shard) -> None:
    for array in shard.values():
        forget_pages(array)


def _taken(shard: Shard, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The given rows of a shard, in the given order."""
    indptr = np.asarray(shard["indptr"])
    lengths = indptr[rows + 1] - indptr[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    at = np.arange(starts[-1]) + np.repeat(indptr[rows] - starts[:-1], lengths)
    return {"indptr": starts, "indices": shard["indices"][at], "counts": shard["counts"][at]}
