"""TSDS's assignment: how far each query reaches into its nearest rows, and what mass each row gets."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

MASS_DECIMALS = 12


@dataclass(frozen=True, eq=False)
class Reach:
    """`s`: the count at which the assignment ended; `used` (m,): ranks of each query below it.

    `stopped`: whether the test ended it; if not, every query has used all ranks it may.
    """

    s: float
    used: np.ndarray
    stopped: bool


def reach(distance: np.ndarray, density: np.ndarray, alpha: float, c: float) -> Reach:
    """Let counts grow, smallest (count, rank, query) first, until cost outweighs deviation.

    `distance` and `density` (m, K) float64 of each query's nearest rows, nearest first, K >= 2. Query j has
    reached rank k at the count sum of 1 / density over its ranks up to k; its cost there is distance[k + 1] ×
    count - sum of distance / density. It ends at the first event with alpha / c × total cost >= (1 - alpha) ×
    m. The last rank is never used: its successor's distance is not known.

    Every query's events are in order already, so one stable sort of all of them visits what a heap would; the
    running totals are summed in the same order as there, so the end is the same to the bit.
    """
    m = len(distance)
    count = np.cumsum(1.0 / density, axis=1)[:, :-1]
    cost = distance[:, 1:] * count - np.cumsum(distance / density, axis=1)[:, :-1]
    # By rank, then query: a stable sort on the counts then breaks ties by (rank, query).
    order = np.argsort(count.T.ravel(), kind="stable")
    steps = np.zeros((len(order), 2))
    steps[m:, 0] = -cost.T.ravel()[: len(order) - m]
    steps[:, 1] = cost.T.ravel()
    total = np.cumsum(steps[order].ravel())[1::2]
    ends = np.flatnonzero(alpha / c * total >= (1.0 - alpha) * m)
    at = int(ends[0]) if len(ends) else len(order)
    s = float(count.T.ravel()[order[min(at, len(order) - 1)]])
    return Reach(s, np.bincount(order[:at] % m, minlength=m), bool(len(ends)))


def masses(density: np.ndarray, found: Reach, compatible: bool = False) -> np.ndarray:
    """(m, K) mass of each query's nearest rows; each query gives 1 / m.

    A used row gets 1 / (m × s × density). What is left goes to the next row, which the query has reached in
    part. A query that has used all ranks it may has no next row: its mass is spread over those it has used,
    in the same proportions. `compatible` does as the published code: there too the rest goes to the last
    row, and a query that the assignment never came to has used its first.
    """
    m, depth = density.shape
    used = np.maximum(found.used, 1) if compatible else found.used
    taken = np.arange(depth) < used[:, None]
    mass = np.where(taken, 1.0 / m / found.s / density, 0.0)
    rest = np.maximum(1.0 / m - np.cumsum(mass, axis=1)[:, -1], 0.0)  # added up in order, as published
    spent = (used == depth - 1) & (not compatible)
    mass[spent] *= (1.0 / m / mass[spent].sum(axis=1))[:, None]
    open_ = np.flatnonzero(~spent)
    mass[open_, used[open_]] = rest[open_]
    return mass


def reach_slow(distance: np.ndarray, density: np.ndarray, alpha: float, c: float) -> Reach:
    """The heap that `reach` stands for. For tests."""
    m, depth = distance.shape
    heap = [(1.0 / density[j, 0], 0, j) for j in range(m)]
    heapq.heapify(heap)
    below = [distance[j, 0] / density[j, 0] for j in range(m)]
    cost, used, total, s = [0.0] * m, np.zeros(m, np.int64), 0.0, 0.0
    while heap:
        s, k, j = heapq.heappop(heap)
        total -= cost[j]
        cost[j] = distance[j, k + 1] * s - below[j]
        total += cost[j]
        if alpha / c * total >= (1.0 - alpha) * m:
            return Reach(s, used, True)
        used[j] = k + 1
        if k < depth - 2:
            below[j] += distance[j, k + 1] / density[j, k + 1]
            heapq.heappush(heap, (s + 1.0 / density[j, k + 1], k + 1, j))
    return Reach(s, used, False)
