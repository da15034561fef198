"""Small inputs for the tests of pools, and a plain reader that says what they must give."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tamis.pools.pool import Message

ALPACA: list[dict[str, Any]] = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet me.", "input": "", "output": "Hello 你好"},
    {"instruction": "Say nothing.", "input": "", "output": ""},
    {"instruction": "Lines\u2028and\u0085breaks", "input": "a\nb", "output": '\ttab "quoted" \\ back'},
]
ALPACA_TURNS = [
    [("user", "Add.\n1 and 2"), ("assistant", "3")],
    [("user", "Greet me."), ("assistant", "Hello 你好")],
    [("user", "Say nothing."), ("assistant", "")],
    [("user", "Lines\u2028and\u0085breaks\na\nb"), ("assistant", '\ttab "quoted" \\ back')],
]


def lines(rows: Iterable[Any]) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def put(path: Path, content: bytes) -> Path:
    """Write a file and give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def squeezed(content: bytes, codec: str | None) -> bytes:
    """`content` compressed."""
    if codec == "gzip":
        return gzip.compress(content, mtime=0)
    return pa.Codec("zstd").compress(content).to_pybytes() if codec == "zstd" else content


def turns(pool: Any) -> list[list[tuple[str, str]]]:
    """Turns of all rows as plain tuples."""
    return [[tuple(turn) for turn in row] for row in pool.conversations()]


def plain_id(row: Iterable[tuple[str, str] | Message]) -> str:
    """The id of a conversation by the standard library."""
    flat = [text for role, content in row for text in (role, content.strip())]
    text = json.dumps(flat, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
