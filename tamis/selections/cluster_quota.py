"""k-means clusters of the pool share the budget; inside a cluster the best scored rows come first.

**Paper.** k-means over embeddings with a number of rows from each cluster: Li et al. 2024, From Quantity to
Quality (Cherry), arXiv:2308.12032, section 2; k-means++: Arthur and Vassilvitskii 2007.
**Definition.** Lloyd's k-means (scikit-learn, k-means++, one start, at most 300 rounds) on rows scaled to
length 1, fitted on `sample` usable rows drawn by the seed when there are more; then every usable row joins
its nearest centre, ties to the first. Clusters stand in order of size, larger first, then of their smallest
row. quota="equal": clusters take turns, one row each, until they are empty (a full level for all, the rest to
the first: water-filling); "proportional": after h picks every cluster has had floor or ceil of its share of
h. Inside a cluster: larger mean S (score, or similarity to the queries), ties to the smaller row; without
scores a seeded hash of the row (of its id when there are ids).
**Needs.** vectors (n, d), usable (n,), seed; optionally similarity S (m, n), ids.
**Gives.** positions int64 (k,); gain = mean S, NaN without scores; query = -1; nested. Notes: rows that the
clusters were fitted on, clusters that got no row, rounds of k-means.
**Cost.** O(sample × clusters × d) a round, one pass of O(n × clusters × d) to assign; O(sample × d + clusters
× d + n) memory, where centres are dense and d counts, for sparse rows, the columns that occur in the sample.
Needs scikit-learn (extra lm).
**Departs.** Cherry takes, of each cluster, the rows of middle perplexity (25th to 75th percentile, every
len // n-th in file order) and clusters unscaled prompt embeddings with the library's number of restarts; here
the score decides. Sums inside k-means depend on the number of threads in their last bits, and so can the
cluster of a row that lies between two; the same machine and thread count give the same rows.
**Relations.** With one cluster top-k by the mean (with scores) or a random draw (without).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tamis.core.method import Method
from tamis.selections._best import reduce_rows
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._kmeans import clustered
from tamis.selections._order import hashed, proportional_turns
from tamis.selections._pairs import UnitRows


@dataclass(frozen=True)
class Config:
    """`clusters`: how many; `quota`: "equal" or "proportional" shares; `sample`: most rows to fit on."""

    clusters: int = 100
    quota: Literal["equal", "proportional"] = "equal"
    sample: int = 50_000

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise ValueError(f"clusters must be 1 or more; got {self.clusters!r}")
        if self.quota not in ("equal", "proportional"):
            raise ValueError(f"quota must be 'equal' or 'proportional', not {self.quota!r}")
        if self.sample < self.clusters:
            raise ValueError(f"sample must hold at least one row a cluster; got {self.sample!r}")


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` rows by the clusters' turns."""
    assert request.vectors is not None  # the family checks `needs`
    hashes = hashed(request.n, request.seed, "cluster-quota", request.ids)
    key: np.ndarray | None = None
    facts: dict[str, Any] = {}
    usable = request.usable
    if request.similarity is not None:
        reduced = reduce_rows(request.similarity, "mean")
        key, usable = reduced.key, reduced.choosable
        facts = {"passes": reduced.passes, "nan_count": reduced.nan_count}
    rows = np.flatnonzero(usable)
    if not len(rows):
        return chosen([], **facts)
    labels, made = clustered(
        UnitRows(request.vectors, rows, keep=False),
        hashes[rows],
        request.seed,
        config.clusters,
        config.sample,
    )
    within = np.argsort(hashes[rows], kind="stable") if key is None else np.argsort(-key[rows], kind="stable")
    order = turns(labels, within, limit, config.quota)
    positions = rows[order]
    return chosen(positions, None if key is None else key[positions], **facts, **made)


def turns(labels: np.ndarray, within: np.ndarray, limit: int, quota: str) -> np.ndarray:
    """Numbers of the first `limit` rows: `labels` (r,) their clusters, `within` (r,) all rows, best first."""
    sizes = np.bincount(labels)
    by_cluster = within[np.argsort(labels[within], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    if quota == "proportional":
        turn = proportional_turns(sizes, min(limit, len(labels)))
        rank = np.empty(len(turn), np.int64)
        for group in range(len(sizes)):
            mine = np.flatnonzero(turn == group)
            rank[mine] = np.arange(len(mine))
        return np.asarray(by_cluster[starts[turn] + rank])
    groups = np.repeat(np.arange(len(sizes)), sizes)
    ranks = np.arange(len(labels)) - np.repeat(starts, sizes)
    return np.asarray(by_cluster[np.lexsort((groups, ranks))[:limit]])


METHOD = Method("cluster-quota", select, Config, __doc__ or "", needs=("vectors",), seeded=True)
