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
from tamis.representations import REPRESENTATIONS, Representation, represent
from tamis.representations.less import Gradients
from tamis.representations.represent import encoded

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.pools.view import PoolRows
    from tamis.study.signals import Settings


@dataclass(frozen=True)
class Targets:
    """Query rows as they are compared: features (m, d) at each checkpoint, and what each of the m stands for.

    `task_of` (m,) task; `query_row` (m,) row of the task's query set, of a group its first.
    """

    features: list[np.ndarray]
    task_of: np.ndarray
    query_row: np.ndarray
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """A pool against targets. `codes` (n,) statuses; `usable` (n,); `facts` say what was left out."""

    similarity: SummedSimilarity
    codes: np.ndarray
    usable: np.ndarray
    targets: Targets
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
    """The rows of `pool` against the query sets by the method `name`; made, or read from the store."""
    method = REPRESENTATIONS[name]
    side: Gradients = method.run(method.configure(parameters), settings.context())
    side.need_parts()
    targets = targets_of(name, parameters, queries, settings, side.config.aggregate)
    config, weights = side.config, side.weights
    maker = _Maker(pool, side, targets, settings)
    first = maker.part(0, pool)
    places = None
    if config.shortlist is not None and len(weights) > 1:
        places = shortlist(first.similarity, statuses.scored(first.made.codes), config.shortlist)
    rest = [maker.part(k, maker.rows(places)) for k in range(1, len(weights))]
    parts = [Part(weights[0], first.similarity)]
    parts += [Part(w, made.similarity, places) for w, made in zip(weights[1:], rest, strict=True)]
    codes = _joined(first.made.codes, [made.made.codes for made in rest], places)
    usable = statuses.scored(codes)
    execution = dict(side.execution)
    if places is not None:
        usable[np.setdiff1d(np.arange(len(pool)), places)] = False
        execution["shortlist"] = {"rows": len(places), "of": len(pool), "by": "the first checkpoint"}
    keeps = config.keep == "vectors"
    made = (first.made, *(part.made for part in rest))
    return Compared(
        SummedSimilarity(parts, usable, keeps_vectors=keeps),
        codes,
        usable,
        targets,
        (*(one.digest for one in made), *targets.digests),
        execution,
        made,
    )


def shortlist(similarity: FeatureSimilarity, usable: np.ndarray, share: float) -> np.ndarray:
    """Positions (k,) rising of the share of the usable rows that the queries, taking turns, choose first."""
    from tamis.selections import choose

    wanted = max(1, round(share * int(usable.sum())))
    found: np.ndarray = np.sort(choose("round-robin", similarity, budget=wanted, usable=usable))
    return found


def targets_of(
    name: str, parameters: Mapping[str, Any], queries: Mapping[str, Pool], settings: Settings, aggregate: str
) -> Targets:
    """Encode the query sets and bring their rows, or the groups that share a `source`, to unit features."""
    common: dict[str, Any] = {"parameters": dict(parameters), **settings.common()}
    features: list[list[np.ndarray]] = []
    task_of: list[int] = []
    query_row: list[int] = []
    digests: list[str] = []
    for task, (label, query) in enumerate(queries.items()):
        made = represent(query, name, role="query", **common)
        _need_all(label, query, made)
        groups = groups_of(query.sources if aggregate != "none" else np.arange(len(query)))
        task_of += [task] * len(groups)
        query_row += [int(group[0]) for group in groups]
        digests += made.digests
        features.append([grouped(part, groups, aggregate) for part in made.parts])
    joined = [np.concatenate(parts) for parts in zip(*features, strict=True)]
    return Targets(joined, np.array(task_of), np.array(query_row, np.int32), tuple(digests))


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
    made: Representation
    similarity: FeatureSimilarity


@dataclass(frozen=True)
class _Maker:
    """Makes the pool's side of a checkpoint."""

    pool: Pool
    side: Gradients
    targets: Targets
    settings: Settings

    def rows(self, places: np.ndarray | None) -> Pool | PoolRows:
        from tamis.pools.view import PoolRows

        return self.pool if places is None else PoolRows(self.pool, places)

    def part(self, k: int, rows: Pool | PoolRows) -> _Made:
        method, config = REPRESENTATIONS["less"], self.side.config
        against = self.targets.features[k]
        encoder = self.side.parts[k]
        if config.keep == "similarity":
            encoder = encoder.measuring(against, bytes_digest([against.tobytes()]))
        made = encoded(rows, method, config, encoder, self.settings.store, quiet=self.settings.quiet)
        if config.keep == "similarity":
            own = np.eye(len(against), dtype=np.float32)  # what is stored is the product already
            return _Made(made, FeatureSimilarity(own, made.thing.paths("similarity")))
        return _Made(made, FeatureSimilarity(against, made.thing.paths("vectors")))


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
