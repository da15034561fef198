"""Best score first, leaving out rows that are too similar to one already chosen.

**Paper.** Liu, Zeng, He, Jiang, He 2024, What Makes Good Data for Alignment? A Comprehensive Study of
Automatic Data Selection in Instruction Tuning (DEITA), arXiv:2312.15685.
**Definition.** Rows by falling score (or mean similarity to the queries); the first is chosen; each next row
x is chosen iff max over the chosen s of cos(x, s) <= `max_similarity`. `escalate`: when no row is left, the
rows that were left out are gone through again with the next of these larger thresholds; none is ever lowered.
**Needs.** similarity: a score (n,) or S (m, n); vectors (n, d); usable (n,); optionally ids.
**Gives.** positions int64 (k,) in order of score; gain = score, higher is better; query = -1; nested. Equal
scores go by a seeded hash of the row's id (`tie_seed`), or by position when that is None. Notes: rows looked
at, rows left out as too similar, the threshold used.
**Cost.** (rows looked at) x k x d multiply-adds in blocks of candidates; memory k x d and a block of scores.
Cosines within 1e-5 of the threshold are computed again in float64 and rounded to 7 digits, so that blocks
decide nothing.
**Departs.** Rows with a vector of zeros have no direction and are left out, counted; released, they give NaN
and are always kept. `judged=b` is the released batching, b > 1, where a row is also left out for a row of its
batch that was itself left out; 1 is the definition. Its "manhattan" option leaves out distant rows and is not
offered. The name "distance" in the release is a similarity.
**Relations.** `max_similarity=1` is top-k. Strategy `deita`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tamis.core.method import Method
from tamis.core.vectors import Vectors, products, unit
from tamis.selections._best import reduce_rows
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed, ranked

BLOCK = 512
CLOSE = 1e-5
DIGITS = 7  # what float32 vectors hold


@dataclass(frozen=True)
class Config:
    """`max_similarity`: largest cosine to a chosen row; `escalate`: larger ones to begin again with;
    `tie_seed` of equal scores; `compatible`: zero vectors are kept, as released; `judged`: rows at a time."""

    max_similarity: float = 0.9
    escalate: tuple[float, ...] = ()
    tie_seed: int | None = 0
    compatible: bool = False
    judged: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "escalate", tuple(self.escalate))
        steps = [self.max_similarity, *self.escalate]
        rising = all(a < b for a, b in pairwise(steps))
        if not rising or not -1 <= steps[0] <= steps[-1] <= 1:
            raise ValueError(f"max_similarity and escalate must be cosines that rise; got {steps}")
        if self.judged < 1:
            raise ValueError(f"judged={self.judged}: expected at least 1")


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` rows that are not too similar to a better one."""
    assert request.similarity is not None and request.vectors is not None  # the family checks `needs`
    reduced = reduce_rows(request.similarity, "mean")
    ties = None if config.tie_seed is None else hashed(request.n, config.tie_seed, "tie", request.ids)
    order = ranked(reduced.key, reduced.choosable, request.n, ties)
    found = _Filter(request.vectors, limit, config)
    for threshold in (config.max_similarity, *config.escalate):
        order = found.run(order, threshold)
        if len(found.picks) >= limit:
            break
    picks = np.array(found.picks, np.int64)
    notes: dict[str, Any] = {**found.counts, "passes": reduced.passes, "nan_count": reduced.nan_count}
    return chosen(picks, reduced.key[picks], **notes, max_similarity=threshold)


class _Filter:
    """The chosen rows so far, and what was left out."""

    def __init__(self, vectors: Vectors, limit: int, config: Config) -> None:
        self.vectors, self.limit, self.config = vectors, limit, config
        self.picks: list[int] = []
        self.kept: list[Any] = []  # unit vectors of the chosen rows, a block at a time
        self.counts = {"looked_at": 0, "too_similar": 0, "zero_vectors": 0}

    def run(self, order: np.ndarray, threshold: float) -> np.ndarray:
        """Go through the rows of `order` until `limit` are chosen; gives those that were too similar."""
        similar: list[np.ndarray] = []
        # The first row stands alone, and batches that are judged together are not cut.
        block = max(1, BLOCK // self.config.judged) * self.config.judged
        for start, stop in pairwise([0, *range(1, len(order), block), len(order)]):
            similar.append(self._block(order[start:stop], threshold))
            if len(self.picks) >= self.limit:
                break
        left_out = np.concatenate([np.zeros(0, np.int64), *similar])
        self.counts["too_similar"] = len(left_out)
        return left_out

    def _block(self, rows: np.ndarray, threshold: float) -> np.ndarray:
        own = unit(self.vectors.take(rows))
        nothing: np.ndarray = np.asarray(abs(own).sum(axis=1)).ravel() == 0
        near = np.full(len(rows), -np.inf)
        for part in self.kept:
            near = np.maximum(near, _cosines(own, part, threshold).max(axis=1))
        taken = _in_turn(near <= threshold, nothing, _cosines(own, own, threshold), threshold, self.config)
        room = self.limit - len(self.picks)
        if int(taken.sum()) >= room:
            end = int(np.flatnonzero(taken)[room - 1]) + 1 if room else 0
            rows, taken, nothing, own = rows[:end], taken[:end], nothing[:end], own[:end]
        self.counts["looked_at"] += len(rows)
        self.counts["zero_vectors"] += int((nothing & ~taken).sum())
        self.picks += rows[taken].tolist()
        if taken.any():
            self.kept.append(own[taken])
        similar: np.ndarray = rows[~taken & ~nothing]
        return similar


def _in_turn(
    free: np.ndarray, nothing: np.ndarray, among: np.ndarray, threshold: float, config: Config
) -> np.ndarray:
    """Which rows of a block are chosen, one after another."""
    taken = np.zeros(len(free), bool)
    for i in range(len(free)):
        if nothing[i]:
            taken[i] = config.compatible
            continue
        own = i - i % config.judged  # where its batch begins; the block of the first row has only that row
        # The released batching also looks at rows of the batch that were left out.
        seen = taken[:i] | (np.arange(i) >= own) if config.judged > 1 else taken[:i]
        taken[i] = free[i] and not (among[i, :i] > threshold)[seen & ~nothing[:i]].any()
    return taken


def _cosines(left: Any, right: Any, threshold: float) -> np.ndarray:
    """Cosines (a, b) float32, those close to the threshold in float64 so that sums of another order agree."""
    found = products(left, right).astype(np.float64)
    for i, j in zip(*np.nonzero(np.abs(found - threshold) < CLOSE), strict=True):
        a, b = left[[i]], right[[j]]
        if not isinstance(a, np.ndarray):
            a, b = a.toarray(), b.toarray()
        a, b = a.astype(np.float64)[0], b.astype(np.float64)[0]
        found[i, j] = round(float(a @ b / np.sqrt((a @ a) * (b @ b))), DIGITS)
    return found


def diversity_threshold_slow(
    score: np.ndarray, vectors: np.ndarray, budget: int, max_similarity: float
) -> list[int]:
    """The definition, one row at a time, from distinct scores (n,) and vectors (n, d). For tests."""
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    picks: list[int] = []
    for j in np.argsort(-score, kind="stable"):
        if len(picks) < budget and all(rows[j] @ rows[i] <= max_similarity for i in picks):
            picks.append(int(j))
    return picks


METHOD = Method("diversity-threshold", select, Config, __doc__ or "", needs=("similarity", "vectors"))
