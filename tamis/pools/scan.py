"""Boundaries of the elements of a JSON array, found in blocks of bytes: memory does not grow with the array.

Quotes, backslashes and brackets are found with numpy in whole blocks; the state between two blocks is whether
a string is open, whether a backslash waits for its character, and the depth. What an element holds is not
looked at here: each is parsed on its own afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from tamis.core.errors import PoolError

LONGEST_BYTES = 256 << 20
"""An element longer than this is taken for a bracket or quote that is never closed."""

_KIND = np.zeros(256, np.int8)
_KIND[list(b"{[")] = 1
_KIND[list(b"}]")] = -1
_KIND[ord(",")] = 2
_KIND[ord('"')] = 3


class Scanner:
    """Brackets and commas outside strings, with the depth after each, block by block."""

    def __init__(self) -> None:
        self.depth = 0
        self._open = 0
        self._escape = 0

    def feed(self, block: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions in `block`, kinds (1 opens, -1 closes, 2 comma) and depths after, of one more block."""
        codes = np.frombuffer(block, np.uint8)
        kinds = _KIND[codes]
        found = np.flatnonzero(kinds)
        kinds = kinds[found]
        is_quote = kinds == 3
        quotes = self._unescaped(block, codes, found[is_quote])
        found, kinds = found[~is_quote], kinds[~is_quote]
        outside = (np.searchsorted(quotes, found) + self._open) % 2 == 0
        self._open = (self._open + len(quotes)) % 2
        found, kinds = found[outside], kinds[outside]
        depths = self.depth + np.cumsum(np.where(kinds == 2, 0, kinds), dtype=np.int64)
        if len(depths):
            self.depth = int(depths[-1])
        return found, kinds, depths

    def _unescaped(self, block: bytes, codes: np.ndarray, quotes: np.ndarray) -> np.ndarray:
        """The quotes that no odd run of backslashes precedes."""
        waiting, self._escape = self._escape, 0
        if not waiting and b"\\" not in block:
            return quotes
        slashes = np.flatnonzero(codes == ord("\\"))
        escaped = np.empty(0, np.int64)
        if len(slashes):
            first = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
            last = np.append(first[1:], len(slashes)) - 1
            lengths = last - first + 1
            if waiting and slashes[0] == 0:
                lengths[0] += 1
            escaped = slashes[last][lengths % 2 == 1] + 1
            if len(escaped) and escaped[-1] == len(codes):
                self._escape = 1
        if waiting and not (len(slashes) and slashes[0] == 0) and len(codes):
            escaped = np.append(escaped, 0)
        return quotes[~np.isin(quotes, escaped)]


def elements(blocks: Iterable[bytes], name: str, inside_object: bool = False) -> Iterator[tuple[int, bytes]]:
    """(line, bytes) of every element of the array that `blocks` hold; lines count from 1.

    `inside_object`: the one list of objects that an object has under one of its keys. An array that is not
    closed is an error, for nobody can tell what is missing.
    """
    base = 2 if inside_object else 1
    scanner = Scanner()
    held = bytearray()
    line, started, ended = 1, False, False
    for block in _unsplit(blocks):
        offset = len(held)
        held += block
        cut = 0
        for at, kind, depth in zip(*(part.tolist() for part in scanner.feed(block)), strict=True):
            end = offset + at
            if started and not ended:
                closes = kind == -1 and depth == base - 1
                if closes or (kind == 2 and depth == base):
                    raw = bytes(held[cut:end])
                    text = raw.strip()
                    if text or not closes:
                        yield line + raw.count(b"\n", 0, len(raw) - len(raw.lstrip())), text
                    line += raw.count(b"\n")
                    cut = end + 1
                    ended = closes
            elif (
                kind == 1
                and depth == base
                and held[end] == ord("[")
                and _holds_rows(held, end, inside_object)
            ):
                if ended:
                    raise PoolError(f"{name}: several lists of rows; keep one in the file")
                started = True
                line += held.count(b"\n", cut, end + 1)
                cut = end + 1
        if ended:
            if not inside_object and held[cut:].strip():
                raise PoolError(
                    f"{name}:{line}: something follows the end of the array: {_start(held[cut:])}"
                )
            cut = len(held)
        elif len(held) - cut > LONGEST_BYTES:
            raise PoolError(
                f"{name}:{line}: what begins here is longer than {LONGEST_BYTES >> 20} MiB: "
                "a bracket or a quote is not closed"
            )
        del held[:cut]
    if not started:
        raise PoolError(f"{name}: no list of rows in it; write one row a line, or an array of rows")
    if not ended:
        raise PoolError(
            f"{name}:{line}: the array is not closed (the file is cut off, or a bracket or quote missing); "
            f"its last element begins here: {_start(held)}"
        )


def _unsplit(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that do not end between an opening bracket and what follows it."""
    held = b""
    for block in blocks:
        held += block
        if not held.rstrip().endswith(b"["):
            yield held
            held = b""
    if held:
        yield held


def _holds_rows(held: bytearray, bracket: int, inside_object: bool) -> bool:
    """Whether the list that opens at `bracket` is the one with the rows."""
    return not inside_object or bytes(held[bracket + 1 : bracket + (1 << 16)]).lstrip()[:1] == b"{"


def _start(text: bytearray) -> str:
    return repr(bytes(text.strip()[:40]).decode("utf-8", "replace"))
