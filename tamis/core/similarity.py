"""Similarities of a pool to its queries, read as a stream of blocks so that m × n numbers need never exist.

A similarity is anything with the members of `Similarity`. Three are here: an array that is in memory, the
inner products of stored features, and the same for sparse features. Blocks are cut at fixed places (file and
row position, never the budget or the machine), so a second run sees the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.vectors import DenseVectors, SparseVectors, Vectors, by_shard, forget_pages, opened

BLOCK_BYTES = 32 << 20
MAX_BLOCK_ROWS = 8192
_STEP_ROWS = 256
_INFINITE_HALF = np.float32(65536.0)


@runtime_checkable
class Similarity(Protocol):
    """Scores of n pool rows for m queries; higher is better.

    `usable` (n,) bool marks the rows that may be chosen. A block's memory is reused: it is valid until the
    next one is asked for.
    """

    @property
    def m(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def usable(self) -> np.ndarray: ...

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(start, scores (m, b) float32) in pool order; blocks without a usable row may be left out."""
        ...

    def columns(self, positions: np.ndarray) -> np.ndarray:
        """Scores (m, k) of the rows at `positions`, equal to the blocks' up to float noise."""
        ...

    def restrict(self, mask: np.ndarray) -> Similarity:
        """The same scores with only the rows of `mask` (n,) bool left usable."""
        ...


def usable_mask(usable: Any, n: int) -> np.ndarray:
    """`usable` as (n,) bool, all True for None; raises RequestError for anything else."""
    if usable is None:
        return np.ones(n, bool)
    mask = np.asarray(usable)
    if mask.dtype != bool or mask.shape != (n,):
        raise RequestError(f"usable must be ({n},) bool, one entry a pool row; got {mask.shape} {mask.dtype}")
    return mask


S = TypeVar("S", "ArraySimilarity", "FeatureSimilarity", "SparseSimilarity")


def _restricted(similarity: S, mask: np.ndarray) -> S:
    fewer = copy.copy(similarity)
    fewer.usable = similarity.usable & mask
    return fewer


def _rows_of_a_block(width: int) -> int:
    """Rows whose `width` float32 numbers fill about 32 MiB: by shapes alone, so that blocks never move."""
    return min(MAX_BLOCK_ROWS, max(64, BLOCK_BYTES // (4 * max(width, 1))))


def finite_columns(block: np.ndarray) -> np.ndarray:
    """(b,) bool: columns of (m, b) in which every score is finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        good = np.isfinite(block.sum(axis=0))
    # A sum that is not finite can also have overflowed, so those few columns are looked at entry by entry.
    suspects = np.flatnonzero(~good)
    if suspects.size:
        good[suspects] = np.isfinite(block[:, suspects]).all(axis=0)
    return np.asarray(good)


class ArraySimilarity:
    """Scores held in memory: an array (m, n), or (n,) for scores of the rows alone, which are one query.

    float32 and float64 are kept, also in the blocks; float16 widens, integers become float64. Rows with a
    score that is not finite are unusable from the start; `nan_count` says how many otherwise usable rows that
    took.
    """

    def __init__(
        self, scores: Any, usable: np.ndarray | None = None, block_rows: int = MAX_BLOCK_ROWS
    ) -> None:
        array = np.asarray(scores)
        if array.ndim not in (1, 2) or array.dtype.kind not in "fiub":
            raise RequestError(
                f"scores must be numbers of shape (queries, rows) or (rows,); got {array.shape} {array.dtype}"
            )
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
        self.scores = np.atleast_2d(array)
        self.block_rows = block_rows
        given = usable_mask(usable, self.n)
        finite = np.ones(self.n, bool)
        for start, block in self.blocks():
            finite[start : start + block.shape[1]] = finite_columns(block)
        self.usable = given & finite
        self.nan_count = int((given & ~finite).sum())

    @property
    def m(self) -> int:
        return int(self.scores.shape[0])

    @property
    def n(self) -> int:
        return int(self.scores.shape[1])

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self.n, self.block_rows):
            yield start, self.scores[:, start : start + self.block_rows]

    def columns(self, positions: np.ndarray) -> np.ndarray:
        return self.scores[:, positions]

    def restrict(self, mask: np.ndarray) -> ArraySimilarity:
        return _restricted(self, mask)


def widen(half: np.ndarray, out: np.ndarray) -> None:
    """Copy float16 `half` into float32 `out`, same shape, exactly.

    Three integer and float passes over pieces that stay in cache, about a third of the time of numpy's own
    conversion: shift the 16 bits into place with the sign spread above them, drop the sign's copies, and
    scale by 2^112, the difference of the exponents' biases (subnormal numbers come out right too). Only
    infinities and NaN do not, and those pieces are converted by numpy.
    """
    keep = np.uint32(0x8FFFE000).view(np.int32)
    for start in range(0, len(half), _STEP_ROWS):
        source, target = half[start : start + _STEP_ROWS], out[start : start + _STEP_ROWS]
        bits = target.view(np.int32)
        np.left_shift(source.view(np.int16), np.int32(13), out=bits, dtype=np.int32)
        np.bitwise_and(bits, keep, out=bits)
        np.multiply(target, np.float32(2.0**112), out=target)
        if target.max(initial=0) >= _INFINITE_HALF or target.min(initial=0) <= -_INFINITE_HALF:
            np.copyto(target, source)


class FeatureSimilarity:
    """Inner products of queries (m, d) with stored features: shards (n_i, d), float16 or float32, in pool
    order.

    A shard is an array (usually memory-mapped) or the path of a .npy file. Vectors are used as they are:
    normalise them first for cosines. Peak memory is two buffers of `block_rows`, whatever n is.
    """

    def __init__(
        self,
        queries: np.ndarray,
        shards: Sequence[np.ndarray | str | Path],
        usable: np.ndarray | None = None,
        block_rows: int | None = None,
    ) -> None:
        self.queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self.queries.ndim != 2:
            raise RequestError(f"queries must have shape (m, d); got {self.queries.shape}")
        d = self.queries.shape[1]
        sizes = []
        for number, shard in enumerate(shards):
            rows = opened(shard)
            if rows.ndim != 2 or rows.shape[1] != d or rows.dtype not in (np.float16, np.float32):
                raise RequestError(
                    f"feature shard {number} must be (rows, {d}) float16 or float32 to match the queries; "
                    f"got {rows.shape} {rows.dtype}"
                )
            sizes.append(len(rows))
        self.shards = list(shards)
        self.starts = np.cumsum([0, *sizes])
        self.usable = usable_mask(usable, self.n)
        self.block_rows = block_rows or _rows_of_a_block(max(d, self.m))

    @property
    def m(self) -> int:
        return len(self.queries)

    @property
    def n(self) -> int:
        return int(self.starts[-1])

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        features = np.empty((self.block_rows, self.queries.shape[1]), np.float32)
        # Rows by queries in memory: reductions over the queries of a row then run along contiguous numbers.
        scores = np.empty((self.block_rows, self.m), np.float32)
        for offset, shard in zip(self.starts[:-1], self.shards, strict=True):
            stored = opened(shard)
            for first in range(0, len(stored), self.block_rows):
                part = stored[first : first + self.block_rows]
                start, rows = int(offset) + first, len(part)
                if not self.usable[start : start + rows].any():
                    continue
                if part.dtype == np.float16:
                    widen(part, features[:rows])
                else:
                    features[:rows] = part
                forget_pages(stored)
                with np.errstate(invalid="ignore", over="ignore"):
                    np.matmul(features[:rows], self.queries.T, out=scores[:rows])
                yield start, scores[:rows].T

    def columns(self, positions: np.ndarray) -> np.ndarray:
        out = np.empty((self.m, len(positions)), np.float32)
        for shard, inside, where in by_shard(self.starts, positions):
            stored = opened(self.shards[shard])
            for first in range(0, len(inside), self.block_rows):
                rows = np.asarray(stored[inside[first : first + self.block_rows]], np.float32)
                with np.errstate(invalid="ignore", over="ignore"):
                    out[:, where[first : first + self.block_rows]] = (rows @ self.queries.T).T
            forget_pages(stored)
        return out

    def restrict(self, mask: np.ndarray) -> FeatureSimilarity:
        return _restricted(self, mask)

    @property
    def vectors(self) -> Vectors:
        """The pool rows' vectors."""
        return DenseVectors(self.shards)


class SparseSimilarity:
    """Inner products of queries (m, D), dense or CSR, with shards of `scipy.sparse` CSR rows (n_i, D)."""

    def __init__(
        self,
        queries: Any,
        shards: Sequence[Any],
        usable: np.ndarray | None = None,
        block_rows: int | None = None,
    ) -> None:
        for number, shard in enumerate(shards):
            if getattr(shard, "format", None) != "csr" or shard.shape[1] != queries.shape[1]:
                raise RequestError(
                    f"feature shard {number} must be CSR (rows, {queries.shape[1]}) to match the queries; "
                    f"got {type(shard).__name__} {getattr(shard, 'shape', '')}"
                )
        self.queries = queries.astype(np.float32)
        self.shards = list(shards)
        self.starts = np.cumsum([0, *(shard.shape[0] for shard in shards)])
        self.usable = usable_mask(usable, self.n)
        self.block_rows = block_rows or _rows_of_a_block(self.m)

    @property
    def m(self) -> int:
        return int(self.queries.shape[0])

    @property
    def n(self) -> int:
        return int(self.starts[-1])

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for offset, shard in zip(self.starts[:-1], self.shards, strict=True):
            for first in range(0, shard.shape[0], self.block_rows):
                part = shard[first : first + self.block_rows]
                start = int(offset) + first
                if self.usable[start : start + part.shape[0]].any():
                    yield start, self._product(part).T

    def columns(self, positions: np.ndarray) -> np.ndarray:
        out = np.empty((self.m, len(positions)), np.float32)
        for shard, inside, where in by_shard(self.starts, positions):
            out[:, where] = self._product(self.shards[shard][inside]).T
        return out

    def restrict(self, mask: np.ndarray) -> SparseSimilarity:
        return _restricted(self, mask)

    @property
    def vectors(self) -> Vectors:
        """The pool rows' vectors."""
        return SparseVectors(self.shards)

    def _product(self, rows: Any) -> np.ndarray:
        product = rows.astype(np.float32) @ self.queries.T
        dense: np.ndarray = product.toarray() if hasattr(product, "toarray") else np.asarray(product)
        return dense
