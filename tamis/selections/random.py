"""Rows drawn uniformly at random: the baseline that every strategy is compared with.

**Paper.** none: uniform sampling without replacement. `most_per_source`: the cap on FLAN's tasks (50 rows)
in Diddee and Ippolito 2024, Chasing Random, arXiv:2410.15225.
**Definition.** The usable rows in the order of h(seed, row), h a 64-bit hash; the first k. With
`most_per_source` c only the first c of every source in that order.
**Needs.** usable (n,), seed; optionally ids (n,); with `most_per_source` sources (n,).
**Gives.** positions int64 (k,) in a uniformly random order; no gain, no query; nested: budgets of one seed
are prefixes of one permutation, different seeds are independent.
**Cost.** O(n log n) time, O(n) memory, no pass over features.
**Departs.** Studies draw each budget anew; here one seed nests them, so that a budget curve compares like
with like. With ids, the draw follows the id: shuffling the pool's lines draws the same rows, and a row that
turns unusable moves no other.
**Relations.** random-balanced with every row in one source, up to the salt of the hash; random-redrawn draws
again where other subsets hold too many of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed


@dataclass(frozen=True)
class Config:
    """`most_per_source`: rows of one source that may be drawn, None for any number."""

    most_per_source: int | None = None

    def __post_init__(self) -> None:
        if self.most_per_source is not None and self.most_per_source < 1:
            raise ValueError(f"most_per_source={self.most_per_source!r}: expected 1 or more")


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` usable rows of the permutation of `request.seed`."""
    order = np.argsort(hashed(request.n, request.seed, "random", request.ids), kind="stable")
    order = order[request.usable[order]]
    if config.most_per_source is not None:
        if request.sources is None:
            raise RequestError("random with most_per_source needs sources=; none were given")
        order = order[_number_in_source(request.sources[order]) < config.most_per_source]
    return chosen(order[:limit])


def _number_in_source(sources: np.ndarray) -> np.ndarray:
    """(n,) how many entries before each one are of the same source."""
    grouped = np.argsort(sources, kind="stable")
    _, begins, sizes = np.unique(sources[grouped], return_index=True, return_counts=True)
    number = np.empty(len(sources), np.int64)
    number[grouped] = np.arange(len(sources)) - np.repeat(begins, sizes)
    return number


METHOD = Method("random", select, Config, __doc__ or "", seeded=True)
