"""A 2-D view of pool rows, queries and a subset: the first two principal components of a pool sample.

Fitted on a uniform sample of usable pool rows, centred, dense or sparse; other rows are projected on it. The
axes are found by subspace iterations on the centred sample (a fixed number, so axes of nearly equal variance
may be mixed; the shares are those of the axes drawn), and sparse rows stay sparse. Queries need no vectors of
their own: with sample rows X, q · axis follows from q · Xᵀ, which is their similarity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.core.similarity import Similarity
from tamis.selections._order import hashed

POOL_ROWS = 2000  # of the sample that the plane is fitted on
SUBSET_ROWS = 1000
LEAST_ROWS, SAMPLE_NUMBERS = 200, 1 << 24  # fewer rows where vectors are wide: 64 MiB of float32
QUERIES = 500
BLOCK, ITERATIONS = 10, 12  # of the subspace iterations
_COLUMNS = 256  # similarities of this many sample rows are in memory at a time


@dataclass(frozen=True)
class Points:
    """Points of a map. `kind`: pool, subset or query; `row`: position in the pool, rank, or query number."""

    kind: np.ndarray  # object (p,)
    row: np.ndarray  # int64 (p,)
    xy: np.ndarray  # float32 (p, 2)
    share: tuple[float, float]  # of the pool sample's variance, by axis
    of_rows: int  # usable pool rows that were sampled from
    of_subset: int
    of_queries: int


def sampled(n: int, size: int, seed: int, purpose: str) -> np.ndarray:
    """`size` of the numbers below n, ascending, drawn by a seeded hash; all of them where n is smaller."""
    order = np.argsort(hashed(n, seed, purpose), kind="stable")
    return np.sort(order[:size])


def _rows_for(width: int) -> int:
    """Rows of the sample: as many as `POOL_ROWS`, fewer where their vectors are of many thousand numbers."""
    return int(min(POOL_ROWS, max(LEAST_ROWS, SAMPLE_NUMBERS // max(width, 1))))


def plane_of(similarity: Similarity, seed: int) -> Plane | None:
    """The plane of a pool sample; None where there are no vectors, or too few or too equal rows."""
    vectors = getattr(similarity, "vectors", None)
    usable = np.flatnonzero(similarity.usable)
    if vectors is None or len(usable) < 4:
        return None
    rows = usable[sampled(len(usable), _rows_for(vectors.d), seed, "map rows")]
    taken = vectors.take(rows)
    mean = np.asarray(taken.mean(axis=0), np.float64).ravel()
    # Row by row in float64: no copy of all the numbers.
    squares = (
        taken.multiply(taken).sum()
        if hasattr(taken, "multiply")
        else sum(float(np.dot(wide, wide)) for wide in (row.astype(np.float64) for row in taken))
    )
    total = float(squares) - len(rows) * float(mean @ mean)
    if not np.isfinite(total) or total <= 1e-6 * float(squares):
        return None
    return _solved(taken, mean, total, rows, len(usable), vectors)


def _solved(
    taken: Any, mean: np.ndarray, total: float, rows: np.ndarray, of_rows: int, vectors: Any
) -> Plane | None:
    if min(taken.shape) < 3:
        return None
    used = None
    if not isinstance(taken, np.ndarray):
        # The columns that no row of the sample has are zero in every axis.
        used = np.unique(taken.indices)
        taken, mean = taken[:, used], mean[used]
    mean = mean.astype(np.float32)
    block = np.random.default_rng(0).standard_normal((len(rows), min(BLOCK, *taken.shape))).astype(np.float32)
    for _ in range(ITERATIONS):
        right = _transposed(taken, mean, np.linalg.qr(block)[0])
        block = taken @ right - mean @ right
    basis = np.linalg.qr(block)[0]
    small, values, axes = np.linalg.svd(_transposed(taken, mean, basis).T, full_matrices=False)
    left, values, axes = (basis @ small)[:, :2], values[:2], axes[:2].T
    if values[1] <= 1e-5 * values[0]:
        return None
    # The sign of an axis is arbitrary: its largest coordinate in the sample is made positive.
    sign = np.sign(left[np.argmax(np.abs(left), axis=0), [0, 1]])
    share = (float(values[0] ** 2 / total), float(values[1] ** 2 / total))
    return Plane(rows, of_rows, left * sign, values, axes * sign, mean, share, vectors, used)


def _transposed(taken: Any, mean: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The centred sample's transpose times (rows, b): (d, b)."""
    product: np.ndarray = taken.T @ block - np.outer(mean, block.sum(axis=0))
    return product


@dataclass(frozen=True)
class Plane:
    """Two axes (d, 2) through the mean of a pool sample at `rows`; `left` and `values` its singular pairs."""

    rows: np.ndarray
    of_rows: int
    left: np.ndarray
    values: np.ndarray
    axes: np.ndarray
    mean: np.ndarray
    share: tuple[float, float]
    vectors: Any
    used: np.ndarray | None  # columns of sparse vectors that the axes have

    def points(self, similarity: Similarity, positions: np.ndarray, seed: int) -> Points:
        """The sample, the queries and the rows at `positions`, each at most so many as the constants say."""
        ranks = sampled(len(positions), min(SUBSET_ROWS, _rows_for(self.vectors.d)), seed, "map subset")
        queries = sampled(similarity.m, QUERIES, seed, "map queries")
        taken = self.vectors.take(positions[ranks])
        taken = taken if self.used is None else taken[:, self.used]
        chosen = np.asarray(taken @ self.axes) - self.mean @ self.axes
        parts = {
            "pool": (self.rows, self.left * self.values),
            "subset": (ranks, chosen),
            "query": (queries, self._queries(similarity)[queries]),
        }
        xy = np.concatenate([part for _, part in parts.values()])
        return Points(
            np.concatenate([np.full(len(row), kind, object) for kind, (row, _) in parts.items()]),
            np.concatenate([row for row, _ in parts.values()]).astype(np.int64),
            (np.round(xy / np.abs(xy).max(), 4) + 0.0).astype(np.float32),
            self.share,
            self.of_rows,
            len(positions),
            similarity.m,
        )

    def _queries(self, similarity: Similarity) -> np.ndarray:
        """(m, 2): with centred rows X = U Σ Vᵀ, v = Xᵀ u / σ, hence q · v = (q · Xᵀ) u / σ."""
        found = np.zeros((similarity.m, 2))
        # The columns of U sum to zero, so centring the rows of X changes nothing here.
        for start in range(0, len(self.rows), _COLUMNS):
            part = slice(start, start + _COLUMNS)
            found += similarity.columns(self.rows[part]) @ self.left[part]
        projected: np.ndarray = found / self.values - self.mean @ self.axes
        return projected
