"""Of every k-means cluster of the pool a few rows of middle score, spread over the order of the pool.

**Paper.** Li, Zhang, Li, Chen, Chen, Cheng, Wang, Zhou, Xiao 2023, From Quantity to Quality: Boosting LLM
Performance with Self-Guided Data Selection for Instruction Tuning, arXiv:2308.12032; the rule of the middle
is in its released code alone.
**Definition.** Lloyd's k-means (scikit-learn, k-means++, the best of `restarts`) on the vectors as they are
stored. Of a cluster, the rows with p_low <= s <= p_high, percentiles of its scores with linear interpolation,
both ends included; of those in the order of the pool, every floor(b / n)-th from the first, n =
`per_cluster`, b their number. A cluster with fewer than n rows: all of it; fewer than n in the band: all of
the band. Clusters, larger first (then by their smallest row), take turns, one row each.
**Needs.** vectors (n, d); scores (n,), or S (m, n) of which the mean counts; usable (n,), seed.
**Gives.** positions int64 (k,), at most clusters x per_cluster, so a larger budget cannot be filled; gain =
the score; query = -1; nested. Notes: rows in all, clusters taken whole, clusters without rows, rounds of
k-means.
**Cost.** `restarts` times O(rows x clusters x d) a round; O(sample x d + clusters x d + n) memory. Needs
scikit-learn (extra lm).
**Departs.** The published rows come cluster by cluster; here clusters take turns, so that a smaller budget
has rows of all of them. Fitted on `sample` rows where there are more; then every row joins its nearest
centre. Sums inside k-means depend on the number of threads in their last bits.
**Relations.** The first stage of `cherry`, with the mean hidden state of the prompt and its perplexity; any
increasing function of the score gives the same rows. cluster-quota takes the best of each cluster instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.core.method import Method
from tamis.selections._best import reduce_rows
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._kmeans import StoredRows, clustered
from tamis.selections._order import hashed


@dataclass(frozen=True)
class Config:
    """`clusters`, rows `per_cluster`, percentiles `low` and `high` of the band, `restarts` of k-means, and
    the most rows (`sample`) that centres are fitted on."""

    clusters: int = 100
    per_cluster: int = 10
    low: float = 25.0
    high: float = 75.0
    restarts: int = 10
    sample: int = 50_000

    def __post_init__(self) -> None:
        for name in ("clusters", "per_cluster", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected 1 or more")
        if not 0 <= self.low <= self.high <= 100:
            raise ValueError(f"low={self.low}, high={self.high}: expected 0 <= low <= high <= 100")
        if self.sample < self.clusters:
            raise ValueError(f"sample must hold at least one row a cluster; got {self.sample!r}")


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` middle rows, clusters in turn."""
    assert request.vectors is not None and request.similarity is not None  # the family checks `needs`
    reduced = reduce_rows(request.similarity, "mean")
    rows = np.flatnonzero(reduced.choosable)
    facts: dict[str, Any] = {"passes": reduced.passes, "nan_count": reduced.nan_count}
    if not len(rows):
        return chosen([], **facts)
    hashes = hashed(request.n, request.seed, "cluster-middle", request.ids)[rows]
    labels, made = clustered(
        StoredRows(request.vectors, rows),
        hashes,
        request.seed,
        config.clusters,
        config.sample,
        config.restarts,
    )
    found = middle(labels, reduced.key[rows], config.per_cluster, config.low, config.high)
    sizes = np.bincount(labels)
    turn = np.concatenate([np.arange(len(part)) for part in found])
    cluster = np.repeat(np.arange(len(found)), [len(part) for part in found])
    picks = rows[np.concatenate(found)[np.lexsort((cluster, turn))]]
    made |= {"middle_rows": len(picks), "whole_clusters": int((sizes < config.per_cluster).sum())}
    return chosen(picks[:limit], reduced.key[picks[:limit]], **facts, **made)


def middle(labels: np.ndarray, scores: np.ndarray, n: int, low: float, high: float) -> list[np.ndarray]:
    """Rows of every cluster, by its number: at most `n` of those between the percentiles of its scores.

    `labels` (r,) cluster of each row, `scores` (r,); rows are numbers below r, in ascending order.
    """
    order = np.argsort(labels, kind="stable")
    found = []
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) >= n:
            own = scores[members]
            least, most = np.percentile(own, [low, high])
            members = members[(own >= least) & (own <= most)]
            members = members[:: max(len(members) // n, 1)][:n]
        found.append(members)
    return found


def cost_estimate(queries: int, rows: int, width: int, config: Config, limit: int) -> dict[str, float]:
    """Floating-point operations of k-means, taken to need 30 rounds from each start; bytes of the sample."""
    fitted = min(rows, config.sample)
    once = 2.0 * fitted * min(config.clusters, fitted) * width
    return {"flops": 30 * config.restarts * once, "bytes": 4.0 * fitted * width}


def middle_slow(labels: np.ndarray, scores: np.ndarray, n: int, low: float, high: float) -> list[list[int]]:
    """The definition of `middle`, percentiles in exact arithmetic. For tests."""
    from fractions import Fraction

    def percentile(values: list[Fraction], share: Fraction) -> Fraction:
        at = share * (len(values) - 1)
        below = int(at)
        above = min(below + 1, len(values) - 1)
        return values[below] + (at - below) * (values[above] - values[below])

    found = []
    for cluster in sorted(set(labels.tolist())):
        members = [row for row in range(len(labels)) if labels[row] == cluster]
        if len(members) >= n:
            exact = sorted(Fraction(float(scores[row])) for row in members)
            least, most = (percentile(exact, Fraction(share) / 100) for share in (low, high))
            members = [row for row in members if least <= Fraction(float(scores[row])) <= most]
            if len(members) >= n:
                members = members[:: len(members) // n][:n]
        found.append(members)
    return found


METHOD = Method("cluster-middle", select, Config, __doc__ or "", needs=("similarity", "vectors"), seeded=True)
