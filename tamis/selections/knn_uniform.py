"""Mass spread evenly over each query's nearest rows, as many as the trade with transport cost allows.

**Paper.** Liu, Karbasi, Rekatsinas 2024, TSDS: Data Selection for Task-Specific Model Finetuning,
arXiv:2410.11303; constants of arXiv:2602.14696 (2026).
**Definition.** Distances d = 1 - S, d[q,1] <= d[q,2] <= … those of query q. K starts at 1 and grows by one
while K < L and (alpha / c) sum_q sum_{k<=K} (d[q,K+1] - d[q,k]) < (1 - alpha) m, where L = min(neighbours,
rows). Mass p_j = #{q : j among the K nearest of q} / (K m). Rows in order of p, then of their mean similarity
to all queries, then of position. `compatible`: p, then position.
**Needs.** similarity S (m, n) of cosines (only differences count), usable (n,); optionally task_of (m,).
**Gives.** positions int64 (k,); gain = p_j, 0 for rows that are in nobody's K nearest; query = the one with
the highest S among those that have the row in their K nearest, the first among ties, -1 at gain 0. Nested.
Notes: K, rows with mass, levels (distinct positive masses), and whether K ended at L.
**Cost.** One pass of O(n m d) with O(m L) memory; the means are taken in the same pass.
**Departs.** The released code breaks ties of p by position alone. At alpha = 0.01, c = 5 K ends at L as a
rule, p then has at most m values, and which rows of a level are taken is an accident of the file's order:
hence the mean similarity. Rows without mass follow by mean similarity, not by position. Equal masses are
compared as counts, not as floats that differ in the last bit. Rows that tie with a query's K-th place enter
by position; the released code's sort is unstable. Queries weigh the same, whatever their task.
**Relations.** knn-kde with sigma = 0 has the same p. At alpha = 1 K is 1: each query's nearest row. Where K
reaches the whole pool, as it does below some thousand rows at the published constants, all masses are equal
and the order is that of top-k mean (note levels = 1): raise alpha or lower `neighbours` there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tamis.core.method import Method
from tamis.core.similarity import ArraySimilarity, Similarity
from tamis.selections._best import Lists, best, column_means, reduce_rows
from tamis.selections._choice import Choice, Request, chosen


@dataclass(frozen=True)
class Config:
    """`alpha` in [0, 1]: weight of transport cost against evenness; `c`: its divisor; `neighbours`: the most
    rows of one query; `compatible`: ties by position, as the released code."""

    alpha: float = 0.01
    c: float = 5.0
    neighbours: int = 5000
    compatible: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, not {self.alpha}")
        if not 0 < self.c < float("inf"):
            raise ValueError(f"c must be above 0, not {self.c}")
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {self.neighbours}")


def select(request: Request, limit: int, config: Config) -> Choice:
    """The `limit` rows with the largest mass."""
    assert request.similarity is not None  # the family checks `needs`
    lists, means = _read(request.similarity, config.neighbours)
    longest = int(lists.length.min())
    if longest == 0:
        return chosen([], nan_count=lists.nan_count, passes=1)
    k = neighbours_used(lists.scores[:, :longest], config.alpha, config.c)
    count, query = _spread(lists, k, request.n)
    rows = np.flatnonzero(~np.isnan(means))
    second = np.zeros(len(rows)) if config.compatible else -means[rows]
    picks = rows[np.lexsort((second, -count[rows]))][:limit]
    who = query[picks]
    task = None if request.task_of is None else np.where(who >= 0, request.task_of[who], -1)
    return chosen(
        picks,
        count[picks] / (k * request.similarity.m),
        who,
        task,
        passes=1,
        nan_count=lists.nan_count,
        K=[k],
        K_at_its_limit=int(k == longest),
        rows_with_mass=int((count > 0).sum()),
        levels=[len(np.unique(count[count > 0]))],
    )


def neighbours_used(scores: np.ndarray, alpha: float, c: float) -> int:
    """K of the definition, from each query's `scores` (m, L), best first, L >= 1."""
    m = len(scores)
    steps = -np.diff(scores.astype(np.float64), axis=1).sum(axis=0)  # sum_q d[q,k+1] - d[q,k]
    # sum_{k<=K} (d[K+1] - d[k]) grows by K (d[K+1] - d[K]), so it never falls.
    gaps = np.cumsum(np.arange(1, len(steps) + 1) * steps)
    return 1 + int(np.count_nonzero(alpha / c * gaps < (1 - alpha) * m))


def _read(similarity: Similarity, depth: int) -> tuple[Lists, np.ndarray]:
    """Each query's nearest rows, and the means (n,) float64, NaN where a row may not be chosen."""
    if isinstance(similarity, ArraySimilarity):
        return best(similarity, depth), reduce_rows(similarity, "mean").key
    watched = _Watched(similarity)
    return best(watched, depth), watched.means


class _Watched:
    """A similarity whose rows' means are kept while somebody else reads its blocks."""

    def __init__(self, inner: Similarity) -> None:
        self.inner = inner
        self.means = np.full(inner.n, np.nan)

    @property
    def m(self) -> int:
        return self.inner.m

    @property
    def n(self) -> int:
        return self.inner.n

    @property
    def usable(self) -> np.ndarray:
        return self.inner.usable

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for start, block in self.inner.blocks():
            span = slice(start, start + block.shape[1])
            with np.errstate(invalid="ignore", over="ignore"):
                self.means[span] = column_means(block)
            bad = ~(self.usable[span] & np.isfinite(self.means[span]))
            self.means[span][bad] = np.nan
            yield start, block

    def columns(self, positions: np.ndarray) -> np.ndarray:
        return self.inner.columns(positions)

    def restrict(self, mask: np.ndarray) -> Similarity:
        return self.inner.restrict(mask)


def _spread(lists: Lists, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """How many queries have a row among their `k` nearest, and which of them likes it best; (n,) int32."""
    count, query = np.zeros(n, np.int32), np.full(n, -1, np.int32)
    top = np.full(n, -np.inf)
    for q in range(len(lists.rows)):
        rows, scores = lists.rows[q, :k], lists.scores[q, :k]
        count[rows] += 1
        better = scores > top[rows]
        top[rows[better]] = scores[better]
        query[rows[better]] = q
    return count, query


def knn_uniform_slow(
    scores: np.ndarray, budget: int, config: Config | None = None
) -> tuple[list[int], list[float], int]:
    """The definition, read aloud: rows, masses p (n,) and K, from finite scores (m, n). For tests."""
    config = config or Config()
    m, n = scores.shape
    near = [sorted(range(n), key=lambda j: (-scores[q, j], j)) for q in range(m)]
    d = [[1.0 - float(scores[q, j]) for j in near[q]] for q in range(m)]
    k, longest = 1, min(config.neighbours, n)
    while k < longest:
        cost = sum(d[q][k] - d[q][i] for q in range(m) for i in range(k))
        if config.alpha / config.c * cost >= (1 - config.alpha) * m:
            break
        k += 1
    mass = [round(sum(j in near[q][:k] for q in range(m)) / (k * m), 12) for j in range(n)]
    mean = [0.0 if config.compatible else float(scores[:, j].astype(np.float64).mean()) for j in range(n)]
    return sorted(range(n), key=lambda j: (-mass[j], -mean[j], j))[:budget], mass, k


METHOD = Method("knn-uniform", select, Config, __doc__ or "", needs=("similarity",))
