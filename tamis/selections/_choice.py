"""What a selection is asked (`Request`) and what it answers (`Choice`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.similarity import Similarity
from tamis.core.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Request:
    """Inputs of a selection, checked. `usable` already leaves out the rows that may not be chosen.

    `task_of` (m,) holds task numbers by first appearance; `sources` (n,) source numbers by first appearance
    and `source_names` their labels; `lengths` (n,) numbers; `reference` positions of the subset to match;
    `exclude` positions of the rows that were usable but must not be drawn, each once; `vectors` of the rows,
    read by position; `ids` (n,).
    """

    n: int
    usable: np.ndarray
    similarity: Similarity | None = None
    task_of: np.ndarray | None = None
    sources: np.ndarray | None = None
    source_names: Sequence[object] = ()
    lengths: np.ndarray | None = None
    reference: np.ndarray | None = None
    exclude: np.ndarray | None = None
    vectors: Vectors | None = None
    ids: np.ndarray | None = None
    seed: int = 0

    def among(self, mask: np.ndarray) -> Request:
        """The same request with only the rows of `mask` usable."""
        similarity = self.similarity.restrict(mask) if self.similarity is not None else None
        return replace(self, usable=self.usable & mask, similarity=similarity)


@dataclass(frozen=True, eq=False)
class Choice:
    """Rows in order of choice.

    `positions` int64 (k,), distinct; `gain` float32 (k,): the score that justified each pick, NaN for random
    ones; `query` and `task` int32 (k,): who chose it, -1 if nobody; `notes`: counts a report should show.
    """

    positions: np.ndarray
    gain: np.ndarray
    query: np.ndarray
    task: np.ndarray
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, order: np.ndarray | slice) -> Choice:
        """The picks at `order`, which indexes this choice (not the pool)."""
        return replace(
            self,
            positions=self.positions[order],
            gain=self.gain[order],
            query=self.query[order],
            task=self.task[order],
        )


def chosen(
    positions: np.ndarray | list[int],
    gain: np.ndarray | None = None,
    query: np.ndarray | None = None,
    task: np.ndarray | None = None,
    **notes: Any,
) -> Choice:
    """A Choice from what a method knows: no gain is NaN, no query or task is -1."""
    rows = np.asarray(positions, np.int64)
    return Choice(
        rows,
        np.full(len(rows), np.nan, np.float32) if gain is None else np.asarray(gain, np.float32),
        np.full(len(rows), -1, np.int32) if query is None else np.asarray(query, np.int32),
        np.full(len(rows), -1, np.int32) if task is None else np.asarray(task, np.int32),
        notes,
    )


def prefixes(choice: Choice, budgets: Sequence[int]) -> dict[int, Choice]:
    """One choice per row budget, all prefixes of the same order; none may exceed what was chosen."""
    if max(budgets, default=0) > len(choice) or min(budgets, default=0) < 0:
        raise RequestError(
            f"budgets {sorted(budgets)} do not fit in {len(choice)} chosen rows; choose at the largest first"
        )
    return {budget: choice.take(slice(budget)) for budget in budgets}
