"""Rows of files into one shard of a stored pool: parse, convert, check, hash, write as columns."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.pools.convert import Converter
from tamis.pools.identity import ID_BYTES
from tamis.pools.inputs import Input, Segment, items, segment_bytes

GROUP_ROWS = 4096
_GROUP_BYTES = 32 << 20
_FIRST_REASONS = 10

SCHEMA = pa.schema(
    [
        ("id", pa.binary(ID_BYTES)),
        ("source", pa.string()),
        ("file", pa.int32()),
        ("line", pa.int64()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("original", pa.binary()),
        ("chars", pa.int64()),
    ]
)


COLUMNS = np.dtype(
    [("id", "u1", ID_BYTES), ("text", "u1", ID_BYTES), ("source", "<i4"), ("file", "<i4"), ("chars", "<i8")]
)
"""What merging needs of a row: its id, the hash of its text, codes of its source and file, characters."""


@dataclass
class Tally:
    """What was seen of one file in one shard."""

    rows: int = 0
    bad_rows: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    reasons: list[tuple[int, str]] = field(default_factory=list)


_ROLE_CODES = {"system": 0, "user": 1, "assistant": 2, "tool": 3}
_USER, _ASSISTANT = 1, 2


class Shard:
    """Rows on their way into one Parquet file, in row groups of `GROUP_ROWS` or somewhat more."""

    def __init__(self, path: Path, rejected: Any) -> None:
        self.tallies: dict[int, Tally] = {}
        self.names: dict[str, int] = {}
        self.columns: list[np.ndarray] = []
        self._rejected = rejected
        self._writer = pq.ParquetWriter(
            path, SCHEMA, compression="lz4",
            use_dictionary=["source", "messages.list.element.role"], write_statistics=False,
        )  # fmt: skip
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._clear()

    def _clear(self) -> None:
        self.ids: list[bytes] = []
        self.texts: dict[int, bytes] = {}
        self.flat: list[str] = []
        self.turns: list[int] = []
        self.sources: list[int] = []
        self.files: list[int] = []
        self.lines: list[int] = []
        self.originals: list[bytes] = []
        self.bytes = 0

    def read(self, number: int, file: Input, segment: Segment) -> None:
        """Read one segment to its end."""
        rows = Converter(self, number, file, self.tallies.setdefault(number, Tally()))
        if file.kind == "jsonl":
            line = segment.line
            for block in segment_bytes(file, segment):
                raws = block.removesuffix(b"\n").split(b"\n")
                if b"\r" in block:
                    raws = [raw.removesuffix(b"\r") for raw in raws]
                if rows.rule is None:
                    rows.fast(line, raws)
                else:
                    for at, raw in enumerate(raws, line):
                        if raw.strip():
                            rows.careful(at, raw, None)
                line += len(raws)
                self._flush_full()
        else:
            for line, text, value in items(file):
                rows.careful(line, text, value)
                self._flush_full()
        rows.close()

    def reject(self, file: Input, tally: Tally, line: int, raw: bytes, reason: str) -> None:
        """One more bad row, kept whole."""
        tally.bad_rows += 1
        tally.rows += 1
        if len(tally.reasons) < _FIRST_REASONS:
            tally.reasons.append((line, reason))
        entry: dict[str, Any] = {"file": Path(file.name).name, "line": line, "reason": reason}
        try:
            entry["original"] = raw.decode()
        except UnicodeDecodeError:
            entry["original_hex"] = raw.hex()
        self._rejected.write(orjson.dumps(entry) + b"\n")

    def _flush_full(self) -> None:
        if len(self.ids) >= GROUP_ROWS or self.bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send the rows that are held to the Parquet file, in a thread (compressing frees the lock)."""
        if not self.ids:
            return
        table, columns = self._columns()
        self.columns.append(columns)
        self._count(table, columns["file"])
        self._clear()
        if self._pending is not None:
            self._pending.result()
        self._pending = self._thread.submit(self._writer.write_batch, table)

    def _columns(self) -> tuple[pa.RecordBatch, np.ndarray]:
        rows = len(self.ids)
        contents = self.flat[1::2]
        offsets = np.zeros(rows + 1, np.int32)
        np.cumsum(self.turns, out=offsets[1:])
        lengths = np.fromiter(map(len, contents), np.int64, len(contents))
        columns = np.empty(rows, COLUMNS)
        columns["id"] = np.frombuffer(b"".join(self.ids), np.uint8).reshape(rows, ID_BYTES)
        columns["text"] = columns["id"]
        for at, text in self.texts.items():
            columns["text"][at] = np.frombuffer(text, np.uint8)
        columns["source"], columns["file"] = self.sources, self.files
        columns["chars"] = np.add.reduceat(lengths, offsets[:-1])
        turns = pa.StructArray.from_arrays(
            [pa.array(self.flat[0::2], pa.string()), pa.array(contents, pa.string())], ["role", "content"]
        )
        arrays = [
            pa.array(self.ids, pa.binary(ID_BYTES)),
            pa.array(list(self.names), pa.string()).take(pa.array(self.sources, pa.int32())),
            pa.array(self.files, pa.int32()),
            pa.array(self.lines, pa.int64()),
            pa.ListArray.from_arrays(pa.array(offsets), turns),
            pa.array(self.originals, pa.binary()),
            pa.array(columns["chars"]),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), columns

    def _count(self, table: pa.RecordBatch, files: np.ndarray) -> None:
        """Count by file what is worth saying of valid rows."""
        messages = table.column("messages")
        roles = messages.values.field("role").dictionary_encode()
        names = roles.dictionary.to_pylist()
        codes = np.array([_ROLE_CODES[name] for name in names])[roles.indices.to_numpy()]
        offsets = messages.offsets.to_numpy()
        first, last = offsets[:-1], offsets[1:] - 1
        twice = np.zeros(len(codes), bool)
        twice[1:] = codes[1:] == codes[:-1]
        twice[first] = False
        seen = {
            "begins with the assistant": codes[first] == _ASSISTANT,
            "ends with the user": codes[last] == _USER,
            "one role twice in a row": np.logical_or.reduceat(twice, first),
            "no assistant turn": ~np.logical_or.reduceat(codes == _ASSISTANT, first),
        }
        for note, mask in seen.items():
            if mask.any():
                for number, count in Counter(files[mask].tolist()).items():
                    self.tallies[number].notes[note] += count

    def close(self) -> np.ndarray:
        """Finish the Parquet file; `COLUMNS` of all its rows."""
        self.flush()
        if self._pending is not None:
            self._pending.result()
        self._thread.shutdown()
        self._writer.close()
        return np.concatenate([np.empty(0, COLUMNS), *self.columns])

    def abandon(self) -> None:
        """Let go of the thread and the file after an error."""
        self._thread.shutdown()
        self._writer.close()

    def facts(self) -> dict[str, Any]:
        """Counts by file and the names of the source codes, as JSON."""
        return {
            "sources": list(self.names),
            "files": {str(number): vars(tally) for number, tally in self.tallies.items()},
        }
