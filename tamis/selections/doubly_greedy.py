"""The rows nearest to any query: greedy over queries and over rows at once.

**Paper.** arXiv:2602.14696 (2026) gives it this name (code: dcml-lab/targeted-instruction-selection); "max"
of Ivison et al. 2025, arXiv:2503.01807; over sub-task means in LESS, Xia et al. 2024, arXiv:2402.04333.
**Definition.** s_j = max_q S[q, j]; the k largest, ties to the smaller j.
**Needs.** similarity S (m, n), usable (n,).
**Gives.** positions int64 (k,), best first; gain = s_j, higher is better; query = the one that attains it,
the first among ties; nested.
**Cost.** One pass of O(n m d), O(n) memory, a sort of n numbers.
**Departs.** The released code sorts with an unstable sort, so that its ties are in no defined order.
**Relations.** Equal to top-k with aggregate "max"; to round-robin with all queries in one task. It minimises
exactly sum_{j in chosen} min_q (1 - S[q, j]), the one-sided Chamfer distance of the subset to the queries.
"""

from __future__ import annotations

from dataclasses import dataclass

from tamis.core.method import Method
from tamis.selections._best import reduce_rows
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import ranked


@dataclass(frozen=True)
class Config:
    """No parameters."""


def select(request: Request, limit: int, config: Config) -> Choice:
    """The `limit` rows with the largest score for any query."""
    assert request.similarity is not None  # the family checks `needs`
    reduced = reduce_rows(request.similarity, "max")
    rows = ranked(reduced.key, reduced.choosable, limit)
    assert reduced.query is not None
    query = reduced.query[rows]
    task = None if request.task_of is None else request.task_of[query]
    return chosen(rows, reduced.key[rows], query, task, passes=reduced.passes, nan_count=reduced.nan_count)


METHOD = Method("doubly-greedy", select, Config, __doc__ or "", needs=("similarity",))
