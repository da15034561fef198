"""Contents of files by digest, and their cut into shards of about equal bytes, in one pass over the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tamis.core.errors import PoolError
from tamis.pools.inputs import Input, Segment

SHARD_BYTES = 32 << 20
_PIECE_BYTES = 1 << 20
_COMPRESSED = 4
"""Rows take about so many times the bytes of their compressed file; only to even out shards."""


@dataclass(frozen=True)
class Content:
    """Digest of a file (a hash over the hashes of its cuts), its bytes, the line breaks before each cut."""

    digest: str
    bytes: int
    breaks: tuple[int, ...]
    whole: tuple[bool, ...]


def content_of(path: Path, count_lines: bool) -> Content:
    """Digest of a file, its cuts hashed side by side; line breaks are counted on the way when asked for."""
    size = path.stat().st_size
    starts = range(0, size, SHARD_BYTES)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda start: _cut(path, start, count_lines), starts))
    digest = sha256(b"".join(part[0] for part in parts)).hexdigest()[:32]
    breaks, whole = [0], [True]
    for _, count, ends_line in parts:
        breaks.append(breaks[-1] + count)
        whole.append(ends_line)
    return Content(digest, size, tuple(breaks), tuple(whole))


def _cut(path: Path, start: int, count_lines: bool) -> tuple[bytes, int, bool]:
    """(hash, line breaks, whether it ends with one) of the cut of a file that begins at `start`."""
    state, count, last = sha256(), 0, b""
    with open(path, "rb") as file:
        file.seek(start)
        for _ in range(SHARD_BYTES // _PIECE_BYTES):
            piece = file.read(_PIECE_BYTES)
            if not piece:
                break
            state.update(piece)
            last = piece
            if count_lines:
                count += piece.count(b"\n")
    return state.digest(), count, last.endswith(b"\n")


def cut(files: Sequence[Input], contents: Sequence[Content]) -> list[list[Segment]]:
    """Segments of each shard: files and cuts of files in order, together about `SHARD_BYTES`."""
    shards: list[list[Segment]] = [[]]
    filled = 0
    for number, (file, content) in enumerate(zip(files, contents, strict=True)):
        if file.kind == "jsonl" and file.codec is None:
            for i, start in enumerate(range(0, content.bytes, SHARD_BYTES)):
                stop = min(start + SHARD_BYTES, content.bytes)
                line = content.breaks[i] + (1 if content.whole[i] else 2)
                filled = _place(shards, Segment(number, start, stop, line), stop - start, filled)
        else:
            size = content.bytes * (_COMPRESSED if file.codec else 1)
            filled = _place(shards, Segment(number), size, filled)
    return shards


def _place(shards: list[list[Segment]], segment: Segment, size: int, filled: int) -> int:
    if shards[-1] and filled + size > SHARD_BYTES:
        shards.append([])
        filled = 0
    shards[-1].append(segment)
    return filled + size


def changed(path: Path, size: int) -> PoolError | None:
    """The error when a file has another size than when it was looked at."""
    now = path.stat().st_size
    return (
        None if now == size else PoolError(f"{path}: it changed while it was read ({size} bytes, now {now})")
    )
