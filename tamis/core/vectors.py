"""Vectors of pool rows, read by position or in blocks, for methods that compare pool rows with each other.

Dense vectors are float32 arrays (k, d), sparse ones `scipy.sparse` CSR (k, d); `products` takes either.
Nothing holds all n vectors unless they came as one array in memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tamis.core.errors import RequestError


@runtime_checkable
class Vectors(Protocol):
    """Vectors of n pool rows in d dimensions, as they were stored (cosines need `unit` first)."""

    @property
    def n(self) -> int: ...
    @property
    def d(self) -> int: ...

    def take(self, positions: np.ndarray) -> Any:
        """Rows at `positions` (k,), in that order: (k, d) float32 array or CSR."""
        ...


class DenseVectors:
    """Vectors in shards (n_i, d), floats: arrays (usually memory-mapped) or paths of .npy files."""

    def __init__(self, shards: Sequence[np.ndarray | str | Path]) -> None:
        self.shards = list(shards)
        arrays = [opened(shard) for shard in self.shards]
        widths = {rows.shape[1] if rows.ndim == 2 else -1 for rows in arrays}
        if len(widths) != 1 or -1 in widths or any(rows.dtype.kind != "f" for rows in arrays):
            shapes = ", ".join(f"{rows.shape} {rows.dtype}" for rows in arrays[:4])
            raise RequestError(f"vectors must be (n, d) floating-point numbers of one width; got {shapes}")
        self.d = int(widths.pop())
        self.starts = np.cumsum([0, *map(len, arrays)])

    @property
    def n(self) -> int:
        return int(self.starts[-1])

    def take(self, positions: np.ndarray) -> np.ndarray:
        out = np.empty((len(positions), self.d), np.float32)
        for shard, inside, where in by_shard(self.starts, positions):
            rows = opened(self.shards[shard])
            out[where] = rows[inside]
            forget_pages(rows)
        return out


class SparseVectors:
    """Vectors in shards of `scipy.sparse` CSR rows (n_i, d)."""

    def __init__(self, shards: Sequence[Any]) -> None:
        self.shards = list(shards)
        self.d = int(self.shards[0].shape[1]) if self.shards else 0
        self.starts = np.cumsum([0, *(shard.shape[0] for shard in self.shards)])

    @property
    def n(self) -> int:
        return int(self.starts[-1])

    def take(self, positions: np.ndarray) -> Any:
        parts, order = [], [np.zeros(0, np.int64)]
        for shard, inside, where in by_shard(self.starts, positions):
            parts.append(self.shards[shard][inside].astype(np.float32))
            order.append(where)
        return stacked(parts, order, self.d)


def stacked(parts: list[Any], order: list[np.ndarray], d: int) -> Any:
    """CSR rows of `parts`, put at the places that `order` (concatenated) gives them."""
    from scipy.sparse import csr_array, vstack

    if not parts:
        return csr_array((0, d), dtype=np.float32)
    return vstack(parts, format="csr")[np.argsort(np.concatenate(order), kind="stable")]


def vectors_of(given: Any) -> Vectors | None:
    """`given` as `Vectors`: None, a `Vectors`, or an array (n, d)."""
    if given is None or isinstance(given, Vectors):
        return given
    return DenseVectors([np.asarray(given)])


def unit(rows: Any) -> Any:
    """Rows scaled to length 1 in float32, dense or CSR; rows of zeros stay zero."""
    if isinstance(rows, np.ndarray):
        norms = np.linalg.norm(rows.astype(np.float32, copy=False), axis=1, keepdims=True)
        return rows.astype(np.float32, copy=False) / np.maximum(norms, np.float32(1e-12))
    from scipy.sparse import diags_array

    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), np.float64).ravel())
    return (diags_array(1.0 / np.maximum(norms, 1e-12)) @ rows).astype(np.float32).tocsr()


def products(left: Any, right: Any) -> np.ndarray:
    """Inner products (a, b) float32 of rows (a, d) and (b, d), both dense or both CSR."""
    product = left @ right.T
    dense: np.ndarray = product.toarray() if hasattr(product, "toarray") else np.asarray(product)
    return dense


def by_shard(starts: np.ndarray, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(shard, rows inside it, where they stand in `positions`) for the shards that are touched."""
    wanted = np.asarray(positions, np.int64)
    shard_of = np.searchsorted(starts, wanted, side="right") - 1
    for shard in np.unique(shard_of):
        where = np.flatnonzero(shard_of == shard)
        yield int(shard), wanted[where] - starts[shard], where


def forget_pages(array: Any) -> None:
    """Let go of the pages of a mapped file, which count as resident; a pool may be larger than memory."""
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


def opened(shard: np.ndarray | str | Path) -> np.ndarray:
    if isinstance(shard, np.ndarray):
        return shard
    mapped: np.ndarray = np.load(shard, mmap_mode="r", allow_pickle=False)
    return mapped
