"""The rows that receive the most mass when every query sends out the same and nearness is rewarded.

**Paper.** Unbalanced optimal transport as a selection: arXiv:2602.14696 (2026); the algorithm: Chizat, Peyré,
Schmitzer, Vialard 2018, Scaling Algorithms for Unbalanced Optimal Transport Problems, arXiv:1607.05816.
**Definition.** Cost C = (1 - S) / 2, S cut off at -1 and 1; a = 1/m, b = 1/n. The plan T minimises <T, C> +
eps KL(T | a b') + m2 KL(T'1 | b) with T1 = a. Rows in order of their mass (T'1)_j. Solved by u = a / (G v), v
= (b / G'u)^f, G = exp(-C / eps) a b', f = m2 / (m2 + eps).
**Needs.** similarity S (m, n) of cosines, usable (n,); optionally task_of (m,).
**Gives.** positions int64 (k,), ties to the smaller position; gain = mass, all masses sum to 1; query = the
one that sends the row the most. Nested. Notes: scores cut off (a score beyond 1.01 is refused), and a bound
on the error of a mass.
**Cost.** Two passes of O(n m d) with an exponential an entry: one for v = 1, which is nearly right, one for
the masses there. The equations are then solved for K = min(n, 2^24 / m) rows with the most mass, the others'
part of the sums being carried on; O(m K + n) memory. A third pass follows only if the bound exceeds
`tolerance`, or if the budget reaches rows whose place the bound leaves open. Up to K rows the solution is
exact. Measured with K = 200 of 1500 rows: bound 4e-8 to 2e-7 after two passes, true error half of that;
below 1e-9 after three.
**Departs.** The released code holds m × n numbers in float64, clips nothing, stops at a mean change of 1e-6
(masses 3e-8 off on its own fixtures), and sorts ties in no order. Every query sends 1/m, whatever its task.
**Relations.** m2 = 0: (1/m) sum_q of the softmax of S[q, .] / (2 eps). eps is not free of scale: 0.01 suits
cosines that differ by tenths; a narrower range needs a smaller eps, or the choice tends to that of the mean;
as eps falls it tends to each query's nearest row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamis.core.method import Method
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import ranked
from tamis.selections._sinkhorn import Kernel, first_pass, near_pass, settle, whole_pass

LIST_ENTRIES = 1 << 24
_FLOAT_NOISE = 1e-3
"""Widest difference, in log mass, between the same row read in a block and read alone."""


@dataclass(frozen=True)
class Config:
    """`eps` > 0: temperature, in units of cost; `m2` >= 0: pull of the rows' masses to evenness;
    `tolerance` > 0: largest error of a mass, absolute."""

    eps: float = 0.01
    m2: float = 1e-4
    tolerance: float = 1e-7

    def __post_init__(self) -> None:
        for name in ("eps", "tolerance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.m2 < float("inf"):
            raise ValueError(f"m2 must be at least 0 and finite, not {self.m2}")


@dataclass
class Solution:
    """log s (n,) at `log_u`; right for all rows if `whole`, else for those `near` only."""

    log_s: np.ndarray
    log_u: np.ndarray
    near: np.ndarray
    above: float
    error: float
    passes: int


def select(request: Request, limit: int, config: Config) -> Choice:
    """The `limit` rows with the largest mass."""
    similarity = request.similarity
    assert similarity is not None  # the family checks `needs`
    f = config.m2 / (config.m2 + config.eps)
    kernel, log_u, nan_count = first_pass(similarity, config.eps)
    if not kernel.choosable.any():
        return chosen([], passes=1, nan_count=nan_count)
    found = solve(kernel, log_u, f, config.tolerance)
    limit = min(limit, int(kernel.choosable.sum()))
    order = _settled_order(found, limit)
    if order is None:
        exact = found.log_s[found.near]
        found.log_s = whole_pass(kernel, found.log_u, f)[0]
        # The rows at hand keep the numbers that smaller budgets saw.
        found.log_s[found.near] = exact
        found.passes += 1
        order = ranked(found.log_s, kernel.choosable, limit)
    gain = np.exp((1 - f) * found.log_s[order]) / similarity.m
    query = np.concatenate(
        [
            (kernel.logits(kernel.columns(order[start : start + 1024])) + found.log_u).argmax(axis=1)
            for start in range(0, len(order), 1024)
        ]
    ).astype(np.int32)
    task = None if request.task_of is None else request.task_of[query]
    notes = {"passes": found.passes, "nan_count": nan_count, "clipped": kernel.clipped}
    return chosen(order, gain, query, task, **notes, mass_error=[found.error])


def solve(kernel: Kernel, log_u: np.ndarray, f: float, tolerance: float) -> Solution:
    """Pass by pass to the solution, until the bound on a mass's error is within `tolerance`."""
    depth = max(1, LIST_ENTRIES // len(log_u))
    near, scores, passes = np.empty(0, np.int64), np.empty(0), 1
    while True:
        log_s, sums = whole_pass(kernel, log_u, f)
        passes += 1
        if not len(near):
            near = np.sort(ranked(log_s, kernel.choosable, depth))
            scores = kernel.columns(near)
        far = kernel.choosable.copy()
        far[near] = False
        rest = np.zeros(len(log_u))
        if far.any():
            rest = np.maximum(sums - near_pass(kernel, scores, log_u, f)[1], 0.0)
        settled, relative = settle(kernel, scores, rest, log_u, f)
        change = settled - log_u
        above = float(log_s[far].max() + change.max()) + relative if far.any() else -np.inf
        log_s[:] = -np.inf
        log_s[near] = near_pass(kernel, scores, settled, f)[0]
        error = relative * float(np.exp((1 - f) * log_s.max())) / len(log_u)
        if error <= tolerance or np.ptp(change) <= 1e-9:
            return Solution(log_s, settled, near, above, error, passes)
        log_u = settled


def _settled_order(found: Solution, limit: int) -> np.ndarray | None:
    """The first `limit` rows, or None if rows that were not followed could be among them."""
    order = ranked(found.log_s, found.log_s > -np.inf, limit)
    if len(order) < limit or found.log_s[order[-1]] <= found.above + _FLOAT_NOISE:
        return None
    return order


def transport_slow(scores: np.ndarray, eps: float = 0.01, m2: float = 1e-4) -> np.ndarray:
    """Masses (n,) by the updates of the definition to their fixed point, from scores (m, n). For tests."""
    m, n = scores.shape
    cost = (1 - np.clip(scores.astype(np.float64), -1, 1)) / 2
    kernel = np.exp(-cost / eps) / (m * n)
    f = m2 / (m2 + eps)
    v = np.ones(n)
    for _ in range(200):
        u = (1 / m) / (kernel @ v)
        v = ((1 / n) / (kernel.T @ u)) ** f
    plan = ((1 / m) / (kernel @ v))[:, None] * kernel * v
    mass: np.ndarray = plan.sum(axis=0)
    return mass


METHOD = Method("transport", select, Config, __doc__ or "", needs=("similarity",))
