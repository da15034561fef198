"""Rows of the containers that are not JSON: CSV and TSV, YAML lists, Parquet, Arrow.

Each gives items of (line, bytes, row): the line where the row begins, counted from 1 (of Parquet and Arrow
the number of the row), the untouched bytes when the file has some for the row, and the row as an object, or
the `BadRow` that says why it is none.
"""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tamis.core.errors import PoolError
from tamis.pools.containers import blocks, opened
from tamis.pools.scan import LONGEST_BYTES
from tamis.pools.shapes import BadRow

Item = tuple[int, bytes | None, Any]

_BATCH_ROWS = 1024
_YAML_ITEMS = 256
_LOOK_LINES = 100
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ANCHOR = re.compile(rb"(^|[\s\[{,:-])&\w")


def lines_of(path: Path, name: str) -> Iterator[bytes]:
    """Lines with their ends, cut at line feeds alone (U+2028 and U+0085 are text)."""
    rest = b""
    for block in blocks(path, name):
        pieces = (rest + block).split(b"\n")
        rest = pieces.pop()
        if len(rest) > LONGEST_BYTES:
            raise PoolError(f"{name}: a line is longer than {LONGEST_BYTES >> 20} MiB")
        for piece in pieces:
            yield piece + b"\n"
    if rest:
        yield rest


# --- CSV and TSV -----------------------------------------------------------------------------------------


class _Physical:
    """The lines that the csv reader has taken, kept for the row they become part of."""

    def __init__(self, lines: Iterable[bytes], name: str) -> None:
        self.lines, self.name = iter(lines), name
        self.taken: list[bytes] = []
        self.line = self.size = 0

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.taken.append(line)
            self.line += 1
            self.size += len(line)
            if self.size > LONGEST_BYTES:
                start = self.line - len(self.taken) + 1
                raise PoolError(f"{self.name}:{start}: a quoted cell begins here and does not end")
            yield line.decode("utf-8", "surrogateescape")

    def row(self) -> tuple[int, bytes]:
        """(first line, bytes) of what was taken since the last call."""
        taken, start = self.taken, self.line - len(self.taken) + 1
        self.taken, self.size = [], 0
        return start, b"".join(taken)


def csv_rows(
    path: Path,
    name: str,
    columns: list[str] | None = None,
    header: bool = True,
    delimiter: str | None = None,
    quoted: bool = True,
) -> Iterator[Item]:
    """Rows of a CSV or TSV file; `columns` names the cells, else the first row does.

    `header`: the first row holds names, not data. `quoted=False`: quotes are text and every line is a row.
    """
    csv.field_size_limit(LONGEST_BYTES)
    lines = lines_of(path, name)
    first = list(itertools.islice(lines, _LOOK_LINES))
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    delimiter = delimiter or _delimiter(first, columns, quoting)
    source = _Physical(itertools.chain(first, lines), name)
    cells = csv.reader(iter(source), delimiter=delimiter, quoting=quoting, strict=True)
    if header:
        found = _cells(cells)
        source.row()
        if isinstance(found, BadRow):
            raise PoolError(f"{name}:1: {found}")
        columns = columns or found or []
        repeated = sorted({column for column in columns if columns.count(column) > 1})
        if repeated:
            raise PoolError(f"{name}:1: the header names {', '.join(map(repr, repeated))} twice")
    if columns is None:
        raise PoolError(f"{name}: a CSV file without header needs a map with its columns")
    while True:
        found = _cells(cells)
        line, raw = source.row()
        if found is None:
            if len(columns) == 1 and source.line < 2:
                raise PoolError(f"{name}: one line of text, no data: {columns[0][:40]!r}")
            return
        if found == []:
            continue  # a blank line
        if isinstance(found, list) and len(found) != len(columns):
            found = BadRow(f"{len(found)} cells, expected {len(columns)} ({', '.join(columns)})")
        elif isinstance(found, list) and any("\udc80" <= letter <= "\udcff" for letter in "".join(found)):
            found = BadRow("not UTF-8")
        yield line, raw, found if isinstance(found, BadRow) else dict(zip(columns, found, strict=True))


def _cells(reader: Iterator[list[str]]) -> list[str] | BadRow | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        return BadRow(f"not CSV: {error}")


def _delimiter(first: list[bytes], columns: list[str] | None, quoting: Any) -> str:
    """The delimiter that cuts the first row into as many cells as there are columns, else the most cells."""
    cells: dict[str, int] = {}
    for mark in ",\t;":
        text = (line.decode("utf-8", "surrogateescape") for line in first)
        found = _cells(csv.reader(text, delimiter=mark, quoting=quoting, strict=True))
        cells[mark] = len(found) if isinstance(found, list) else 0
    fitting = [mark for mark in cells if columns and cells[mark] == len(columns)]
    return fitting[0] if fitting else max(cells, key=lambda mark: cells[mark])


# --- YAML ------------------------------------------------------------------------------------------------


def yaml_rows(path: Path, name: str) -> Iterator[Item]:
    """Items of a YAML list, loaded a few hundred at a time; aliases, which can explode, are refused."""
    held: list[tuple[int, bytes]] = []
    for line, text in _yaml_items(path, name):
        held.append((line, text))
        if len(held) == _YAML_ITEMS:
            yield from _loaded(held)
            held = []
    yield from _loaded(held)


def _yaml_items(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """(line, text) of every item of a list that stands at the margin."""
    held: list[bytes] = []
    start = 0
    for number, line in enumerate(lines_of(path, name), start=1):
        if line.startswith((b"- ", b"-\n", b"-\r")):
            if held:
                yield start, b"".join(held)
            held, start = [line], number
        elif held:
            held.append(line)
        elif line.strip() and not line.startswith((b"#", b"---", b"%")):
            raise PoolError(f"{name}:{number}: a YAML file must be a list of rows at the margin ('- …')")
    if held:
        yield start, b"".join(held)


def _loaded(items: list[tuple[int, bytes]]) -> Iterator[Item]:
    rows = _load(b"".join(text for _, text in items))
    if isinstance(rows, list) and len(rows) == len(items):
        for (line, text), row in zip(items, rows, strict=True):
            yield line, text, row if isinstance(row, dict) else BadRow("an item that is not an object")
        return
    for line, text in items:  # find which of them is broken
        rows = _load(text)
        good = isinstance(rows, list) and len(rows) == 1 and isinstance(rows[0], dict)
        bad = rows if isinstance(rows, BadRow) else BadRow("an item that is not an object")
        yield line, text, rows[0] if good and isinstance(rows, list) else bad


def _load(text: bytes) -> Any:
    try:
        if _ANCHOR.search(text) and any(
            isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER)
        ):
            return BadRow("YAML aliases are not read; write the value out")
        return yaml.load(text, _LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return BadRow("not YAML: " + " ".join(str(error).split())[:200])


# --- Parquet and Arrow -----------------------------------------------------------------------------------


def arrow_rows(path: Path, name: str, codec: str | None, parquet: bool) -> Iterator[Item]:
    """Rows of a Parquet file or an Arrow IPC file or stream, batch by batch."""
    number = 0
    with _seekable(path, codec) as plain:
        try:
            for batch in _parquet_batches(plain) if parquet else _ipc_batches(plain):
                for start in range(0, len(batch), _BATCH_ROWS):
                    for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                        number += 1
                        yield number, None, row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            kind = "Parquet" if parquet else "Arrow"
            raise PoolError(f"{name}: a damaged {kind} file, after row {number}: {error}") from error


@contextmanager
def _seekable(path: Path, codec: str | None) -> Iterator[Path]:
    if codec is None:
        yield path
        return
    with opened(path) as stream, tempfile.NamedTemporaryFile() as plain:
        try:
            shutil.copyfileobj(stream, plain, 1 << 20)
        except OSError as error:
            raise PoolError(f"{path}: the compressed file is cut off or damaged ({error})") from error
        plain.flush()
        yield Path(plain.name)


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_BATCH_ROWS)


def _ipc_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)
        else:
            source.seek(0)
            yield from pa.ipc.open_stream(source)
