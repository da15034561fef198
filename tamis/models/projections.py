"""Random projections of per-row gradients, matrix by matrix, the same on every device, shard and block size.

A projection adds the part of one parameter to the features of many rows, so that the gradient of one
parameter at a time is enough. Its random numbers are a hash (splitmix64; Steele, Lea, Flood 2014) of a
counter, keyed by the seed and the parameter's name: they depend on no device, order, shard or block.

count-sketch   cyclic count sketch (after Charikar, Chen, Farach-Colton 2002): the parameter is cut into
               blocks of d numbers; each number gets a random sign, each block is turned by a random shift,
               and the blocks are added up. Two numbers of a block never meet, others with probability 1 / d,
               so inner products are unbiased with a variance of at most that of a count sketch, (|x|^2 |y|^2
               + <x, y>^2) / d. Linear in the parameters, without a matrix.
rademacher     dense signs / sqrt(d), as in LESS (Xia et al. 2024, arXiv:2402.04333), made anew for each block
               of a parameter. Thousands of times slower; for comparison.
none           all numbers, in the order of the layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

PROJECTIONS = ("count-sketch", "rademacher", "none")
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_BLOCK_BYTES = 32 << 20  # signs of a dense matrix that exist at a time


@dataclass(frozen=True)
class Slot:
    """A parameter of the layout: `offset` is where it stands in the concatenation of all, row-major."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Its numbers."""
        return int(np.prod(self.shape, dtype=np.int64))


class Projection(Protocol):
    """Features of d `dimensions` from gradients."""

    @property
    def dimensions(self) -> int: ...

    def add(self, out: torch.Tensor, slot: Slot, rows: torch.Tensor) -> None:
        """Add the part of one parameter, `rows` (n, p) float32, to the features `out` (n, d) float32."""
        ...


def layout_of(shapes: dict[str, tuple[int, ...]]) -> list[Slot]:
    """Slots of parameters in the order given."""
    slots, offset = [], 0
    for name, shape in shapes.items():
        slots.append(Slot(name, tuple(shape), offset))
        offset += slots[-1].size
    return slots


def projection(name: str, layout: Sequence[Slot], dimensions: int, seed: int, device: str) -> Projection:
    """The projection `name` for parameters of `layout`."""
    if name == "none":
        return Concatenation(layout)
    made: type[CountSketch] | type[Rademacher] = CountSketch if name == "count-sketch" else Rademacher
    return made(dimensions, seed, device)


class Concatenation:
    """No projection: d = all numbers."""

    def __init__(self, layout: Sequence[Slot]) -> None:
        self.dimensions = layout[-1].offset + layout[-1].size if layout else 0

    def add(self, out: torch.Tensor, slot: Slot, rows: torch.Tensor) -> None:
        """See `Projection`."""
        out[:, slot.offset : slot.offset + slot.size] += rows


class Against:
    """Inner products with known gradients in place of features, without error: d = m products with `known`
    (m, P) float32, rows of the layout's numbers, and the square of the row's own length."""

    def __init__(self, known: torch.Tensor) -> None:
        self.known = known
        self.dimensions = len(known) + 1

    def add(self, out: torch.Tensor, slot: Slot, rows: torch.Tensor) -> None:
        """See `Projection`."""
        part = slice(slot.offset, slot.offset + slot.size)
        out[:, :-1].addmm_(rows, self.known[:, part].T)
        out[:, -1] += torch.linalg.vector_norm(rows, dim=1) ** 2


class CountSketch:
    """See the module. Keeps its signs, 4 bytes a parameter."""

    def __init__(self, dimensions: int, seed: int, device: str = "cpu") -> None:
        self.dimensions, self.seed, self.device = dimensions, seed, device
        self._known: dict[str, tuple[torch.Tensor, list[int]]] = {}

    def add(self, out: torch.Tensor, slot: Slot, rows: torch.Tensor) -> None:
        """See `Projection`."""
        signs, shifts = self._of(slot)
        d = self.dimensions
        for block, shift in enumerate(shifts):
            start = block * d
            width = min(d, slot.size - start)
            first = min(width, d - shift)
            stop = start + width
            out[:, shift : shift + first].addcmul_(
                rows[:, start : start + first], signs[start : start + first]
            )
            if first < width:
                out[:, : width - first].addcmul_(rows[:, start + first : stop], signs[start + first : stop])

    def _of(self, slot: Slot) -> tuple[torch.Tensor, list[int]]:
        if slot.name not in self._known:
            key = key_of(self.seed, "count-sketch", slot.name)
            blocks = np.arange(-(-slot.size // self.dimensions), dtype=np.uint64)
            shifts = (
                hashed(key_of(self.seed, "shift", slot.name), blocks) % np.uint64(self.dimensions)
            ).tolist()
            signs = torch.from_numpy(signs_of(key, 0, slot.size)).to(self.device, torch.float32)
            self._known[slot.name] = signs, shifts
        return self._known[slot.name]


class Rademacher:
    """See the module."""

    def __init__(self, dimensions: int, seed: int, device: str = "cpu") -> None:
        self.dimensions, self.seed, self.device = dimensions, seed, device
        self.words = -(-dimensions // 64)  # counters of one parameter number
        self.block = max(1, _BLOCK_BYTES // (4 * 64 * self.words))

    def add(self, out: torch.Tensor, slot: Slot, rows: torch.Tensor) -> None:
        """See `Projection`."""
        for start in range(0, slot.size, self.block):
            stop = min(start + self.block, slot.size)
            out += rows[:, start:stop] @ self.matrix(slot, start, stop)

    def matrix(self, slot: Slot, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the parameter's part of the matrix, (stop - start, d) float32."""
        key = key_of(self.seed, "rademacher", slot.name)
        signs = signs_of(key, start * self.words, (stop - start) * self.words * 64)
        found = torch.from_numpy(signs).view(stop - start, -1)[:, : self.dimensions]
        dense: torch.Tensor = found.to(self.device, torch.float32) * self.dimensions**-0.5
        return dense


def key_of(seed: int, use: str, name: str) -> np.uint64:
    """Key of one parameter's random numbers."""
    found = hashlib.blake2b(f"{seed}\0{use}\0{name}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(found, "little"))


def hashed(key: np.uint64, counters: np.ndarray) -> np.ndarray:
    """splitmix64 of key + (counter + 1) x gamma: uint64 like `counters`."""
    with np.errstate(over="ignore"):
        x = (counters + np.uint64(1)) * _GAMMA + key
        x = (x ^ (x >> np.uint64(30))) * _MIX[0]
        x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    found: np.ndarray = x ^ (x >> np.uint64(31))
    return found


def signs_of(key: np.uint64, first: int, count: int) -> np.ndarray:
    """`count` signs (count,) int8, the bits of the counters from `first` on, 64 a counter."""
    words = hashed(key, np.arange(first, first + -(-count // 64), dtype=np.uint64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=count, bitorder="little")
    return (2 * bits.view(np.int8) - 1).astype(np.int8)
