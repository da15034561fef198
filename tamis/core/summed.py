"""Weighted sums of similarities, such as one for each checkpoint of a training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tamis.core.similarity import FeatureSimilarity, usable_mask
from tamis.core.vectors import Vectors


@dataclass(frozen=True)
class Part:
    """`weight` times a similarity of the whole pool, or of the rows at `places` (k,) alone, rising."""

    weight: float
    similarity: FeatureSimilarity
    places: np.ndarray | None = None


class SummedSimilarity:
    """Sum of parts, each of the same m queries. The first is of the whole pool; where a part is of some rows
    only, no other row is usable. `keeps_vectors`: whether the parts' features are the rows' vectors."""

    def __init__(
        self, parts: Sequence[Part], usable: np.ndarray | None = None, keeps_vectors: bool = True
    ) -> None:
        self.parts = list(parts)
        first = self.parts[0].similarity
        if self.parts[0].places is not None or len({part.similarity.m for part in self.parts}) != 1:
            raise ValueError("the first part must be of the whole pool, and all of the same queries")
        self.usable = usable_mask(usable, first.n)
        for part in self.parts:
            there = np.zeros(first.n, bool)
            there[slice(None) if part.places is None else part.places] = True
            self.usable &= there
        self.keeps_vectors = keeps_vectors

    @property
    def m(self) -> int:
        return self.parts[0].similarity.m

    @property
    def n(self) -> int:
        return self.parts[0].similarity.n

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        whole = [part for part in self.parts if part.places is None]
        some = [(part, part.places) for part in self.parts if part.places is not None]
        streams = [part.similarity.restrict(self.usable) for part in whole]
        rows = min(stream.block_rows for stream in streams)  # features of another width have other blocks
        for stream in streams:
            stream.block_rows = rows
        for blocks in zip(*(stream.blocks() for stream in streams), strict=True):
            start = blocks[0][0]
            total = sum(part.weight * block for part, (_, block) in zip(whole, blocks, strict=True))
            for part, places in some:
                low, high = np.searchsorted(places, [start, start + total.shape[1]])
                inside = part.similarity.columns(np.arange(low, high))
                total[:, places[low:high] - start] += part.weight * inside
            yield start, total

    def columns(self, positions: np.ndarray) -> np.ndarray:
        total = np.zeros((self.m, len(positions)), np.float32)
        for part in self.parts:
            at, there = _places(part, positions)
            total[:, there] += part.weight * part.similarity.columns(at)
        return total

    def restrict(self, mask: np.ndarray) -> SummedSimilarity:
        fewer = copy.copy(self)
        fewer.usable = self.usable & mask
        return fewer

    @property
    def vectors(self) -> Vectors | None:
        """Vectors whose inner products are the sums of the parts' (those of a row that a part lacks have
        zeros there), or None where only similarities were kept."""
        return JoinedVectors(self.parts) if self.keeps_vectors else None


class JoinedVectors:
    """The parts' vectors side by side, each scaled by the root of its weight."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = [part for part in parts if part.weight > 0]
        self.n = parts[0].similarity.n
        self._edges = np.cumsum([0, *(part.similarity.vectors.d for part in self.parts)])
        self.d = int(self._edges[-1])

    def take(self, positions: np.ndarray) -> np.ndarray:
        out = np.zeros((len(positions), self.d), np.float32)
        for part, (low, high) in zip(self.parts, pairwise(self._edges), strict=True):
            at, there = _places(part, positions)
            out[there, low:high] = np.float32(part.weight**0.5) * part.similarity.vectors.take(at)
        return out


def _places(part: Part, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows in the part, and the mask (k,) of the positions that it has."""
    wanted = np.asarray(positions, np.int64)
    if part.places is None:
        return wanted, np.ones(len(wanted), bool)
    at = np.minimum(np.searchsorted(part.places, wanted), len(part.places) - 1)
    there = part.places[at] == wanted
    return at[there], there
