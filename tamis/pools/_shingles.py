"""Words and word n-grams of many turns as 64-bit hashes, by array operations.

A word is a token of `tamis.core.words.splitter("words")` that is not punctuation: a lower-cased run of
letters, digits and underscores, or a single character of a script that writes no spaces. Punctuation, white
space and case therefore change nothing. The hash of a word is a polynomial of its code points modulo 2^64,
mixed; that of an n-gram a polynomial of the hashes of its words, mixed. Two different ones of a pool of 10^9
meet with a chance of about 3 in 100, and then one shingle of one row is wrong.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tamis.core.words import kinds as every_kind

if TYPE_CHECKING:
    from tamis.pools.pool import Message, Pool

_POINT = np.uint64(0x9E3779B97F4A7C15)
_WORD = np.uint64(0xD6E8FEB86659FD93)
_WHOLE = np.uint64(0xA0761D6478BD642F)
_WINDOW_CHARS = 2 << 20
_ASCII = bytes(chr(point).isalnum() or point == ord("_") for point in range(128))


@dataclass(frozen=True)
class Words:
    """Words of the turns of some rows: `hashes` (w,) uint64; turn t has words `bounds[t]` to `bounds[t + 1]`.

    `row` (turns,) int64 is the row of each turn, from 0; `spans` (w, 2) where each word begins and ends
    in its turn's `normal` text.
    """

    hashes: np.ndarray
    bounds: np.ndarray
    row: np.ndarray
    spans: np.ndarray


def normal(text: str) -> str:
    """The text in lower case and NFC."""
    lower = text.lower()
    return lower if lower.isascii() else unicodedata.normalize("NFC", lower)


def words_of(conversations: Sequence[Sequence[Message]]) -> Words:
    """Hashes of the words of every turn."""
    row = np.repeat(np.arange(len(conversations)), [len(turns) for turns in conversations])
    texts = [normal(turn.content) for turns in conversations for turn in turns]
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    data = np.frombuffer(("\n".join([*texts, ""])).encode("utf-32-le", "surrogatepass"), np.uint32)
    first, last = _cut(data)
    powers, inverse = _powers(_POINT, 1 << max(len(data), 1).bit_length())
    values = data + np.uint64(1)
    values *= powers[: len(data)]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values)])
    hashes = mixed((sums[last] - sums[first]) * inverse[first])
    bounds = np.searchsorted(first, starts)
    begins = np.repeat(starts[:-1], np.diff(bounds))
    return Words(hashes, bounds, row, np.stack([first - begins, last - begins], axis=1))


def _cut(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words begin and end in code points, of which the last is in no word."""
    if not len(data):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    kinds = np.frombuffer(_ASCII if data.max() < 128 else every_kind(), np.uint8)[data]
    before = np.concatenate([[np.uint8(0)], kinds[:-1]])
    begins = (kinds > 0) & (before == 0)
    alone = kinds == 2
    if alone.any():  # a character that is a word takes its marks with it; what follows is another word
        base = np.maximum.accumulate(np.where(before != 3, np.arange(len(kinds)), 0))
        begins |= alone | ((kinds == 1) & (before[base] == 2))
    first = np.flatnonzero(begins)
    ends = (kinds == 0) & (before > 0)
    ends |= begins & (before > 0)
    return first, np.flatnonzero(ends)


def ngrams(found: Words, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (k,) of the n-grams that lie within a turn, in order, and the number of each first word."""
    size = len(found.hashes) - n + 1
    if size <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    fits = np.zeros(size, bool)
    lengths = np.diff(found.bounds)
    turn = np.repeat(np.arange(len(lengths)), lengths)
    fits = turn[:size] == turn[n - 1 :]
    total = np.zeros(size, np.uint64)
    for offset in range(n):
        total *= _WORD
        total += found.hashes[offset : offset + size]
    at = np.flatnonzero(fits)
    return mixed(total[at]), at


def whole_turns(found: Words, turns: np.ndarray) -> np.ndarray:
    """Hashes of all words of each of the given turns; never equal to the hash of an n-gram but by chance."""
    powers, inverse = _powers(_WORD, 1 << max(len(found.hashes), 1).bit_length())
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(found.hashes * powers[: len(found.hashes)])])
    first, last = found.bounds[turns], found.bounds[turns + 1]
    return mixed(((sums[last] - sums[first]) * inverse[first]) ^ _WHOLE)


def shingles(found: Words, n: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Shingles of each row, (k,) uint64, and where each row's begin, (rows + 1,).

    They are the n-grams within its turns; a turn of fewer words is one shingle. Repetitions are kept.
    """
    grams, at = ngrams(found, n)
    lengths = np.diff(found.bounds)
    short = np.flatnonzero((lengths > 0) & (lengths < n))
    turn = np.repeat(np.arange(len(lengths)), lengths)
    row = np.concatenate([found.row[turn[at]], found.row[short]])
    order = np.argsort(row, kind="stable")
    values = np.concatenate([grams, whole_turns(found, short)])[order]
    return values, np.searchsorted(row[order], np.arange(rows + 1))


def mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = values ^ (values >> np.uint64(31))
    return result


def windows(pool: Pool, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Row ranges of [start, stop) that hold some two million characters each."""
    total = np.cumsum(np.asarray(pool.chars[start:stop]) + 64)
    at = 0
    while at < stop - start:
        base = total[at - 1] if at else 0
        end = max(at + 1, int(np.searchsorted(total, base + _WINDOW_CHARS, side="right")))
        yield start + at, start + end
        at = end


@cache
def _powers(base: np.uint64, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers 0 to size − 1 of an odd number modulo 2^64, and of its inverse."""
    inverse = np.uint64(pow(int(base), -1, 1 << 64))
    found = []
    for number in (base, inverse):
        factors = np.full(size, number, np.uint64)
        factors[0] = 1
        found.append(np.cumprod(factors))
    return found[0], found[1]
