"""Queries take turns, each adding its best pool row that is still free.

**Paper.** Ivison, Zhang, Brahman, Koh, Dasigi 2025, Large-Scale Data Selection for Instruction Tuning,
arXiv:2503.01807.
**Definition.** Turn t belongs to query q = t mod m (file order), which adds argmax_j {S[q, j] : j not yet
taken}, ties to the smaller j, until `budget` rows are taken. With `task_of`, tasks take the turns and T[t, j]
= max_{q in t} S[q, j] stands for S. `duplicates` says what happens at a row that somebody has already taken:
"skip" goes on to the query's next free row (no turn is lost); "lose-turn" pops every query's own sorted list
and gives the turn up; "as-printed" is the paper's algorithm to the letter, in which queries may add the same
row again: the budget then counts additions, and the answer is its distinct rows in the order first added,
which are fewer (so that underflow must be allowed). `printed_picks` returns the raw additions.
**Needs.** similarity S (m, n), usable (n,); optionally task_of (m,).
**Gives.** positions int64 (k,) in order of choice; gain = S[q, j] (or T[t, j]) at the pick, higher first
within a query; query = the one that acted, with tasks the one that gives T its value; nested.
**Cost.** One pass of O(n m d) and lists of K = min(k, n, max(4k/m, 2^24/m)) rows a query: O(m K) memory, O(k
+ m K) walk. If K < k and a list runs out the pool is read again for the rest; the answer is exact whatever K
is.
**Departs.** The default is the reading of arXiv:2602.14696 (2026), not the printed one. Rows with a score
that is not finite are left out and counted; the released codes pick NaN first or have no defined order. More
turns than queries need (k < m): only the first k queries act, as in both.
**Relations.** With one query equal to top-k; with one task equal to doubly-greedy; "lose-turn" chooses the
distinct rows of "as-printed" run for longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tamis.core.method import Method
from tamis.core.similarity import Similarity
from tamis.selections._best import After, Lists, best, grouped
from tamis.selections._choice import Choice, Request, chosen

LIST_ENTRIES = 1 << 24
LIST_SHARES = 4
Duplicates = Literal["skip", "lose-turn", "as-printed"]


@dataclass(frozen=True)
class Config:
    """`duplicates`: "skip" (lossless), "lose-turn" (lossy) or "as-printed" (see the card)."""

    duplicates: Duplicates = "skip"

    def __post_init__(self) -> None:
        if self.duplicates not in ("skip", "lose-turn", "as-printed"):
            raise ValueError(
                f"duplicates must be 'skip', 'lose-turn' or 'as-printed', not {self.duplicates!r}"
            )


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` rows of the round robin over the queries, or over the tasks of `request.task_of`."""
    similarity = request.similarity
    assert similarity is not None  # the family checks `needs`
    actors = similarity if request.task_of is None else grouped(similarity, request.task_of)
    walk = _Walk(actors, config.duplicates)
    walk.run(limit)
    positions, who = np.array(walk.picks, np.int64), np.array(walk.actors, np.int32)
    gain = np.array(walk.gains, np.float64)
    if config.duplicates == "as-printed":
        first = np.sort(np.unique(positions, return_index=True)[1])
        positions, who, gain = positions[first], who[first], gain[first]
    notes = {"passes": walk.passes, "nan_count": walk.nan_count, "lost_turns": walk.lost_turns}
    if request.task_of is None:
        return chosen(positions, gain, who, None, **notes)
    return chosen(positions, gain, _strongest(similarity, request.task_of, positions, who), who, **notes)


def printed_picks(similarity: Similarity, turns: int) -> np.ndarray:
    """The raw additions of the printed algorithm, int64 (turns,); a row comes back when it is added again."""
    walk = _Walk(similarity, "as-printed")
    walk.run(turns)
    return np.array(walk.picks, np.int64)


def _strongest(
    similarity: Similarity, task_of: np.ndarray, positions: np.ndarray, task: np.ndarray
) -> np.ndarray:
    """For each pick, the query of its task with the largest score, the first among ties."""
    query = np.empty(len(positions), np.int32)
    for start in range(0, len(positions), 4096):
        span = slice(start, start + 4096)
        scores = similarity.columns(positions[span])
        foreign = task_of[:, None] != task[None, span]
        query[span] = np.where(foreign, -np.inf, scores).argmax(axis=0)
    return query


@dataclass
class _Walk:
    """The turns, over lists of the best rows that are fetched again when one runs out."""

    similarity: Similarity
    duplicates: Duplicates
    picks: list[int] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    actors: list[int] = field(default_factory=list)
    passes: int = 0
    nan_count: int = 0
    lost_turns: int = 0

    def run(self, limit: int) -> None:
        """Append up to `limit` picks; fewer only when no usable row is left."""
        m, skip, repeat = self.similarity.m, self.duplicates == "skip", self.duplicates == "as-printed"
        taken = bytearray(self.similarity.n)
        after = After(np.full(m, np.inf), np.full(m, -1))
        lists = self._fetch(limit, taken, after)
        rows, length, cursor = [memoryview(r) for r in lists.rows], lists.length.tolist(), [0] * m
        query = 0
        while len(self.picks) < limit:
            mine, at, end = rows[query], cursor[query], length[query]
            while skip and at < end and taken[mine[at]]:
                at += 1
            if at == end and not lists.complete[query]:
                self._advance(after, lists, cursor)
                lists = self._fetch(limit - len(self.picks), taken, after)
                rows, length, cursor = [memoryview(r) for r in lists.rows], lists.length.tolist(), [0] * m
                continue
            if at == end:
                return  # every usable row is in every list, so all of them are taken
            row = mine[at]
            if taken[row] and not repeat:
                self.lost_turns += 1
            else:
                taken[row] = 1
                self.picks.append(row)
                self.gains.append(float(lists.scores[query, at]))
                self.actors.append(query)
            cursor[query] = at + 1
            query = query + 1 if query + 1 < m else 0

    def _fetch(self, wanted: int, taken: bytearray, after: After) -> Lists:
        source, m = self.similarity, self.similarity.m
        if self.passes and self.duplicates == "skip":
            # Taken rows are passed over anyway, so the rest of the pool is simply read as a smaller one.
            source = source.restrict(np.frombuffer(taken, np.uint8) == 0)
        depth = min(wanted, source.n, max(-(-LIST_SHARES * wanted // m), LIST_ENTRIES // m))
        lists = best(source, max(depth, 1), after if self.passes and self.duplicates != "skip" else None)
        if not self.passes:
            self.nan_count = lists.nan_count
        self.passes += 1
        return lists

    @staticmethod
    def _advance(after: After, lists: Lists, cursor: list[int]) -> None:
        for query, at in enumerate(cursor):
            if at:
                after.score[query], after.row[query] = lists.scores[query, at - 1], lists.rows[query, at - 1]


def round_robin_slow(
    scores: np.ndarray, budget: int, duplicates: Duplicates = "skip"
) -> list[tuple[int, int]]:
    """The definition, read aloud: (row, query) of each pick from finite scores (m, n). For tests."""
    m, n = scores.shape
    orders = [sorted(range(n), key=lambda j: (-scores[q, j], j)) for q in range(m)]
    picks: list[tuple[int, int]] = []
    turn = 0
    while len(picks) < budget and any(orders):
        order = orders[turn % m]
        seen = {row for row, _ in picks}
        while duplicates == "skip" and order and order[0] in seen:
            order.pop(0)
        if order:
            row = order.pop(0)
            if duplicates == "as-printed" or row not in seen:
                picks.append((row, turn % m))
        turn += 1
    return picks


METHOD = Method("round-robin", select, Config, __doc__ or "", needs=("similarity",))
