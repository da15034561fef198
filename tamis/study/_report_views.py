"""What a report needs of a subset's signal, kept beside the subset, so that a report needs no model later.

OUT/queries.jsonl                  task, query, id and messages of every query row
OUT/<subset>/view/nearest.parquet  the queries most similar to every chosen row: rank, place,
                                   task, query, similarity
OUT/<subset>/view/control.parquet  a uniform draw of as many usable rows: row, value (the similarity
                                   to its nearest query, or its own score)
OUT/<subset>/view/outside.parquet  the rows that would be chosen next: row, score
OUT/<subset>/view/map.parquet      kind, row, x, y; the shares of variance in the schema's metadata
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from tamis.core.files import replacing
from tamis.core.similarity import Similarity
from tamis.selections import choose_ranked
from tamis.study._report_map import Plane, Points, plane_of

if TYPE_CHECKING:
    import pyarrow as pa

    from tamis.pools.pool import Pool
    from tamis.study.signals import Signal
    from tamis.study.subset import Subset

NEAREST = 3  # queries kept for every chosen row
_CELLS = 1 << 22  # similarities that are in memory at a time


def write_views(
    out: Path,
    subsets: Sequence[Subset],
    signals: Mapping[str, Signal],
    queries: Mapping[str, Pool],
    seed: int,
) -> None:
    """Write the files above for every subset of one selection."""
    write_queries(out / "queries.jsonl", queries)
    planes: dict[tuple[Any, ...], Plane | None] = {}
    for subset in subsets:
        signal, folder = signals[subset.strategy.name], out / subset.relative / "view"
        source = signal.source
        if isinstance(source, Similarity):
            source = source.restrict(signal.usable)
        control = _control(subset, source, signal.usable, seed)
        _write(folder / "control.parquet", {"row": control, "value": _values(source, control)})
        if subset.following is not None:
            row, score = subset.following
            _write(folder / "outside.parquet", {"row": row, "score": score.astype(np.float32)})
        if isinstance(source, Similarity) and len(subset):
            _write(folder / "nearest.parquet", _nearest_columns(source, subset.positions, signal))
            key = (subset.strategy.signal, *signal.digests, str(subset.strategy.signal_parameters))
            if key not in planes:
                planes[key] = plane_of(source, seed)
            plane = planes[key]
            if plane is not None:
                _write_map(folder / "map.parquet", plane.points(source, subset.positions, seed))


def write_queries(path: Path, queries: Mapping[str, Pool]) -> None:
    """One line a query row, in the order of the tasks and their files."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for task, query in queries.items():
            for number, turns in enumerate(query.conversations()):
                messages = [turn._asdict() for turn in turns]
                line = {"task": task, "query": number, "id": str(query.ids[number]), "messages": messages}
                file.write(orjson.dumps(line) + b"\n")


def _control(subset: Subset, source: Any, usable: np.ndarray, seed: int) -> np.ndarray:
    """As many rows drawn uniformly from those that the subset could have had."""
    mask = source.usable if isinstance(source, Similarity) else usable
    seed += source is None  # a random subset beside its own draw would show nothing
    drawn = choose_ranked(
        "random", None, len(subset), usable=mask, ids=subset.pool.ids, seed=seed, allow_underflow=True
    )
    return drawn.positions


def _values(source: Any, positions: np.ndarray) -> np.ndarray:
    """float32 (k,): similarity to the nearest query, the row's own score, or NaN."""
    if isinstance(source, Similarity):
        similarities = nearest(source, positions, 1)[1]
        return similarities[:, 0]
    if source is None:
        return np.full(len(positions), np.nan, np.float32)
    scores: np.ndarray = np.asarray(source)[positions].astype(np.float32)
    return scores


def nearest(similarity: Similarity, positions: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """The `places` most similar queries of the rows at `positions` (k,): numbers (k, p) and similarities
    (k, p), best first; ties to the smaller query."""
    places = min(places, similarity.m)
    query = np.empty((len(positions), places), np.int32)
    value = np.empty((len(positions), places), np.float32)
    size = max(64, _CELLS // similarity.m)
    for start in range(0, len(positions), size):
        part = slice(start, start + size)
        block = np.array(similarity.columns(positions[part]), np.float32)
        column = np.arange(block.shape[1])
        for place in range(places):
            best = block.argmax(axis=0)
            query[part, place], value[part, place] = best, block[best, column]
            block[best, column] = -np.inf
    return query, value


def nearest_slow(scores: np.ndarray, positions: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by sorting every column of scores (m, n)."""
    query = np.array([np.argsort(-scores[:, row], kind="stable")[:places] for row in positions])
    return query, np.array([scores[q, row] for q, row in zip(query, positions, strict=True)])


def _nearest_columns(source: Similarity, positions: np.ndarray, signal: Signal) -> dict[str, np.ndarray]:
    query, value = nearest(source, positions, NEAREST)
    k, places = query.shape
    assert signal.task_of is not None and signal.query_row is not None
    return {
        "rank": np.repeat(np.arange(k, dtype=np.int32), places),
        "place": np.tile(np.arange(places, dtype=np.int8), k),
        "task": np.array(signal.tasks, object)[signal.task_of[query.ravel()]],
        "query": signal.query_row[query.ravel()].astype(np.int32),
        "similarity": value.ravel(),
    }


def _write(path: Path, columns: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(values: np.ndarray) -> pa.Array:
        return pa.array(values.tolist(), pa.string()) if values.dtype == object else pa.array(values)

    table = pa.table({name: column(values) for name, values in columns.items()})
    with replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata(dict(metadata or {})), temporary, compression="zstd")


def _write_map(path: Path, points: Points) -> None:
    told = {
        "share": points.share,
        "of_rows": points.of_rows,
        "of_subset": points.of_subset,
        "of_queries": points.of_queries,
    }
    columns = {"kind": points.kind, "row": points.row, "x": points.xy[:, 0], "y": points.xy[:, 1]}
    _write(path, columns, {"map": json.dumps(told, sort_keys=True)})


def read_view(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Columns and metadata of one file above; None where the selection has none."""
    import pyarrow.parquet as pq

    path = folder / "view" / f"{name}.parquet"
    if not path.exists():
        return None
    table = pq.read_table(path)
    told = (table.schema.metadata or {}).get(b"map")
    columns = {column: table[column].to_numpy(zero_copy_only=False) for column in table.column_names}
    return columns, json.loads(told) if told else {}
