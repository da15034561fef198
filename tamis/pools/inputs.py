"""The input of a pool: its files, their cuts, and the rows in them before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from tamis.core.errors import PoolError
from tamis.pools.containers import BOM, blocks
from tamis.pools.scan import LONGEST_BYTES, elements
from tamis.pools.shapes import BadRow, named
from tamis.pools.tables import Item, arrow_rows, csv_rows, yaml_rows


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
    elif file.kind == "row":
        yield 1, b"".join(blocks(path, file.name)).strip(), None
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
