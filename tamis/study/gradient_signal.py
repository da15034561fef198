"""The signal of gradients: one similarity for each checkpoint, summed by learning rate.

Query rows are encoded first, for what is kept of the pool may depend on them: their sub-tasks are aggregated,
a shortlist follows from the first checkpoint, and with keep="similarity" nothing but cosines is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core import status as statuses
from tamis.core.digest import bytes_digest
from tamis.core.errors import RequestError
from tamis.core.similarity import FeatureSimilarity
from tamis.core.summed import Part, SummedSimilarity
from tamis.core.vectors import unit
from tamis.pools.view import PoolRows
from tamis.representations import REPRESENTATIONS, Representation
from tamis.representations.less import Gradients
from tamis.representations.represent import encoded

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.representations._gradient_encoder import GradientEncoder
    from tamis.study.signals import Settings


@dataclass(frozen=True)
class Compared:
    """A pool against targets. `codes` (n,) statuses; `usable` (n,), without the rows off a shortlist;
    `task_of` (m,) task of each query or group, `query_row` (m,) its row in the task's query set, of a group
    the first; `digests` of the stored things, the pool's first; `parts`: the pool at every checkpoint."""

    similarity: SummedSimilarity
    codes: np.ndarray
    usable: np.ndarray
    task_of: np.ndarray
    query_row: np.ndarray
    digests: tuple[str, ...]
    execution: Mapping[str, Any]
    parts: tuple[Representation, ...]


def gradient_similarity(
    name: str,
    parameters: Mapping[str, Any],
    pool: Pool,
    queries: Mapping[str, Pool],
    settings: Settings,
) -> Compared:
    """The rows of `pool` against the query sets by the method `name`; made, or read from the store.

    Checkpoint after checkpoint, queries before the pool, so that each is loaded once and no two are held.
    """
    method = REPRESENTATIONS[name]
    config = method.configure(parameters)
    side: Gradients = method.run(config, settings.context())
    side.need_parts()
    asking: Gradients = method.run(config, settings.context("query"))
    config, weights = side.config, side.weights
    groups = [
        groups_of(query.sources if config.aggregate != "none" else np.arange(len(query)))
        for query in queries.values()
    ]
    asked: list[list[Representation]] = []
    made: list[_Made] = []
    places: np.ndarray | None = None
    maker = _Maker(pool, queries, groups, side, asking, settings)
    for k in range(len(weights)):
        asked.append(maker.queries_at(k))
        made.append(maker.pool_at(k, asked[k], places))
        if k == 0 and config.shortlist is not None and len(weights) > 1:
            places = shortlist(made[0].similarity, statuses.scored(made[0].rows.codes), config.shortlist)
    parts = [Part(weights[0], made[0].similarity)]
    parts += [Part(w, one.similarity, places) for w, one in zip(weights[1:], made[1:], strict=True)]
    codes = _joined(made[0].rows.codes, [one.rows.codes for one in made[1:]], places)
    usable = statuses.scored(codes)
    execution = {**side.execution, **made[-1].rows.execution}
    if places is not None:
        usable[np.setdiff1d(np.arange(len(pool)), places)] = False
        execution["shortlist"] = {"rows": len(places), "of": len(pool), "by": "the first checkpoint"}
    digests = [one.rows.digest for one in made]
    digests += [part.digest for of_task in zip(*asked, strict=True) for part in of_task]
    return Compared(
        SummedSimilarity(parts, usable, keeps_vectors=config.keep == "vectors"),
        codes,
        usable,
        np.repeat(np.arange(len(groups)), [len(of_task) for of_task in groups]),
        np.array([int(group[0]) for of_task in groups for group in of_task], np.int32),
        tuple(digests),
        execution,
        tuple(one.rows for one in made),
    )


def shortlist(similarity: FeatureSimilarity, usable: np.ndarray, share: float) -> np.ndarray:
    """Positions (k,) rising of the share of the usable rows that the queries, taking turns, choose first."""
    from tamis.selections import choose

    wanted = max(1, round(share * int(usable.sum())))
    found: np.ndarray = np.sort(choose("round-robin", similarity, budget=wanted, usable=usable))
    return found


def groups_of(labels: np.ndarray) -> list[np.ndarray]:
    """Positions of the rows of each label, labels in the order in which they first occur."""
    found: dict[Any, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        found.setdefault(label, []).append(row)
    return [np.array(rows) for rows in found.values()]


def grouped(part: Representation, groups: Sequence[np.ndarray], aggregate: str) -> np.ndarray:
    """Features (m, d) float32 of the groups of query rows at one checkpoint.

    "cosines": the mean of the unit vectors, whose product with a row is the mean of the cosines (LESS's
    program); "gradients": the mean of the gradients themselves, to length 1 (its paper); "none": each row's.
    """
    vectors = part.thing.joined("vectors").astype(np.float32)
    if aggregate == "gradients":
        vectors = vectors * part.thing.joined("norms")[:, None]
    found = np.stack([vectors[group].mean(axis=0) for group in groups])
    return np.asarray(unit(found) if aggregate == "gradients" else found, np.float32)


@dataclass(frozen=True)
class _Made:
    rows: Representation
    similarity: FeatureSimilarity


@dataclass(frozen=True)
class _Maker:
    """Makes both sides of a checkpoint."""

    pool: Pool
    queries: Mapping[str, Pool]
    groups: Sequence[Sequence[np.ndarray]]  # of each task
    side: Gradients
    asking: Gradients
    settings: Settings

    def queries_at(self, k: int) -> list[Representation]:
        """Every query set."""
        found = []
        for task, query in self.queries.items():
            found.append(self._encoded(query, self.asking.parts[k]))
            _need_all(task, query, found[-1])
        self.asking.parts[k].release()
        return found

    def pool_at(self, k: int, asked: Sequence[Representation], places: np.ndarray | None) -> _Made:
        """The pool, or its rows at `places`, beside the queries' features."""
        aggregate = self.side.config.aggregate
        pairs = zip(asked, self.groups, strict=True)
        against = np.concatenate([grouped(part, groups, aggregate) for part, groups in pairs])
        rows = self.pool if places is None else PoolRows(self.pool, places)
        encoder, own = self.side.parts[k], against
        if self.side.config.keep == "similarity":
            encoder = encoder.measuring(against, bytes_digest([against.tobytes()]))
            own = np.eye(len(against), dtype=np.float32)  # what is stored is the product already
        made = self._encoded(rows, encoder)
        encoder.release()
        name = "similarity" if self.side.config.keep == "similarity" else "vectors"
        return _Made(made, FeatureSimilarity(own, made.thing.paths(name)))

    def _encoded(self, rows: Pool | PoolRows, encoder: GradientEncoder) -> Representation:
        method = REPRESENTATIONS["less"]
        return encoded(
            rows, method, self.side.config, encoder, self.settings.store, quiet=self.settings.quiet
        )


def _joined(first: np.ndarray, rest: Sequence[np.ndarray], places: np.ndarray | None) -> np.ndarray:
    """Status codes (n,): of the first part, or of a later one that lacks a row which the first has."""
    found = first.copy()
    at = np.arange(len(first)) if places is None else places
    for codes in rest:
        lost = statuses.scored(found[at]) & ~statuses.scored(codes)
        found[at[lost]] = codes[lost]
    return found


def _need_all(task: str, query: Pool, made: Representation) -> None:
    """Every query row must have a gradient: a target with a hole is not the target that was asked for."""
    codes = made.codes
    unscored = np.flatnonzero(~statuses.scored(codes))
    if len(unscored):
        row = query.row(int(unscored[0]))
        raise RequestError(
            f"query {task!r}: {len(unscored)} of {len(query)} rows have no gradient, first "
            f"{row.file}:{row.line} ({statuses.words(codes[unscored[:1]])[0]}); mend or remove these rows"
        )
