"""Rows drawn uniformly at random: the baseline that every strategy is compared with.

**Paper.** none: uniform sampling without replacement.
**Definition.** The usable rows in the order of h(seed, row), h a 64-bit hash; the first k.
**Needs.** usable (n,), seed; optionally ids (n,).
**Gives.** positions int64 (k,) in a uniformly random order; no gain, no query; nested: budgets of one seed
are prefixes of one permutation, different seeds are independent.
**Cost.** O(n log n) time, O(n) memory, no pass over features.
**Departs.** Studies draw each budget anew; here one seed nests them, so that a budget curve compares like
with like. With ids, the draw follows the id: shuffling the pool's lines draws the same rows, and a row that
turns unusable moves no other.
**Relations.** random-balanced with every row in one source, up to the salt of the hash.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamis.core.method import Method
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed


@dataclass(frozen=True)
class Config:
    """No parameters but the seed of the request."""


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` usable rows of the permutation of `request.seed`."""
    order = np.argsort(hashed(request.n, request.seed, "random", request.ids), kind="stable")
    return chosen(order[request.usable[order]][:limit])


METHOD = Method("random", select, Config, __doc__ or "", seeded=True)
