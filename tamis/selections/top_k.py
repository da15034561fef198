"""The rows with the largest aggregated score.

**Paper.** none: plain ranking; the aggregates are those compared in Ivison et al. 2025, arXiv:2503.01807.
**Definition.** s_j from S[q, j], then the k largest s_j. "mean": (1/m) sum_q S[q, j]; "max": max_q; "min":
min_q (good for every query); "normalized-mean": mean over q of (S[q, j] - min_i S[q, i]) / (max_i - min_i), i
over the usable rows, a constant query giving 0; "task-mean-max": mean over tasks of the maximum over the
task's queries; "task-mean-mean": mean over tasks of the mean over the task's queries. A score of the rows
alone is one query. `most`, `least`: rows with s_j above or below it are left out; `skip`: the first
int(skip x rows left) of the order are passed over.
**Needs.** similarity S (m, n) or a score (n,), usable (n,); task_of (m,) for the task aggregates.
**Gives.** positions int64 (k,), best first; gain = s_j, higher is better; query = the one that attains "max"
or "min". Ties go to the smaller position, or, with `tie_seed`, to the smaller seeded hash of the row's id
(its position when no ids are given). Nested. Notes count what `most`, `least` and `skip` left out.
**Cost.** One pass of O(n m d), O(n) memory, a sort of n numbers; "normalized-mean" takes two passes.
**Departs.** The released script returns means in ascending order, so that a prefix of it is the worst part;
here the best is first. It divides by zero for a constant query. Sums are in float64, its means exact
rationals.
**Relations.** "max" is doubly-greedy. With one query all aggregates, and round-robin, agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.similarity import Similarity
from tamis.selections._best import Reduced, grouped, reduce_rows, scan
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed, ranked

Aggregate = Literal["mean", "max", "min", "normalized-mean", "task-mean-max", "task-mean-mean"]


@dataclass(frozen=True)
class Config:
    """`aggregate`: how a row's scores become one; `tie_seed`: ties by a seeded hash, not by position; `most`
    and `least`: largest and smallest score that may be chosen; `skip`: share of the order, from the top, that
    is passed over."""

    aggregate: Aggregate = "mean"
    tie_seed: int | None = None
    most: float | None = None
    least: float | None = None
    skip: float = 0.0

    def __post_init__(self) -> None:
        if self.aggregate not in get_args(Aggregate):
            raise ValueError(
                f"aggregate must be one of {', '.join(get_args(Aggregate))}; not {self.aggregate!r}"
            )
        if not 0 <= self.skip < 1:
            raise ValueError(f"skip={self.skip}: expected a share, 0 or more and below 1")
        if self.most is not None and self.least is not None and self.most < self.least:
            raise ValueError(f"most={self.most} is below least={self.least}: no score is between them")


def select(request: Request, limit: int, config: Config) -> Choice:
    """The `limit` rows with the largest aggregate, best first."""
    assert request.similarity is not None  # the family checks `needs`
    reduced = _aggregated(request.similarity, request.task_of, config.aggregate)
    ties = None if config.tie_seed is None else hashed(request.n, config.tie_seed, "tie", request.ids)
    choosable = reduced.choosable
    notes: dict[str, int] = {}
    if config.most is not None:
        choosable = choosable & (reduced.key <= config.most)
        notes["above_most"] = int(reduced.choosable.sum() - choosable.sum())
    if config.least is not None:
        above = choosable & (reduced.key >= config.least)
        notes["below_least"] = int(choosable.sum() - above.sum())
        choosable = above
    if config.skip:
        notes["skipped"] = int(config.skip * int(choosable.sum()))
    skip = notes.get("skipped", 0)
    rows = ranked(reduced.key, choosable, skip + limit, ties)[skip:]
    query = None if reduced.query is None else reduced.query[rows]
    task = None if query is None or request.task_of is None else request.task_of[query]
    notes |= {"passes": reduced.passes, "nan_count": reduced.nan_count}
    return chosen(rows, reduced.key[rows], query, task, **notes)


def _aggregated(similarity: Similarity, task_of: np.ndarray | None, aggregate: Aggregate) -> Reduced:
    if aggregate == "normalized-mean":
        return _normalized_mean(similarity)
    if not aggregate.startswith("task-mean-"):
        return reduce_rows(similarity, aggregate)
    if task_of is None:
        raise RequestError(f"top-k aggregate={aggregate!r} needs task_of, the task of each query (m,)")
    return reduce_rows(grouped(similarity, task_of, aggregate.removeprefix("task-mean-")), "mean")


def _normalized_mean(similarity: Similarity) -> Reduced:
    """Two passes: the range of each query over the choosable rows, then the mean of the scaled scores."""
    low, high = np.full(similarity.m, np.inf), np.full(similarity.m, -np.inf)
    for _, block, good, _ in scan(similarity):
        if good.any():
            seen = block if good.all() else block[:, good]
            low = np.minimum(low, seen.min(axis=1))
            high = np.maximum(high, seen.max(axis=1))
    spread = high - low
    varies = spread > 0
    key, choosable, nan_count = np.full(similarity.n, np.nan), np.zeros(similarity.n, bool), 0
    for start, block, good, not_finite in scan(similarity):
        nan_count += not_finite
        scaled = (block[varies].astype(np.float64) - low[varies, None]) / spread[varies, None]
        span = slice(start, start + block.shape[1])
        key[span] = np.where(good, scaled.sum(axis=0) / similarity.m, np.nan)
        choosable[span] = good
    return Reduced(key, choosable, None, nan_count, passes=2)


def top_k_slow(
    scores: np.ndarray, budget: int, aggregate: Aggregate, task_of: np.ndarray | None = None
) -> list[int]:
    """The definition, row by row from finite scores (m, n), in exact rational arithmetic. For tests."""
    from fractions import Fraction as F

    m, n = scores.shape
    exact = [[F(float(x)) for x in row] for row in scores]
    if aggregate == "normalized-mean":
        exact = [
            [(x - min(row)) / (max(row) - min(row)) if max(row) > min(row) else F(0) for x in row]
            for row in exact
        ]
    tasks = (
        [[q] for q in range(m)] if task_of is None else [np.flatnonzero(task_of == t) for t in set(task_of)]
    )
    key: list[F] = []
    for j in range(n):
        column = [row[j] for row in exact]
        if aggregate in ("max", "min"):
            key.append(max(column) if aggregate == "max" else min(column))
        elif aggregate == "task-mean-max":
            key.append(sum((max(column[q] for q in t) for t in tasks), F(0)) / len(tasks))
        elif aggregate == "task-mean-mean":
            key.append(sum((sum((column[q] for q in t), F(0)) / len(t) for t in tasks), F(0)) / len(tasks))
        else:
            key.append(sum(column, F(0)) / m)
    return sorted(range(n), key=lambda j: (-key[j], j))[:budget]


METHOD = Method("top-k", select, Config, __doc__ or "", needs=("similarity",))
