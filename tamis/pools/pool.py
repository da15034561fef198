"""A pool that was read: rows in a columnar store, opened by their number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.core.errors import RequestError
from tamis.core.files import read_json
from tamis.pools.identity import ID_BYTES, hex_ids

_OPEN_FILES = 16
_WINDOW_CHARS = 32 << 20


class Message(NamedTuple):
    """One turn: `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One row of a pool. `file` and `line` (from 1): where it was first; `count`: how often it is there."""

    position: int
    id: str
    source: str
    messages: list[Message]
    file: str
    line: int
    original: bytes
    count: int


@dataclass(frozen=True)
class FileReport:
    """What was found in one file: `rows` read (bad ones included), `duplicate_rows` merged into earlier ones.

    `shape` names the shape of the rows, the commonest first; `notes` counts what is unusual but valid.
    """

    path: str
    container: str
    shape: str
    rows: int
    bad_rows: int
    duplicate_rows: int
    notes: dict[str, int] = field(default_factory=dict)


class Pool:
    """Rows of a stored pool, each distinct conversation once, in the order in which they were read.

    Nothing of the text is held in memory; `folder` is the complete thing in a store. `files` replaces the
    reports kept there, when the same contents were found under other paths.
    """

    def __init__(self, folder: str | Path, files: Sequence[FileReport] | None = None) -> None:
        self.path = Path(folder)
        meta = self.path / "meta.json"
        if not meta.exists():
            raise RequestError(f"{folder}: no stored pool here; read it again with tamis.read_pool")
        self._facts: dict[str, Any] = read_json(meta)["summary"]
        self.files = list(files or (FileReport(**report) for report in self._facts["files"]))
        self._shards = [self.path / name for name in self._facts["shards"]]
        self._first = np.cumsum([0, *self._facts["shard_rows"]]).tolist()

    def __len__(self) -> int:
        return int(self._facts["rows"])

    def __repr__(self) -> str:
        return f"Pool({len(self):,} rows of {len(self.files)} files, {self.digest})"

    @property
    def digest(self) -> str:
        """Name of the content: ids, texts and sources of the rows in their order; not of paths."""
        return str(self._facts["digest"])

    @cached_property
    def id_bytes(self) -> np.ndarray:
        """Ids (n, 16) uint8, memory-mapped."""
        return self._array("ids")

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids (n,) '<U32' of hex digits."""
        return hex_ids(self.id_bytes)

    @property
    def source_names(self) -> list[str]:
        """Names of the sources, in the order in which they first occur."""
        return list(self._facts["sources"])

    @cached_property
    def source_codes(self) -> np.ndarray:
        """Source of each row (n,) int32, as an index of `source_names`."""
        return self._array("sources")

    @cached_property
    def sources(self) -> np.ndarray:
        """Source of each row (n,) of text."""
        names = np.empty(len(self.source_names), object)
        names[:] = self.source_names
        found: np.ndarray = names[self.source_codes]
        return found

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each row occurs in the input (n,) int32."""
        return self._array("counts")

    @cached_property
    def chars(self) -> np.ndarray:
        """Characters in the contents of each row (n,) int64."""
        return self._array("chars")

    def matching(self, prefix: str) -> np.ndarray:
        """Positions (k,) int64 of the rows whose ids begin with `prefix`."""
        text = prefix.strip().lower()
        if not text or len(text) > 2 * ID_BYTES or set(text) - set("0123456789abcdef"):
            raise RequestError(f"{prefix!r} is no row id: expected up to {2 * ID_BYTES} hex digits")
        low = np.frombuffer(bytes.fromhex(text.ljust(2 * ID_BYTES, "0")), np.uint8)
        high = np.frombuffer(bytes.fromhex(text.ljust(2 * ID_BYTES, "f")), np.uint8)
        whole = len(text) // 2
        fits = (self.id_bytes[:, :whole] == low[:whole]).all(1)
        if len(text) % 2:
            fits &= (self.id_bytes[:, whole] >= low[whole]) & (self.id_bytes[:, whole] <= high[whole])
        found: np.ndarray = np.flatnonzero(fits)
        return found

    def find(self, prefix: str) -> int:
        """Position of the row whose id begins with `prefix`."""
        found = self.matching(prefix)
        if len(found) != 1:
            shown = ", ".join(hex_ids(self.id_bytes[found[:3]]).tolist())
            reason = (
                f"begins {len(found)} ids ({shown}, …); write more digits" if len(found) else "is of no row"
            )
            raise RequestError(f"the id {prefix!r} {reason}")
        return int(found[0])

    # --- rows ------------------------------------------------------------------------------------------

    def row(self, position: int) -> Row:
        """The row at a position; negative positions count from the end."""
        at = range(len(self))[position]
        return next(self.iter_rows(at, at + 1))

    def iter_rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows of [start, stop), a row group at a time."""
        columns = ["messages", "file", "line", "original"]
        for window, table in self._tables(self._range(start, stop), columns):
            files, lines, originals = (table.column(name).to_pylist() for name in columns[1:])
            turns = _conversations(table.column("messages"))
            ids = hex_ids(self.id_bytes[window])
            for i, position in enumerate(window.tolist()):
                yield Row(
                    position, str(ids[i]), str(self.sources[position]), turns[i], self.files[files[i]].path,
                    lines[i], originals[i], int(self.counts[position]),
                )  # fmt: skip

    def conversations(self, start: int = 0, stop: int | None = None) -> list[list[Message]]:
        """Turns of the rows of [start, stop)."""
        found: list[list[Message]] = []
        for _, table in self._tables(self._range(start, stop), ["messages"]):
            found += _conversations(table.column("messages"))
        return found

    def messages_at(self, positions: Iterable[int] | np.ndarray) -> Iterator[list[Message]]:
        """Turns of the rows at `positions`, in that order, in bounded memory."""
        for _, table in self._tables(np.asarray(positions, np.int64), ["messages"]):
            yield from _conversations(table.column("messages"))

    def originals(self, positions: Iterable[int] | np.ndarray) -> Iterator[bytes]:
        """Untouched original rows at `positions`, in that order, each one line of JSON; in bounded memory."""
        for _, table in self._tables(np.asarray(positions, np.int64), ["original"]):
            yield from table.column("original").to_pylist()

    # --- storage ---------------------------------------------------------------------------------------

    @cached_property
    def _positions(self) -> np.ndarray:
        return self._array("positions")

    def _array(self, name: str) -> np.ndarray:
        mapped: np.ndarray = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return mapped

    def _range(self, start: int, stop: int | None) -> np.ndarray:
        return np.arange(*slice(start, stop).indices(len(self)))

    def _tables(self, positions: np.ndarray, columns: list[str]) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """(positions, their columns in the same order) of windows that hold some 32 million characters."""
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise RequestError(f"positions must lie in 0 to {len(self) - 1}")
        total = np.cumsum(np.asarray(self.chars[positions]) + 64)
        start = 0
        while start < len(positions):
            base = total[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(total, base + _WINDOW_CHARS, side="right")))
            window = positions[start:stop]
            yield window, self._take(window, columns)
            start = stop

    def _take(self, window: np.ndarray, columns: list[str]) -> pa.Table:
        """Columns of the rows at some positions: each row group is read once, then put in order."""
        physical = np.asarray(self._positions[window])
        order = np.argsort(physical, kind="stable")
        ranked = physical[order]
        parts, at = [], 0
        while at < len(ranked):
            shard = bisect_right(self._first, int(ranked[at])) - 1
            groups, file = self._groups(shard)
            local = int(ranked[at]) - self._first[shard]
            group = bisect_right(groups, local) - 1
            bound = self._first[shard] + groups[group + 1]
            end = int(np.searchsorted(ranked, bound))
            table = file.read_row_group(group, columns=columns, use_threads=False)
            rows = ranked[at:end] - (self._first[shard] + groups[group])
            whole = np.array_equal(rows, np.arange(len(table)))
            parts.append(table if whole else table.take(pa.array(rows)))
            at = end
        table = pa.concat_tables(parts)
        if not np.array_equal(order, np.arange(len(order))):
            back = np.empty(len(order), np.int64)
            back[order] = np.arange(len(order))
            table = table.take(pa.array(back))
        return table

    @cached_property
    def _groups(self) -> Any:
        @lru_cache(_OPEN_FILES)
        def groups(shard: int) -> tuple[list[int], pq.ParquetFile]:
            file = pq.ParquetFile(self._shards[shard])
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            return np.cumsum([0, *rows]).tolist(), file

        return groups


def _conversations(column: pa.ChunkedArray) -> list[list[Message]]:
    """Turns of a column of lists of (role, content)."""
    found: list[list[Message]] = []
    for chunk in column.chunks:
        values = chunk.flatten()  # of this chunk alone, whatever it is a slice of
        turns = list(map(Message, values.field("role").to_pylist(), values.field("content").to_pylist()))
        bounds = np.concatenate([[0], np.cumsum(chunk.value_lengths().to_numpy())]).tolist()
        found += [turns[a:b] for a, b in pairwise(bounds)]
    return found
