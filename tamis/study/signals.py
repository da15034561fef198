"""What a strategy's selection works on: similarities to the query rows, or scores, with statuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core import status as statuses
from tamis.core.errors import RequestError, RunError
from tamis.representations import REPRESENTATIONS, Representation, represent
from tamis.representations._context import Context
from tamis.representations.represent import shard_arrays
from tamis.scores.score import score
from tamis.study.score_facts import distribution
from tamis.study.strategies import WARMED, Strategy

if TYPE_CHECKING:
    from tamis.pools.pool import Pool


@dataclass(frozen=True)
class Settings:
    """Everything but the strategy that a signal depends on, and how it runs here."""

    store: Path = Path(".tamis")
    model: str | None = None
    template: str = "auto"
    max_tokens: int = 2048
    dtype: str = "auto"
    device: str = "auto"
    remote_code: bool = False
    batch_tokens: int | None = None
    max_unscored: float = 0.01
    quiet: bool = True

    def common(self) -> dict[str, Any]:
        """Keyword arguments of `represent` and `score`."""
        names = ("model", "template", "max_tokens", "dtype", "device", "remote_code", "batch_tokens", "quiet")
        return {"store": self.store, **{name: getattr(self, name) for name in names}}

    def context(self, role: str = "pool", queries: Mapping[str, Pool] | None = None) -> Context:
        """What a signal is given besides its own parameters."""
        names = ("model", "template", "max_tokens", "dtype", "device", "remote_code", "batch_tokens", "store")
        return Context(**{name: getattr(self, name) for name in names}, role=role, queries=queries or {})


@dataclass(frozen=True)
class Signal:
    """Input of a selection. `source` is a Similarity (m, n), a score (n,), or None for random draws."""

    source: Any
    usable: np.ndarray  # (n,) bool
    status: dict[str, int]
    task_of: np.ndarray | None = None  # (m,) int: task of each query row
    query_row: np.ndarray | None = None  # (m,) int32: its row in the task's query set
    tasks: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    execution: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    vectors: Any = None  # `Vectors` of the rows, where the strategy names a representation beside its score
    pre: Mapping[str, Any] | None = None  # facts about the stage before the signal
    pre_digests: tuple[str, ...] = ()  # stored things that it took, and those that the score goes on from
    gradients: tuple[np.ndarray, np.ndarray] | None = (
        None  # norms (n,) and tokens (n,) of rows, if it has any
    )


def prepared(
    strategy: Strategy, settings: Settings, queries: Mapping[str, Pool] | None = None
) -> dict[str, Any]:
    """Set up the signal of `strategy` without running it, so that its faults are found before any work.

    Returns, for a signal whose parameters name files, the recipes of its sides: what is in those files.
    """
    if strategy.signal is None:
        return {}
    method = strategy.methods()[0]
    config = method.configure(strategy.signal_parameters)
    context = settings.context(queries=queries)
    if strategy.vectors is not None:
        vectors = REPRESENTATIONS[strategy.vectors]
        vectors.run(vectors.configure(strategy.vector_parameters), context)
    roles = ("pool", "query") if strategy.representation else ("pool",)
    sides = {role: method.run(config, replace(context, role=role)) for role in roles}
    return {role: dict(side.recipe) for role, side in sides.items()} if method.paths else {}


def signal_of(strategy: Strategy, pool: Pool, queries: Mapping[str, Pool], settings: Settings) -> Signal:
    """The signal of `strategy` for `pool`: made, or read from the store."""
    if strategy.representation is not None:
        return _similarity(strategy, strategy.representation, pool, queries, settings)
    if strategy.score is not None:
        return _scores(strategy, strategy.score, pool, queries, settings)
    return Signal(None, np.ones(len(pool), bool), {"ok": len(pool)})


def _scores(
    strategy: Strategy, name: str, pool: Pool, queries: Mapping[str, Pool], settings: Settings
) -> Signal:
    asked = queries if strategy.needs_query else {}
    scores = score(pool, name, parameters=strategy.signal_parameters, queries=asked, **settings.common())
    codes, vectors = scores.codes, None
    digests: tuple[str, ...] = (scores.digest,)
    if strategy.vectors is not None:
        rows = represent(pool, strategy.vectors, parameters=strategy.vector_parameters, **settings.common())
        # A row with a score and no vector has the status of its vector.
        codes = np.where(statuses.scored(codes) & ~statuses.scored(rows.codes), rows.codes, codes)
        vectors, digests = row_vectors(rows), (scores.digest, rows.digest)
    _check_unscored(strategy, codes, settings)
    usable = statuses.scored(codes)
    told = {**scores.execution, "distribution": distribution(scores.values, np.asarray(pool.chars))}
    return Signal(
        scores.values, usable, statuses.counts(codes), digests=digests, execution=told,
        vectors=vectors, warnings=tuple(scores.warnings), pre_digests=scores.before,
    )  # fmt: skip


def row_vectors(rows: Representation) -> Any:
    """The stored vectors of pool rows, read by position; never all in memory."""
    if rows.method.compare is None:
        from tamis.core.vectors import DenseVectors

        return DenseVectors(rows.thing.paths("vectors"))
    from tamis.representations import _ngram_similarity

    return _ngram_similarity.row_vectors(shard_arrays(rows.thing), rows.config)


def _similarity(
    strategy: Strategy, name: str, pool: Pool, queries: Mapping[str, Pool], settings: Settings
) -> Signal:
    if name in WARMED:
        return _gradients(strategy, name, pool, queries, settings)
    common: dict[str, Any] = {"parameters": strategy.signal_parameters, **settings.common()}
    asked = [represent(query, name, role="query", **common) for query in queries.values()]
    for (task, query), encoded in zip(queries.items(), asked, strict=True):
        _check_query(task, query, encoded)
    rows = represent(pool, name, **common)
    _check_unscored(strategy, rows.codes, settings)
    usable = statuses.scored(rows.codes)
    sizes = [len(encoded) for encoded in asked]
    return Signal(
        compared(asked, rows),
        usable,
        statuses.counts(rows.codes),
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        tuple(queries),
        (rows.digest, *(encoded.digest for encoded in asked)),
        rows.execution,
    )


def _gradients(
    strategy: Strategy, name: str, pool: Pool, queries: Mapping[str, Pool], settings: Settings
) -> Signal:
    from tamis.study.gradient_signal import gradient_similarity

    found = gradient_similarity(name, strategy.signal_parameters, pool, queries, settings)
    _check_unscored(strategy, found.codes, settings)
    first = found.parts[0].thing
    return Signal(
        found.similarity, found.usable, statuses.counts(found.codes), found.task_of, found.query_row,
        tuple(queries), found.digests, found.execution,
        gradients=(first.joined("norms"), first.joined("tokens")),
    )  # fmt: skip


def compared(queries: list[Representation], rows: Representation) -> Any:
    """Streamed similarity (m, n) of the query rows and the pool rows of one representation."""
    arrays = [shard for query in queries for shard in shard_arrays(query.thing)]
    if rows.method.compare is not None:
        return rows.method.compare(arrays, shard_arrays(rows.thing), rows.config)
    from tamis.core.similarity import FeatureSimilarity

    vectors = np.concatenate([shard["vectors"] for shard in arrays]).astype(np.float32)
    return FeatureSimilarity(vectors, rows.thing.paths("vectors"))


def _check_query(task: str, query: Pool, encoded: Representation) -> None:
    """Every query row must have a vector: a target with a hole is not the target that was asked for."""
    unscored = np.flatnonzero(~statuses.scored(encoded.codes))
    if len(unscored):
        row = query.row(int(unscored[0]))
        raise RequestError(
            f"query {task!r}: {len(unscored)} of {len(query)} rows have no {encoded.method.name} vector, "
            f"first {row.file}:{row.line} ({encoded.status[unscored[0]]}); mend or remove these rows"
        )


def _check_unscored(strategy: Strategy, codes: np.ndarray, settings: Settings) -> None:
    broken = int(statuses.broken(codes).sum())
    if len(codes) and broken / len(codes) > settings.max_unscored:
        raise RunError(
            f"{strategy.name}: {broken} of {len(codes)} rows failed or are not finite "
            f"({statuses.counts(codes)}), more than --max-unscored {settings.max_unscored:g}; "
            "look at their reasons in the store, or allow more"
        )
