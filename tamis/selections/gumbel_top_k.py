"""Rows drawn without replacement, each in proportion to the exponential of its score.

**Paper.** Xie, Santurkar, Ma, Liang 2023, Data Selection for Language Models via Importance Resampling, arXiv
2302.03169; Kool, van Hoof, Welling 2019, Stochastic Beams and Where to Find Them, arXiv:1903.06059.
**Definition.** s_j = the row's score, or its mean over the queries; u_j in (0, 1) from a hash of the seed and
the row; g_j = -ln(-ln u_j), a standard Gumbel number; the k largest s_j + g_j, largest first. The first row
is j with probability exp(s_j) / sum_i exp(s_i), each next one likewise among those left.
**Needs.** similarity: a score (n,), a natural logarithm of weights, or S (m, n); usable (n,); seed;
optionally ids.
**Gives.** positions int64 (k,); gain = s_j + g_j, falling; query = -1. Nested: budgets of one seed are
prefixes of one draw. Ties go to the smaller position.
**Cost.** O(n log n) time, O(n) memory, no pass over features.
**Departs.** Released, the numbers come from a global generator that is not seeded, and the rows come back in
the order of the file. Here they follow the row's id, so that neither the order of the pool nor a row that
joins it changes those of the others.
**Relations.** Strategy `dsir`. With scores that differ by much more than 1 it is top-k; with equal scores,
random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamis.core.method import Method
from tamis.selections._best import reduce_rows
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed, ranked


@dataclass(frozen=True)
class Config:
    """No parameters but the seed of the request."""


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` rows of the draw of `request.seed`."""
    assert request.similarity is not None  # the family checks `needs`
    reduced = reduce_rows(request.similarity, "mean")
    key = reduced.key + gumbel(request.n, request.seed, request.ids)
    rows = ranked(key, reduced.choosable, limit)
    return chosen(rows, key[rows], passes=reduced.passes, nan_count=reduced.nan_count)


def gumbel(n: int, seed: int, ids: np.ndarray | None = None) -> np.ndarray:
    """Standard Gumbel numbers (n,) float64, one a row, by its id when `ids` are given."""
    # 52 bits and a half, so that a number is neither 0 nor rounded to 1.
    uniform = ((hashed(n, seed, "gumbel", ids) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    found: np.ndarray = -np.log(-np.log(uniform))
    return found


METHOD = Method("gumbel-top-k", select, Config, __doc__ or "", needs=("similarity",), seeded=True)
