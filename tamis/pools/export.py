"""Chosen rows written for others to use: as they came in, or in the formats that trainers read.

    original   the untouched rows, one JSON line each (rows of CSV, YAML, Parquet as JSON objects)
    messages   {id, source, messages: [{role, content}]} a line
    alpaca     {id, source, instruction, input, output, history, system} a line
    sharegpt   {id, source, conversations: [{from, value}]} a line
    parquet    id, source, messages and the given columns (rank, score, …) of every row
    hf         the same as a folder for `datasets.load_from_disk`
    ids        id, source and the given columns as CSV, without any text
    llamafactory, axolotl, trl   a folder with the rows and what makes that trainer read them (trainers.py)

Rows stand in the order of the positions. Each of the formats with text is read back by `read_pool` as the
same ids. A row that a format cannot hold stops the export before anything is written under the name that
was given.
"""

from __future__ import annotations

import csv
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.core.errors import RequestError, unknown_name
from tamis.core.extras import need
from tamis.core.files import replacing
from tamis.pools import trainers
from tamis.pools.identity import hex_ids
from tamis.pools.pool import Message, Pool

_GROUP_ROWS = 4096
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def export(
    pool: Pool,
    positions: Sequence[int] | np.ndarray,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    fmt: str,
    out_path: str | Path,
) -> None:
    """Write the rows of `pool` at `positions` (k,), in that order, to `out_path` in the format `fmt`.

    `columns` are further values (k,) by name, such as `rank` and `score`; only `parquet`, `hf` and `ids` have
    room for them. Raises `RequestError` for an unknown format, and for a row that the format cannot hold.
    """
    if fmt not in FORMATS:
        raise unknown_name("export format", fmt, FORMATS)
    at = np.asarray(positions, np.int64)
    for name, values in columns.items():
        if len(values) != len(at):
            raise RequestError(f"the column {name!r} has {len(values)} values for {len(at)} rows")
    FORMATS[fmt](pool, at, columns, Path(out_path))


def _write_original(pool: Pool, at: np.ndarray, columns: Mapping[str, Any], path: Path) -> None:
    _write_lines(pool.originals(at), path)


def _write_messages(pool: Pool, at: np.ndarray, columns: Mapping[str, Any], path: Path) -> None:
    _write_lines(_objects(pool, at, _as_messages), path)


def _write_alpaca(pool: Pool, at: np.ndarray, columns: Mapping[str, Any], path: Path) -> None:
    _write_lines(_objects(pool, at, _as_alpaca), path)


def _write_sharegpt(pool: Pool, at: np.ndarray, columns: Mapping[str, Any], path: Path) -> None:
    _write_lines(_objects(pool, at, _as_sharegpt), path)


def _write_lines(lines: Iterator[bytes], path: Path) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for line in lines:
            file.write(line)
            file.write(b"\n")


def _objects(
    pool: Pool, at: np.ndarray, convert: Callable[[list[Message]], dict[str, Any]]
) -> Iterator[bytes]:
    for position, turns in zip(at.tolist(), pool.messages_at(at), strict=True):
        name = str(hex_ids(pool.id_bytes[position : position + 1])[0])
        try:
            made = convert(turns)
        except RequestError as error:
            raise RequestError(f"row {name} (position {position}): {error}") from error
        yield orjson.dumps({"id": name, "source": str(pool.sources[position]), **made})


def _as_messages(turns: list[Message]) -> dict[str, Any]:
    return {"messages": [turn._asdict() for turn in turns]}


def _as_sharegpt(turns: list[Message]) -> dict[str, Any]:
    return {"conversations": [{"from": _SHAREGPT[turn.role], "value": turn.content} for turn in turns]}


def _as_alpaca(turns: list[Message]) -> dict[str, Any]:
    """One pair of user and assistant, the pairs before it as history, a system turn before all."""
    rest = turns
    system = ""
    if turns[0].role == "system" and turns[0].content.strip():
        system, rest = turns[0].content, turns[1:]
    roles = [turn.role for turn in rest]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise RequestError(
            f"turns of {', '.join(turn.role for turn in turns)} do not fit alpaca, which holds pairs of "
            "user and assistant; export to messages or sharegpt instead"
        )
    texts = [turn.content for turn in rest]
    made: dict[str, Any] = {"instruction": texts[-2], "input": "", "output": texts[-1]}
    if len(texts) > 2:
        made["history"] = [texts[i : i + 2] for i in range(0, len(texts) - 2, 2)]
    return {**made, "system": system} if system else made


def _write_parquet(pool: Pool, at: np.ndarray, columns: Mapping[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        _parquet(pool, at, columns, temporary)


def _parquet(pool: Pool, at: np.ndarray, columns: Mapping[str, Any], path: Path) -> None:
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    given = {name: pa.array(values) for name, values in columns.items() if name not in ("id", "source")}
    fields = [("id", pa.string()), ("source", pa.string())]
    schema = pa.schema(
        [*fields, *((name, values.type) for name, values in given.items()), ("messages", turns)]
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(at), _GROUP_ROWS):
            part = at[start : start + _GROUP_ROWS]
            messages = [[turn._asdict() for turn in row] for row in pool.messages_at(part)]
            arrays = [
                pa.array(hex_ids(pool.id_bytes[part])),
                pa.array(pool.sources[part].tolist(), pa.string()),
            ]
            arrays += [values.slice(start, len(part)) for values in given.values()]
            writer.write_table(pa.Table.from_arrays([*arrays, pa.array(messages, turns)], schema=schema))


def _write_hf(pool: Pool, at: np.ndarray, columns: Mapping[str, Any], path: Path) -> None:
    datasets = need("datasets", "hub")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RequestError(f"{path}: exists already; name a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        rows = Path(folder) / "rows.parquet"
        _parquet(pool, at, columns, rows)
        table = datasets.Dataset.from_parquet(str(rows), cache_dir=folder)
        table.save_to_disk(str(Path(folder) / "made"))
        if path.exists():
            path.rmdir()
        shutil.move(str(Path(folder) / "made"), path)


def _write_ids(pool: Pool, at: np.ndarray, columns: Mapping[str, Any], path: Path) -> None:
    given = {
        name: np.asarray(values).tolist() for name, values in columns.items() if name not in ("id", "source")
    }
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "source", *given])
        names = hex_ids(pool.id_bytes[at]).tolist()
        for i, (name, source) in enumerate(zip(names, pool.sources[at], strict=True)):
            writer.writerow([name, source, *(_cell(values[i]) for values in given.values())])


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _write_rows(
    pool: Pool, at: np.ndarray, convert: Callable[[list[Message]], dict[str, Any]], path: Path
) -> None:
    _write_lines(_objects(pool, at, convert), path)


def _for_trainer(
    write: Callable[[Pool, np.ndarray, Path, trainers.Rows], None],
) -> Callable[[Pool, np.ndarray, Mapping[str, Any], Path], None]:
    return lambda pool, at, columns, path: write(pool, at, path, _write_rows)


FORMATS: dict[str, Callable[[Pool, np.ndarray, Mapping[str, Any], Path], None]] = {
    "original": _write_original,
    "messages": _write_messages,
    "alpaca": _write_alpaca,
    "sharegpt": _write_sharegpt,
    "parquet": _write_parquet,
    "hf": _write_hf,
    "ids": _write_ids,
    "llamafactory": _for_trainer(trainers.write_llamafactory),
    "axolotl": _for_trainer(trainers.write_axolotl),
    "trl": _for_trainer(trainers.write_trl),
}
"""Writers by the name of their format."""
