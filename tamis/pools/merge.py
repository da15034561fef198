"""The shards of a pool together: equal rows merged, columns over all rows, a report of each file."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tamis.core.digest import canonical
from tamis.core.files import replacing, write_array
from tamis.core.store import Thing
from tamis.pools.identity import first_occurrences
from tamis.pools.inputs import Input
from tamis.pools.pool import FileReport

_FIRST_BAD = 10
REJECTED = "rejected.jsonl"


def merge(thing: Thing, files: Sequence[Input], duplicates: bool) -> dict[str, Any]:
    """Write the arrays of the kept rows into the partial thing; gives its summary.

    `duplicates`: merge equal rows into the first; else all are kept.
    """
    facts = [json.loads((thing.part / f"facts-{i:05d}.json").read_text()) for i in range(thing.shards)]
    names, codes = _sources(thing, facts)
    ids = _joined(thing, "id")
    kept, counts = np.arange(len(ids), dtype=np.int64), np.ones(len(ids), np.int32)
    if duplicates:
        kept, counts = first_occurrences(ids)
    file_of = _joined(thing, "file")
    merged = np.bincount(file_of, minlength=len(files)) - np.bincount(file_of[kept], minlength=len(files))
    sources, names = _renumbered(codes[kept], names)
    _save(thing, "positions", kept)
    _save(thing, "counts", counts)
    _save(thing, "sources", sources)
    _save(thing, "chars", _joined(thing, "chars")[kept])
    ids = ids[kept]
    _save(thing, "ids", ids)
    texts = _joined(thing, "text")[kept]
    state = blake2b(canonical({"rows": len(kept), "sources": names}).encode(), digest_size=16)
    for array in (ids, texts, sources):
        state.update(np.ascontiguousarray(array).data)
    _gather_rejected(thing)
    listed = [_report(file, number, facts, int(merged[number])) for number, file in enumerate(files)]
    return {
        "rows": len(kept),
        "rows_read": len(file_of),
        "bad_rows": sum(report["bad_rows"] for report in listed),
        "first_bad": _first_bad(facts),
        "digest": state.hexdigest(),
        "sources": names,
        "shards": [f"rows-{i:05d}.parquet" for i in range(thing.shards)],
        "shard_rows": [len(columns) for columns in thing.arrays("columns")],
        "files": listed,
    }


def _joined(thing: Thing, name: str) -> np.ndarray:
    """One column of all rows read, in order."""
    return np.concatenate([columns[name] for columns in thing.arrays("columns")])


def _save(thing: Thing, name: str, array: np.ndarray) -> None:
    with thing.new_file(f"{name}.npy") as path:
        write_array(path, array)


def _sources(thing: Thing, facts: Sequence[dict[str, Any]]) -> tuple[list[str], np.ndarray]:
    """Names of the sources of all shards, and the code (r,) int32 of every row read."""
    numbers: dict[str, int] = {}
    parts = []
    for fact, columns in zip(facts, thing.arrays("columns"), strict=True):
        table = np.array([numbers.setdefault(name, len(numbers)) for name in fact["sources"]], np.int32)
        parts.append(table[columns["source"]] if len(columns) else np.empty(0, np.int32))
    return list(numbers), np.concatenate(parts)


def _renumbered(codes: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Codes in the order in which the sources first occur among the kept rows; unused ones fall out."""
    found, first = np.unique(codes, return_index=True)
    order = found[np.argsort(first)]
    table = np.zeros(len(names), np.int32)
    table[order] = np.arange(len(order), dtype=np.int32)
    return table[codes], [names[code] for code in order]


def _tallies(facts: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [fact["files"][str(number)] for fact in facts if str(number) in fact["files"]]


def _report(file: Input, number: int, facts: Sequence[dict[str, Any]], duplicates: int) -> dict[str, Any]:
    shapes: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    tallies = _tallies(facts, number)
    for tally in tallies:
        shapes.update(tally["shapes"])
        notes.update(tally["notes"])
    rows = sum(tally["rows"] for tally in tallies)
    if not rows:
        notes["no rows in the file"] = 1
    container = file.kind if file.codec is None else f"{file.kind} ({file.codec})"
    return {
        "path": Path(file.name).name,
        "container": container,
        "shape": ", ".join(name for name, _ in sorted(shapes.items(), key=lambda part: (-part[1], part[0]))),
        "rows": rows,
        "bad_rows": sum(tally["bad_rows"] for tally in tallies),
        "duplicate_rows": duplicates,
        "notes": dict(sorted(notes.items())),
    }


def reports(facts: dict[str, Any], files: Sequence[Input]) -> list[FileReport]:
    """The stored reports under the paths of this call."""
    pairs = zip(facts["files"], files, strict=True)
    return [FileReport(**{**report, "path": file.name}) for report, file in pairs]


def _first_bad(facts: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """(file number, line, reason) of the first bad rows, in order."""
    found: list[list[Any]] = []
    for fact in facts:
        for number, tally in sorted(fact["files"].items(), key=lambda part: int(part[0])):
            found += [[int(number), line, reason] for line, reason in tally["reasons"]]
    return found[:_FIRST_BAD]


def _gather_rejected(thing: Thing) -> None:
    """All bad rows in one file of the thing, when there are any; done again, it changes nothing."""
    parts = [part for i in range(thing.shards) if (part := thing.part / f"bad-{i:05d}.jsonl").exists()]
    if not (thing.part / REJECTED).exists() and any(part.stat().st_size for part in parts):
        with thing.new_file(REJECTED) as path, open(path, "wb") as whole:
            for part in parts:
                with open(part, "rb") as lines:
                    shutil.copyfileobj(lines, whole)
    for part in parts:
        part.unlink(missing_ok=True)


def copy_rejected(thing: Thing, files: Sequence[Input], path: Path) -> None:
    """Write the bad rows of a complete pool to `path`, under the names of this call; none: an empty file."""
    named = {Path(file.name).name: file.name for file in files}
    stored = thing.path(REJECTED)
    with replacing(path) as temporary, open(temporary, "wb") as out:
        if stored.exists():
            with open(stored, "rb") as lines:
                for line in lines:
                    entry = orjson.loads(line)
                    entry["file"] = named[entry["file"]]
                    out.write(orjson.dumps(entry) + b"\n")
