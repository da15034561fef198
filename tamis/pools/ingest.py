"""Rows of files into one shard of a stored pool: parse, convert, check, hash, write as columns."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tamis.core.errors import PoolError
from tamis.pools.containers import BOM, blocks
from tamis.pools._fast import FAST
from tamis.pools.identity import ID_BYTES, row_id, text_id
from tamis.pools.mapping import Rule
from tamis.pools.scan import LONGEST_BYTES, elements
from tamis.pools.shapes import SHAPES, BadRow, Turns, named, shape_of_keys
from tamis.pools.tables import Item, arrow_rows, csv_rows, yaml_rows

GROUP_ROWS = 4096
_GROUP_BYTES = 32 << 20
_KEY_SETS = 4096
_BREAKS = re.compile(rb"[ \t\r\n]*\n[ \t\r\n]*")
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


@dataclass(frozen=True)
class Input:
    """One input file as the reader knows it: number in the pool, container, content digest, and its rule."""

    path: str
    name: str
    stem: str
    kind: str
    codec: str | None
    digest: str
    bytes: int
    rule: dict[str, Any] | None = None


@dataclass(frozen=True)
class Segment:
    """A whole file (`stop` None), or the lines of a JSON-lines file that begin in the bytes [start, stop)."""

    file: int
    start: int = 0
    stop: int | None = None
    line: int = 1


@dataclass
class Tally:
    """What was seen of one file in one shard."""

    rows: int = 0
    bad_rows: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    reasons: list[tuple[int, str]] = field(default_factory=list)


# --- rows of a segment, as batches of (lines, bytes) or of items ------------------------------------------


def segment_bytes(file: Input, segment: Segment) -> Iterator[bytes]:
    """Blocks of whole lines."""
    rest = b""
    if segment.stop is None:
        source = blocks(Path(file.path), file.name)
    else:
        source = _range_blocks(file, segment.start, segment.stop)
    for block in source:
        cut = block.rfind(b"\n") + 1
        if not cut:
            rest += block
            if len(rest) > LONGEST_BYTES:
                raise PoolError(f"{file.name}: a line is longer than {LONGEST_BYTES >> 20} MiB")
            continue
        yield rest + block[:cut]
        rest = block[cut:]
    if rest:
        yield rest


def _range_blocks(file: Input, start: int, stop: int) -> Iterator[bytes]:
    with open(file.path, "rb") as stream:
        if start:
            stream.seek(start - 1)
            stream.readline()  # the line that began before belongs to the segment before
        while (at := stream.tell()) < stop:
            block = stream.read(min(1 << 20, stop - at))
            if not block:
                return
            if at + len(block) >= stop and not block.endswith(b"\n"):
                block += stream.readline()
            yield block.removeprefix(BOM) if at == 0 else block


def items(file: Input) -> Iterator[Item]:
    """Items of any container but JSON lines; the row of a JSON element is None, to be parsed."""
    path = Path(file.path)
    if file.kind in ("array", "object"):
        for line, raw in elements(blocks(path, file.name), file.name, file.kind == "object"):
            yield line, raw, None
    elif file.kind == "csv":
        given = file.rule or {}
        names = ("columns", "header", "delimiter", "quoted")
        yield from csv_rows(path, file.name, **{name: given[name] for name in names if name in given})
    elif file.kind == "yaml":
        yield from yaml_rows(path, file.name)
    else:
        yield from arrow_rows(path, file.name, file.codec, file.kind == "parquet")


def first_items(file: Input, count: int) -> list[Item]:
    """The first items of a file, for a look before any work."""
    if file.kind != "jsonl":
        return list(islice(items(file), count))
    found: list[Item] = []
    for block in segment_bytes(file, Segment(0)):
        found += [(0, raw, None) for raw in block.split(b"\n") if raw.strip()]
        if len(found) >= count:
            break
    return found[:count]


# --- one row ---------------------------------------------------------------------------------------------


def parse(raw: bytes) -> Any:
    """The JSON value of a row; NaN and Infinity, which Python writes, are read as well."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        if raw.lstrip().startswith(b"<<<<<<< "):
            reason = "an unresolved merge-conflict marker"
        elif not _is_utf8(raw):
            reason = "not UTF-8"
        raise BadRow(f"invalid JSON: {reason}") from None


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def unwrapped(row: Any) -> dict[str, Any]:
    """The object of a row, which may stand alone in a list."""
    if type(row) is list and len(row) == 1:
        row = row[0]
    if type(row) is not dict:
        raise BadRow(f"the row is {named(row)}, expected an object")
    return row


def source_of(row: dict[str, Any], stem: str) -> str:
    """The row's own `source` or `dataset` when it is text, else `stem`."""
    for name in ("source", "dataset"):
        value = row.get(name)
        if type(value) is str and value.strip():
            return value
    return stem


# --- a shard ---------------------------------------------------------------------------------------------


class Shard:
    """Rows of a few segments on their way into one Parquet file, in row groups of `GROUP_ROWS` or a little more."""

    def __init__(self, path: Path, rejected: Any) -> None:
        self.tallies: dict[int, Tally] = {}
        self.names: dict[str, int] = {}
        self.arrays: dict[str, list[np.ndarray]] = {"ids": [], "texts": [], "source": [], "file": [], "chars": []}
        self._rejected = rejected
        self._writer = pq.ParquetWriter(
            path, SCHEMA, compression="zstd", compression_level=1,
            use_dictionary=["source", "messages.list.element.role"], write_statistics=False,
        )  # fmt: skip
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._clear()

    def _clear(self) -> None:
        self.ids: list[bytes] = []
        self.texts: list[bytes] = []
        self.flat: list[str] = []
        self.clean: list[str] = []
        self.turns: list[int] = []
        self.sources: list[int] = []
        self.files: list[int] = []
        self.lines: list[int] = []
        self.originals: list[bytes] = []
        self.bytes = 0

    def read(self, number: int, file: Input, segment: Segment) -> None:
        """Read one segment to its end."""
        rule = Rule.from_dict(file.rule) if file.rule else None
        rows = _Rows(self, number, file, rule if rule and rule.converts else None)
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
            for line, raw, value in items(file):
                rows.careful(line, raw, value)
                self._flush_full()
        rows.close()

    def add(self, key: bytes, whole: bytes, turns: Turns, source: str) -> None:
        """The turns of one more row."""
        self.ids.append(key)
        self.texts.append(whole)
        self.flat += turns
        self.clean += [text.strip() for text in turns]
        self.turns.append(len(turns) // 2)
        self.sources.append(self.names.setdefault(source, len(self.names)))

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
        """Send the rows that are held to the Parquet file, in a thread of its own (compression frees the lock)."""
        if not self.ids:
            return
        table, columns = self._columns()
        for name, values in columns.items():
            self.arrays[name].append(values)
        self._count(table, columns)
        self._clear()
        if self._pending is not None:
            self._pending.result()
        self._pending = self._thread.submit(self._writer.write_batch, table)

    def _columns(self) -> tuple[pa.RecordBatch, dict[str, np.ndarray]]:
        rows = len(self.ids)
        contents = self.flat[1::2]
        offsets = np.zeros(rows + 1, np.int32)
        np.cumsum(self.turns, out=offsets[1:])
        lengths = np.fromiter(map(len, contents), np.int64, len(contents))
        files = np.array(self.files, np.int32)
        sources = np.array(self.sources, np.int32)
        columns = {
            "ids": np.frombuffer(b"".join(self.ids), np.uint8).reshape(rows, ID_BYTES),
            "texts": np.frombuffer(b"".join(self.texts), np.uint8).reshape(rows, ID_BYTES),
            "source": sources,
            "file": files,
            "chars": np.add.reduceat(lengths, offsets[:-1]),
        }
        turns = pa.StructArray.from_arrays(
            [pa.array(self.flat[0::2], pa.string()), pa.array(contents, pa.string())], ["role", "content"]
        )
        arrays = [
            pa.array(self.ids, pa.binary(ID_BYTES)),
            pa.array(list(self.names), pa.string()).take(pa.array(sources)),
            pa.array(files),
            pa.array(self.lines, pa.int64()),
            pa.ListArray.from_arrays(pa.array(offsets), turns),
            pa.array(self.originals, pa.binary()),
            pa.array(columns["chars"]),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), columns

    def _count(self, table: pa.RecordBatch, columns: dict[str, np.ndarray]) -> None:
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
        blank = np.fromiter((not text for text in self.clean[1::2]), bool, len(codes))
        seen = {
            "begins with the assistant": codes[first] == _ASSISTANT,
            "ends with the user": codes[last] == _USER,
            "one role twice in a row": np.logical_or.reduceat(twice, first),
            "no assistant turn": ~np.logical_or.reduceat(codes == _ASSISTANT, first),
            "an empty answer": np.logical_or.reduceat(blank & (codes == _ASSISTANT), first),
            "an empty prompt": np.logical_or.reduceat(blank & (codes == _USER), first),
        }
        for note, mask in seen.items():
            if mask.any():
                for number, count in Counter(columns["file"][mask].tolist()).items():
                    self.tallies[number].notes[note] += count

    def close(self) -> dict[str, np.ndarray]:
        """Finish the Parquet file; the arrays of all its rows by name."""
        self.flush()
        if self._pending is not None:
            self._pending.result()
        self._thread.shutdown()
        self._writer.close()
        empty = {"ids": (0, ID_BYTES), "texts": (0, ID_BYTES)}
        types = {"ids": np.uint8, "texts": np.uint8, "chars": np.int64}
        return {
            name: np.concatenate(parts) if parts else np.empty(empty.get(name, 0), types.get(name, np.int32))
            for name, parts in self.arrays.items()
        }

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


_ROLE_CODES = {"system": 0, "user": 1, "assistant": 2, "tool": 3}
_USER, _ASSISTANT = 1, 2


class _Rows:
    """Conversion of the rows of one file: a quick way for rows without surprises, a careful way for the rest."""

    def __init__(self, shard: Shard, number: int, file: Input, rule: Rule | None) -> None:
        self.shard, self.number, self.file, self.rule = shard, number, file, rule
        self.tally = shard.tallies.setdefault(number, Tally())
        self.known: dict[tuple[str, ...], list[Any]] = {}

    def fast(self, line: int, raws: list[bytes]) -> None:
        """JSON lines without a rule. What is not as expected goes to `careful`, which comes to the same."""
        shard, known, loads, dumps = self.shard, self.known, orjson.loads, orjson.dumps
        add_id, add_text, add_original = shard.ids.append, shard.texts.append, shard.originals.append
        flat, cleaned, add_turns, add_line = shard.flat, shard.clean, shard.turns.append, shard.lines.append
        add_source = shard.sources.append
        own = shard.names.setdefault(self.file.stem, len(shard.names))
        for at, raw in enumerate(raws, line):
            try:
                row = loads(raw)
                entry = known[tuple(row)]
                turns = entry[0](row)
                clean = [text.strip() for text in turns]
                payload = dumps(clean)
            except (ValueError, KeyError, TypeError, AttributeError, BadRow):
                if raw.strip():
                    self.careful(at, raw, None)
                continue
            key = blake2b(payload, digest_size=16).digest()
            add_id(key)
            add_text(key if clean == turns else blake2b(dumps(turns), digest_size=16).digest())
            flat += turns
            cleaned += clean
            add_turns(len(turns) >> 1)
            add_source(self._source(row) if entry[1] else own)
            add_line(at)
            add_original(raw)
            entry[2] += 1
        shard.files += [self.number] * (len(shard.ids) - len(shard.files))
        shard.bytes += sum(map(len, raws))

    def _source(self, row: dict[str, Any]) -> int:
        names = self.shard.names
        return names.setdefault(source_of(row, self.file.stem), len(names))

    def careful(self, line: int, raw: bytes | None, value: Any) -> None:
        """Any row: parsed if that is due, converted, and added, or rejected with the reason."""
        shard = self.shard
        try:
            if isinstance(value, BadRow):
                raise value
            row = unwrapped(parse(raw) if value is None and raw is not None else value)
            original = self._original(raw, value, row)
            made = list(self._converted(row))
            hashed = [(*_hashed(turns), turns, source, narrowed) for turns, source, narrowed in made]
        except BadRow as error:
            shown = raw if raw is not None else _as_json(value)
            shard.reject(self.file, self.tally, line, shown, str(error))
            return
        for key, whole, turns, source, narrowed in hashed:
            shard.add(key, whole, turns, source)
            shard.files.append(self.number)
            shard.lines.append(line)
            shard.originals.append(original if narrowed is None else narrowed)
            shard.bytes += len(original)
            self.tally.rows += 1

    def _original(self, raw: bytes | None, value: Any, row: dict[str, Any]) -> bytes:
        """The row as one JSON line: untouched when it was one, of a pretty-printed one without its line breaks."""
        if raw is None or value is not None:
            return _as_json(row)
        return _BREAKS.sub(b" ", raw) if b"\n" in raw else raw

    def _converted(self, row: dict[str, Any]) -> Iterator[tuple[Turns, str, bytes | None]]:
        """(turns, source, original when it is not the whole row) of everything that a row gives."""
        if self.rule is not None:
            made = self.rule.rows(row)
            if not made:
                raise BadRow(f"the map finds no {' of '.join(reversed(self.rule.each))} in the row")
            self.tally.shapes["map"] += len(made)
            for turns, source, narrowed in made:
                yield turns, source or source_of(row, self.file.stem), narrowed
            return
        keys = tuple(row)
        shape = shape_of_keys(keys)
        if shape is None:
            raise BadRow(f"no known shape; its keys are {', '.join(map(str, keys)) or 'none'}")
        turns = SHAPES[shape](row)
        if len(self.known) < _KEY_SETS:
            self.known.setdefault(keys, [FAST.get(shape, SHAPES[shape]), "source" in row or "dataset" in row, 0])
        self.tally.shapes[shape] += 1
        if "tools" in row:
            self.tally.notes["tools are not rendered"] += 1
        if shape == "alpaca" and type(row.get("output")) is list:
            self.tally.notes["of several outputs the first is read"] += 1
        yield turns, source_of(row, self.file.stem), None

    def close(self) -> None:
        """Count what the quick way has read."""
        for keys, (_, _, count) in self.known.items():
            if count:
                self.tally.rows += count
                self.tally.shapes[str(shape_of_keys(keys))] += count
                if "tools" in keys:
                    self.tally.notes["tools are not rendered"] += count


def _hashed(turns: Turns) -> tuple[bytes, bytes]:
    """(id, hash of the turns as they are)."""
    try:
        return row_id(turns), text_id(turns)
    except TypeError:
        raise BadRow("text with half of a surrogate pair, which UTF-8 cannot hold") from None


def _as_json(value: Any) -> bytes:
    """A row of a table as one JSON line; what JSON lacks (bytes, decimals, dates) becomes text."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise BadRow(f"the row cannot be written as JSON: {error}") from error
