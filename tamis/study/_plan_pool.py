"""What is known of a pool before a run: all of it, when it is stored or small; else what a sample tells."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.store import Thing
from tamis.pools.inputs import Input, items, segment_bytes
from tamis.pools.inputs import Segment as Whole
from tamis.pools.pool import Pool
from tamis.pools.read import find_pool, read_pool

READ_BYTES = 32 << 20
"""Input up to this size is read, into a temporary folder, so that what follows from it is exact."""
_SAMPLE_BYTES = 16 << 20
_PIECES = 8
_HELPED_BYTES, _MOST_READERS = 64 << 20, 4  # as in pools/_workers.py


@dataclass(frozen=True)
class Known:
    """A pool as far as it is known. `pool` holds real rows, a share 1 / `scale` of those in the files; None
    for a pool that is only imagined. `digest`: name of the whole content, None when it was not read."""

    pool: Pool | None
    rows: int
    characters: float
    scale: float
    digest: str | None
    how: str
    row_bytes: float  # of an original row
    thing: Thing | None = None
    input_bytes: int = 0
    seconds: float = 0.0  # of reading
    disk: float = 0.0  # of the stored pool
    tokens_per_row: float | None = None

    def sample(self, rows: int) -> np.ndarray:
        """Positions of up to `rows` rows, evenly over `pool`."""
        assert self.pool is not None
        return np.unique(np.linspace(0, len(self.pool) - 1, min(rows, len(self.pool))).astype(np.int64))


def imagined(rows: int, tokens_per_row: float) -> Known:
    """A pool of which only the size is given."""
    how = f"as given: {rows:,} rows of {tokens_per_row:g} tokens"
    characters = rows * tokens_per_row * 4
    return Known(None, rows, characters, 1.0, None, how, tokens_per_row * 4, tokens_per_row=tokens_per_row)


def known_pool(
    paths: Sequence[str], store: Path, scratch: Path, *, query: bool = False, **reading: Any
) -> Known:
    """The pool in the files at `paths`; `scratch` is a folder for what is read on the way. `query`: equal
    rows stay apart. Nothing is written to `store`."""
    reading = {"map": reading.get("map"), "merge_duplicates": not query}
    files, _, thing = find_pool(paths, store=store, **reading)
    size = sum(file.bytes for file in files)
    if thing.state == "complete":
        disk = sum(entry["bytes"] for entry in thing.meta["files"].values())
        return _whole(Pool(thing.folder), thing, size, "stored: exact", 0.0, disk)
    start = time.perf_counter()
    if sum(_plain_bytes(file) for file in files) <= READ_BYTES:
        pool = read_pool(paths, store=scratch, skip_bad_rows=True, **reading)
        seconds = time.perf_counter() - start
        disk = sum(path.stat().st_size for path in Path(pool.path).iterdir())
        how = "the files were read for this plan, and nothing of it kept: exact"
        return _whole(pool, thing, size, how, seconds, disk)
    return _sampled(files, thing, scratch, reading)


def _whole(pool: Pool, thing: Thing, size: int, how: str, seconds: float, disk: float) -> Known:
    characters = float(np.sum(pool.chars, dtype=np.int64))
    row_bytes = _row_bytes(pool)
    return Known(pool, len(pool), characters, 1.0, pool.digest, how, row_bytes, thing, size, seconds, disk)


def _row_bytes(pool: Pool) -> float:
    """Mean bytes of an original row, from up to 1,024 of them."""
    if not len(pool):
        return 0.0
    rows = np.unique(np.linspace(0, len(pool) - 1, min(1024, len(pool))).astype(np.int64))
    return float(np.mean([len(original) + 1 for original in pool.originals(rows)]))


# --- samples of large input ------------------------------------------------------------------------------


def _sampled(files: Sequence[Input], thing: Thing, scratch: Path, reading: dict[str, Any]) -> Known:
    """Read a sample of every file, each scaled by its own bytes; duplicates between samples are not seen."""
    each = max(_SAMPLE_BYTES // len(files), 1 << 18)
    rows = characters = disk = seconds = original = 0.0
    parts: list[Path] = []
    for number, file in enumerate(files):
        path = scratch / "sample" / str(number) / Path(file.path).name
        path.parent.mkdir(parents=True)
        share = _write_sample(file, path, each)
        start = time.perf_counter()
        pool = read_pool(path, store=scratch, skip_bad_rows=True, **reading)
        spent = time.perf_counter() - start
        rows += len(pool) / share
        characters += float(np.sum(pool.chars)) / share
        disk += sum(entry.stat().st_size for entry in Path(pool.path).iterdir()) / share
        original += _row_bytes(pool) * len(pool) / share
        seconds += spent / share
        parts.append(path)
    pool = read_pool(parts, store=scratch, skip_bad_rows=True, **reading)
    size = sum(file.bytes for file in files)
    readers = min(_MOST_READERS, os.cpu_count() or 1) if size > _HELPED_BYTES else 1
    how = (
        f"a sample of {len(pool):,} rows, scaled by bytes file by file; duplicates beyond it are not counted"
    )
    return Known(
        pool, round(rows), characters, rows / max(len(pool), 1), None, how, original / max(rows, 1), thing,
        size, seconds / readers, disk,
    )  # fmt: skip


def _write_sample(file: Input, path: Path, most: int) -> float:
    """Write a part of `file` to `path`; gives the share of its rows, by bytes (of Parquet: by rows)."""
    if file.kind == "jsonl" and file.codec is None:
        return _pieces(file, path, most)
    if file.kind == "jsonl":
        return _head(segment_bytes(file, Whole(0)), path, most, _plain_bytes(file))
    if file.kind == "array":
        raws = (raw + b"\n" for _, raw, _ in items(file) if raw is not None)
        return _head(raws, path, most, _plain_bytes(file))
    if file.kind == "parquet" and file.codec is None:
        return _first_groups(file, path, most)
    os.symlink(Path(file.path).resolve(), path)  # no way to cut it: read whole
    return 1.0


def _pieces(file: Input, path: Path, most: int) -> float:
    """Whole lines of pieces evenly spread over a JSON-lines file."""
    if file.bytes <= most:
        os.symlink(Path(file.path).resolve(), path)
        return 1.0
    with open(file.path, "rb") as source, open(path, "wb") as out:
        for start in np.linspace(0, file.bytes - most // _PIECES, _PIECES).astype(np.int64).tolist():
            source.seek(start)
            if start:
                source.readline()
            piece = source.read(most // _PIECES)
            out.write(piece[: piece.rfind(b"\n") + 1])
    return path.stat().st_size / file.bytes


def _head(blocks: Any, path: Path, most: int, size: float) -> float:
    with open(path, "wb") as out:
        for block in blocks:
            out.write(block)
            if out.tell() >= most:
                return out.tell() / max(size, out.tell())
    return 1.0


def _first_groups(file: Input, path: Path, most: int) -> float:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pq.ParquetFile(file.path)
    wanted = max(1, round(source.metadata.num_rows * most / max(file.bytes, 1)))
    batches = islice(source.iter_batches(min(wanted, 1024)), -(-wanted // 1024))
    table = pa.Table.from_batches(list(batches))
    pq.write_table(table, path)
    return float(len(table) / source.metadata.num_rows)


def _plain_bytes(file: Input) -> float:
    """Bytes of a file without its compression: from the trailer of gzip, else four times the file."""
    if file.codec is None:
        return float(file.bytes)
    if file.codec == "gzip":
        with open(file.path, "rb") as source:
            source.seek(-4, os.SEEK_END)
            plain = int.from_bytes(source.read(4), "little")
        if plain > file.bytes:
            return float(plain)
    return 4.0 * file.bytes
