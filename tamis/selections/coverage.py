"""Facility location: each pick is the row that adds most to how well a shortlist is covered.

**Paper.** Nemhauser, Wolsey, Fisher 1978, An analysis of approximations for maximizing submodular set
functions; used after a score by Li et al. 2024, Superfiltering, arXiv:2402.00530.
**Definition.** f(S) = sum over i in V of max_{j in S} s(i, j), V a shortlist of rows and the only candidates;
each pick is argmax_j f(S + j) - f(S), so f(S) is at least 1 - 1/e of the best of its size. Ties, which are
gains within 1e-6 of the largest g, or 1e-6 g if g > 1 ("euclidean": 1e-9), go to the smaller row.
kernel="cosine": s = max(0, cos); "euclidean": s = exp(-|v_i - v_j| / d), submodlib's. Vectors are scaled to
length 1. V is all usable rows if they are no more than `shortlist`; else those with the largest mean S
(score, or similarity to the queries), so that the target's surroundings are covered; without scores those
with the smallest fixed hash (`shortlist_seed`, of ids when there are any). A `shortlist` below 1 is a share
of the usable rows, rounded down. Rows with a mean S above `most` are left out. Rows beyond V follow in that
same order, without a gain.
**Needs.** vectors (n, d); usable (n,); optionally similarity S (m, n), ids.
**Gives.** positions int64 (k,) in order of choice; gain = f(S + j) - f(S), NaN beyond V; query = -1; nested.
Notes: rows of V and of those beyond it that were chosen; f(S), and for up to 1000 usable rows drawn from
outside V by the fixed hash the sum of their max s (`covered`, `sample_covered`, with the counts, all for the
largest budget of the request): what the shortlist leaves out, measured.
**Cost.** |V|^2 d for the first gains (each pair once) and |V| d for each column of the kernel that is looked
at again; lazy greedy asks for few, a block at a time, and `COLUMN_BYTES` of them are kept. Memory: |V| d +
those columns; the kernel itself never exists.
**Departs.** Cosine in place of submodlib's kernel, whose values all lie within half a per cent of 1 at
d = 384. Gains are summed in float64; "euclidean" is computed in float64 throughout. The published shortlist
is the best 20 % by IFD.
**Relations.** Choosing with a budget of |V| gives all of V. Without the sum's max (linear) it is top-k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.vectors import Vectors, products
from tamis.selections._best import reduce_rows
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed
from tamis.selections._pairs import STEP_ROWS, UnitRows, pair_blocks

COLUMN_BYTES = 1 << 30
SAMPLE_ROWS = 1000
FIRST_LOOK, LARGEST_FIRST_LOOK, LARGEST_LOOK = 8, 32, 256
EQUAL = {"cosine": 1e-6, "euclidean": 1e-9}
"""Gains this close tie (relatively above 1), and less than this is nothing: the float noise of a kernel."""
_LINES = 8192
_NOISE = 1e-6  # sums of blocks of pairs and of columns differ by less, so that no bound is below its gain


@dataclass(frozen=True)
class Config:
    """`shortlist`: most rows of V, or below 1 a share of the usable rows; `kernel`: "cosine" or "euclidean";
    `shortlist_seed` of the fixed hash; `most`: largest score that may be chosen."""

    shortlist: float = 50_000
    kernel: Literal["cosine", "euclidean"] = "cosine"
    shortlist_seed: int = 0
    most: float | None = None

    def __post_init__(self) -> None:
        if not self.shortlist > 0 or (self.shortlist > 1 and self.shortlist != int(self.shortlist)):
            raise ValueError(
                f"shortlist={self.shortlist!r}: expected whole rows, 1 or more, or a share below 1"
            )
        if self.kernel not in ("cosine", "euclidean"):
            raise ValueError(f"kernel must be 'cosine' or 'euclidean', not {self.kernel!r}")


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` rows of the greedy cover of the shortlist, then rows beyond it."""
    assert request.vectors is not None  # the family checks `needs`
    order, facts = _preferred(request, config)
    size = int(config.shortlist) if config.shortlist >= 1 else max(1, int(config.shortlist * len(order)))
    inside = np.sort(order[:size])
    beyond = order[size:]
    cover = Cover(UnitRows(request.vectors, inside, config.kernel == "euclidean"), config.kernel)
    picks, gains = cover.pick(min(limit, len(inside)))
    positions = inside[picks]
    facts |= {"shortlist_rows": len(inside), "covered": float(cover.best.sum(dtype=np.float64))}
    facts |= {"columns": cover.columns_made, "evaluations": cover.evaluations}
    if len(beyond):
        facts |= _outside(request.vectors, beyond, positions, config)
        more = beyond[: limit - len(positions)]
        facts["beyond_shortlist"] = len(more)
        positions = np.concatenate([positions, more])
        gains = np.concatenate([gains, np.full(len(more), np.nan)])
    return chosen(positions, gains, **facts)


def _preferred(request: Request, config: Config) -> tuple[np.ndarray, dict[str, Any]]:
    """All rows that may be chosen, those first that the shortlist should have, and counts for the notes."""
    rows = np.flatnonzero(request.usable)
    hashes = hashed(request.n, config.shortlist_seed, "coverage", request.ids)
    if request.similarity is None:
        if config.most is not None:
            raise RequestError("coverage: most is a limit of scores, and none were given")
        return rows[np.argsort(hashes[rows], kind="stable")], {}
    reduced = reduce_rows(request.similarity, "mean")
    facts: dict[str, Any] = {"passes": reduced.passes, "nan_count": reduced.nan_count}
    rows = np.flatnonzero(reduced.choosable)
    if config.most is not None:
        kept = rows[reduced.key[rows] <= config.most]
        facts["above_most"] = len(rows) - len(kept)
        rows = kept
    order = rows[np.argsort(-reduced.key[rows], kind="stable")]
    return order, facts


def _outside(vectors: Vectors, beyond: np.ndarray, picked: np.ndarray, config: Config) -> dict[str, float]:
    """How well the picks cover rows that the shortlist left out, from a fixed sample of those."""
    ranks = np.argsort(hashed(len(beyond), config.shortlist_seed, "coverage sample"), kind="stable")
    sample = UnitRows(vectors, np.sort(beyond[ranks[:SAMPLE_ROWS]]), config.kernel == "euclidean")
    rows = UnitRows(vectors, picked, config.kernel == "euclidean")
    most, everyone = np.zeros(len(sample)), sample[:]
    for start in range(0, len(rows), STEP_ROWS):
        values = products(rows[start : start + STEP_ROWS], everyone)
        np.maximum(most, kernel_of(values, config.kernel, vectors.d).max(axis=0), out=most)
    return {"sample_rows": len(sample), "sample_covered": float(most.sum())}


def kernel_of(cosines: np.ndarray, kernel: str, d: int) -> np.ndarray:
    """s for the cosines of unit vectors in `d` dimensions, in place."""
    if kernel == "cosine":
        return np.asarray(np.maximum(cosines, 0, out=cosines))
    np.subtract(2.0, 2.0 * cosines, out=cosines)
    np.sqrt(np.maximum(cosines, 0, out=cosines), out=cosines)
    return np.asarray(np.exp(cosines / -d, out=cosines))


class Cover:
    """Lazy greedy over the rows of V.

    A gain only falls as the cover grows, so an old one is an upper bound. The rows with the largest bounds
    are looked at again, a block at a time, until no other bound could win. Two rows that are nearest to each
    other have one gain as a rule, so equal gains must be told apart from float noise (`EQUAL`).
    """

    def __init__(self, rows: UnitRows, kernel: str) -> None:
        self.rows, self.kernel = rows, kernel
        self.equal = EQUAL[kernel]
        n = len(rows)
        self.best = np.zeros(n, rows.type)
        self.bound = self._first_gains()
        self.columns_made = self.evaluations = 0
        room = max(2 * LARGEST_LOOK, COLUMN_BYTES // (max(n, 1) * self.best.itemsize))
        self._columns = np.empty((min(n, room), n), rows.type)
        self._place = np.full(n, -1)
        self._owner = np.full(len(self._columns), -1)

    def pick(self, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """(row numbers int64, gains float64) of the first `budget` picks."""
        picks, gains = np.empty(budget, np.int64), np.empty(budget)
        look = FIRST_LOOK
        for step in range(budget):
            row, looked = self._next(look)
            # About as many as were needed last time: too few cost rounds, too many cost columns.
            look = int(np.clip((look + looked) // 2, FIRST_LOOK, LARGEST_FIRST_LOOK))
            picks[step], gains[step] = row, self.bound[row]
            np.maximum(self.best, self._columns[self._place[row]], out=self.best)
            self.bound[row] = -np.inf
            self._release(row)
        return picks, gains

    def _next(self, look: int) -> tuple[int, int]:
        """The row with the largest gain, the smallest among equals, and how many were looked at."""
        # A bound of nothing is the gain itself.
        stale, looked = self.bound > 0, 0
        while True:
            bound = np.where(stale, -np.inf, self.bound)
            top = bound.max()
            enough = top - self.equal * max(1.0, top)
            first = int(np.argmax(bound >= enough))
            # Who could still have more, or the same at a smaller row.
            rivals = stale & (self.bound >= enough)
            rivals[first:] &= self.bound[first:] > top
            wanted = np.flatnonzero(rivals if top > -np.inf else stale)
            if not len(wanted):
                return first, looked
            if len(wanted) > look:
                wanted = np.sort(wanted[np.argpartition(-self.bound[wanted], look - 1)[:look]])
            self.bound[wanted] = self._gains(wanted)
            stale[wanted] = False
            looked += len(wanted)
            look = min(2 * look, LARGEST_LOOK)

    def _gains(self, rows: np.ndarray) -> np.ndarray:
        """Gains of `rows` over what is covered, float64; what float noise could be is nothing."""
        self.evaluations += len(rows)
        self._fetch(rows[self._place[rows] < 0], rows)
        columns = (self._columns[place] for place in self._place[rows])
        gains = np.array([np.maximum(column - self.best, 0).sum(dtype=np.float64) for column in columns])
        return np.where(gains < self.equal, 0.0, gains)

    def _fetch(self, rows: np.ndarray, needed: np.ndarray) -> None:
        """Make the kernel's columns of `rows`; where room is short, those with the smallest bounds go."""
        if not len(rows):
            return
        free = np.flatnonzero(self._owner < 0)
        if len(free) < len(rows):
            owned = np.flatnonzero((self._owner >= 0) & ~np.isin(self._owner, needed))
            by_bound = owned[np.argsort(self.bound[self._owner[owned]], kind="stable")]
            for place in by_bound[: max(len(rows) - len(free), len(by_bound) // 4)]:
                self._release(int(self._owner[place]))
            free = np.flatnonzero(self._owner < 0)
        places = free[: len(rows)]
        wanted = self.rows[rows]
        for start in range(0, len(self.best), _LINES):
            span = slice(start, start + _LINES)
            block = kernel_of(products(wanted, self.rows[span]), self.kernel, self.rows.vectors.d)
            for place, column in zip(places, block, strict=True):
                self._columns[place, span] = column
        if self.kernel == "euclidean":
            self._columns[places, rows] = 1.0  # exactly, where the root would blow up the noise of 1 - cos
        self._place[rows], self._owner[places] = places, rows
        self.columns_made += len(rows)

    def _release(self, row: int) -> None:
        self._owner[self._place[row]] = -1
        self._place[row] = -1

    def _first_gains(self) -> np.ndarray:
        total = np.zeros(len(self.rows))
        for left, right, block in pair_blocks(self.rows):
            values = kernel_of(block, self.kernel, self.rows.vectors.d)
            total[left] += values.sum(axis=1, dtype=np.float64)
            if left != right:
                total[right] += values.sum(axis=0, dtype=np.float64)
        return total * (1 + _NOISE)


def cover_slow(kernel: np.ndarray, budget: int, equal: float = 1e-6) -> list[int]:
    """The definition on a whole kernel (v, v) in float64: every gain at every pick. For tests."""
    best = np.zeros(len(kernel))
    picks: list[int] = []
    for _ in range(budget):
        gains = np.maximum(kernel - best[:, None], 0).sum(axis=0)
        gains[gains < equal] = 0
        gains[picks] = -1
        picks.append(int(np.argmax(gains >= gains.max() - equal * max(1.0, gains.max()))))
        best = np.maximum(best, kernel[:, picks[-1]])
    return picks


METHOD = Method("coverage", select, Config, __doc__ or "", needs=("vectors",))
