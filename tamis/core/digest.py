"""Names of stored things: 128-bit digests of recipes (canonical JSON) and of file contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

_BYTES = 16
_CHUNK_BYTES = 1 << 20


def canonical(recipe: Any) -> str:
    """JSON with sorted keys and no spaces; raises ValueError for NaN, TypeError for what JSON lacks."""
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(recipe: Any) -> str:
    """32 hex digits that name a recipe: BLAKE2b-128 of its canonical JSON."""
    return hashlib.blake2b(canonical(recipe).encode(), digest_size=_BYTES).hexdigest()


def bytes_digest(parts: Iterable[bytes]) -> str:
    """32 hex digits of the concatenation of `parts`."""
    state = hashlib.blake2b(digest_size=_BYTES)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """32 hex digits of a file's bytes, read in chunks."""
    state = hashlib.blake2b(digest_size=_BYTES)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def known_file_digest(path: Path) -> str:
    """`file_digest`, read once in a process as long as the file's size and time of change stay the same."""
    stat = path.stat()
    return _file_digest(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_digest(path: str, size: int, changed: int) -> str:
    return file_digest(Path(path))
