"""Rows drawn uniformly at random from those that no given subset holds.

**Paper.** "Strict Random" of the study that the general methods come from, Diddee and Ippolito 2024, Chasing
Random, arXiv:2410.15225.
**Definition.** The usable rows outside `exclude`, the union of given subsets, in the order of h(seed, row), h
a 64-bit hash; the first k.
**Needs.** exclude: positions of the union; usable (n,), seed; optionally ids (n,).
**Gives.** positions int64 (k,) in a uniformly random order; no gain, no query; nested. Notes: rows excluded,
rows left. Fewer rows left than the budget is an error that says the numbers.
**Cost.** O(n log n) time, O(n) memory, no pass over features.
**Departs.** The paper excludes every strategy's 10,000 rows at every budget and does not say what it did
where fewer rows were left than asked for; `tamis select` excludes each strategy's largest subset.
**Relations.** random, of the same seed, with the excluded rows passed over. It is a draw from a depleted
pool, so it is not another draw of random and must not be averaged with it.
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
    """The first `limit` rows of the permutation of `request.seed` that are usable and not excluded."""
    assert request.exclude is not None  # the family checks `needs`
    order = np.argsort(hashed(request.n, request.seed, "random", request.ids), kind="stable")
    return chosen(order[request.usable[order]][:limit])


METHOD = Method("strict-random", select, Config, __doc__ or "", seeded=True, needs=("exclude",))
