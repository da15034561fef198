"""k-means over rows that are read by number: fitted on a sample, then every row to its nearest centre."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np

from tamis.core.extras import need
from tamis.core.vectors import Vectors

ASSIGN_ROWS = 4096


class Rows(Protocol):
    """Vectors of r rows, by their numbers; `vectors` is where they come from."""

    vectors: Vectors

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray) -> Any: ...


class StoredRows:
    """The rows at `positions` as they are stored, not scaled."""

    def __init__(self, vectors: Vectors, positions: np.ndarray) -> None:
        self.vectors, self.positions = vectors, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        return self.vectors.take(self.positions[rows])


def clustered(
    rows: Rows, hashes: np.ndarray, seed: int, clusters: int, most_rows: int, restarts: int = 1
) -> tuple[np.ndarray, dict[str, Any]]:
    """(number of each row's cluster, from 0 by size, then by smallest row), and counts for the notes.

    `hashes` (r,): the `most_rows` rows with the smallest are those that centres are fitted on, the best of
    `restarts` times.
    """
    cluster = need("sklearn.cluster", extra="lm")
    sample = np.sort(np.argsort(hashes, kind="stable")[:most_rows])
    k = min(clusters, len(sample))
    kmeans = cluster.KMeans(n_clusters=k, init="k-means++", n_init=restarts, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct rows than clusters: counted below
        narrow = _Narrow(rows[sample], rows.vectors.d)
        kmeans.fit(narrow(rows[sample]))
    centres = kmeans.cluster_centers_
    blocks = (narrow(rows[start : start + ASSIGN_ROWS]) for start in range(0, len(rows), ASSIGN_ROWS))
    labels = np.concatenate([_nearest(block, centres) for block in blocks])
    numbers, first, inverse, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    place = np.empty(len(numbers), np.int64)
    place[np.lexsort((first, -sizes))] = np.arange(len(numbers))
    facts = {"fitted_rows": len(sample), "empty_clusters": clusters - len(numbers)}
    return place[inverse], facts | {"rounds": int(kmeans.n_iter_)}


class _Narrow:
    """Sparse rows cut to the columns that occur in a sample; dense ones as they are.

    No centre has any other column, so no distance changes but by the row's own constant; the centres, which
    are dense, become as narrow as they can be. scikit-learn takes 32-bit indices only.
    """

    def __init__(self, sample: Any, d: int) -> None:
        if not isinstance(sample, np.ndarray):
            self.columns = np.unique(sample.indices)
            self.number = np.full(d, -1, np.int32)
            self.number[self.columns] = np.arange(len(self.columns))

    def __call__(self, rows: Any) -> Any:
        if isinstance(rows, np.ndarray):
            return rows
        from scipy.sparse import csr_matrix

        numbers = self.number[rows.indices]
        kept = numbers >= 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[rows.indptr].astype(np.int32)
        return csr_matrix((rows.data[kept], numbers[kept], indptr), shape=(rows.shape[0], len(self.columns)))


def _nearest(rows: Any, centres: np.ndarray) -> np.ndarray:
    """Number of the centre nearest to each row, the first among equals."""
    closeness = np.asarray(rows @ centres.T.astype(np.float32)) - 0.5 * (centres**2).sum(axis=1)
    return np.asarray(closeness.argmax(axis=1))
