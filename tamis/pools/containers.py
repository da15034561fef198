"""What a file is, found by looking at its bytes: compression and container, or why it cannot be read.

    jsonl     one JSON value a line                 array    one JSON array, pretty-printed or not
    object    an object that holds one list of rows                   row      one pretty-printed object
    csv       rows of cells, comma or tab           yaml     a YAML list
    parquet   Parquet                               arrow    Arrow IPC, file or stream

Names and endings play no part. Compressed files (gzip, zstd) are told by their first bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from tamis.core.errors import PoolError

BLOCK_BYTES = 1 << 20
_LOOK_BYTES = 1 << 18
_LOOK_MOST_BYTES = 64 << 20
BOM = b"\xef\xbb\xbf"
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_REFUSED = (
    (b"version https://git-lfs", "a Git LFS pointer, not the data; fetch it with: git lfs pull"),
    (b"<<<<<<< ", "it has unresolved merge-conflict markers; resolve the conflict first"),
    (b"BZh", "bzip2 is not read; recompress it with gzip or zstd"),
    (b"\xfd7zXZ", "xz is not read; recompress it with gzip or zstd"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"<!DOCTYPE", "a web page, not data"),
    (b"<!doctype", "a web page, not data"),
    (b"<html", "a web page, not data"),
)
_STUB = re.compile(rb"[0-9a-f]{40}\s*\Z")
_YAML = re.compile(rb"(#[^\n]*\n\s*)*(-\s|---|%YAML)")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Container:
    """How the bytes of a file hold its rows; `codec` is the compression or None."""

    kind: str
    codec: str | None = None


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file's bytes, decompressed, as a stream with `read(size)`."""
    with open(path, "rb") as file:
        codec = _codec(file.read(4))
    stream = pa.OSFile(str(path), "rb")
    try:
        yield pa.CompressedInputStream(stream, codec) if codec else stream
    finally:
        stream.close()


def _codec(magic: bytes) -> str | None:
    return next((codec for start, codec in _CODECS.items() if magic.startswith(start)), None)


def blocks(path: Path, name: str, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Decompressed bytes of a file in blocks, without a byte-order mark; a damaged file is an error."""
    with opened(path) as stream:
        first = True
        while block := _read(stream, size, name):
            yield block.removeprefix(BOM) if first else block
            first = False


def _read(stream: Any, size: int, name: str) -> bytes:
    try:
        found: bytes = stream.read(size)
    except OSError as error:
        reason = "cut off" if "runcated" in str(error) else f"damaged ({error})"
        raise PoolError(f"{name}: the compressed file is {reason}; get it again") from error
    return found


def container_of(path: Path, name: str, is_row: Callable[[dict[str, Any]], bool]) -> Container:
    """Container of the file; raises `PoolError` with the reason when it is none that is read.

    `is_row` says of a JSON object whether it is a row by itself, for a file that is one object alone.
    """
    with opened(path) as stream:
        head = _read(stream, _LOOK_BYTES, name)
        with open(path, "rb") as file:
            codec = _codec(file.read(4))
        if head.startswith(b"PAR1"):
            return Container("parquet", codec)
        if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            return Container("arrow", codec)
        _refuse(head, name)
        text = head.removeprefix(BOM).lstrip()
        if text[:1] in (b"{", b"["):
            while (
                b"\n" not in text
                and len(text) < _LOOK_MOST_BYTES
                and (more := _read(stream, len(text), name))
            ):
                text += more
            whole = len(text) < _LOOK_MOST_BYTES and not _read(stream, 1, name)
            return Container(_json_kind(text, whole, is_row), codec)
    if not text:
        return Container("jsonl", codec)
    return Container("yaml" if _YAML.match(text) else "csv", codec)


def _refuse(head: bytes, name: str) -> None:
    text = head.removeprefix(BOM).lstrip()
    for start, reason in _REFUSED:
        if text.startswith(start):
            raise PoolError(f"{name}: {reason}")
    if _STUB.match(text):
        raise PoolError(f"{name}: a stub that a rewritten history left for a large file; get the file")
    if head.startswith(_UTF16) or (b"\0" in head[:4096] and head[:4096].count(b"\0") > len(head[:4096]) // 4):
        raise PoolError(f"{name}: UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8")
    if b"\0" in head[:4096] and text[:1] not in (b"{", b"["):
        raise PoolError(f"{name}: a binary file of an unknown kind (it begins with {head[:8]!r})")


def _json_kind(text: bytes, whole: bool, is_row: Callable[[dict[str, Any]], bool]) -> str:
    """`jsonl`, `array` or `object` for text that begins with a bracket; `whole`: nothing follows it."""
    lines = [line for line in text.split(b"\n")[:50] if line.strip()]
    first = _value(lines[0])
    opening: type = dict if text[:1] == b"{" else list
    if first is not None and len(lines) > 1:
        return "jsonl"
    # the first line may be the one that is broken: another whole value at the margin gives lines away
    margin = (line for line in lines[1:] if line[:1] == text[:1])
    if lines[0].strip() not in (b"{", b"[") and any(type(_value(line)) is opening for line in margin):
        return "jsonl"
    if opening is list:
        return "array"
    value = _value(text) if whole else None
    if value is None:
        return "jsonl" if whole else "object"
    if not is_row(value) and any(_is_rows(part) for part in value.values()):
        return "object"
    return "row" if b"\n" in text.strip() else "jsonl"


def _value(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _is_rows(part: Any) -> bool:
    return type(part) is list and bool(part) and all(type(item) is dict for item in part)
