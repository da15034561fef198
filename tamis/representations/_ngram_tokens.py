"""Cutting text into words and punctuation, for n-grams."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

TOKENS = ("words", "dsir")

_RUNS = re.compile(r"\w+|[^\w\s]+")

# Scripts whose runs between spaces are not words: no spaces are written, or (Hangul) particles are joined on.
_BY_CHARACTER = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic repetition, closing and zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # Burmese
    (0xAA60, 0xAA7F),
    (0xAC00, 0xD7A3),  # Hangul
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # halfwidth Katakana
    (0x1B000, 0x1B16F),
    (0x20000, 0x323AF),
)
_MARKS_UNTIL = 0x1F000
_SELECTORS = range(0xE0100, 0xE01F0)


def splitter(tokens: str) -> Callable[[str], list[str]]:
    """Function from a text to its tokens in order: "dsir" for the lower-cased runs of word characters and of
    punctuation; "words" for the same, minding scripts without spaces, combining marks and NFC."""
    return _dsir if tokens == "dsir" else _words


def _dsir(text: str) -> list[str]:
    return _RUNS.findall(text.lower())


def _words(text: str) -> list[str]:
    if text.isascii():  # the common case, where both ways agree
        return _RUNS.findall(text.lower())
    return _pattern().findall(unicodedata.normalize("NFC", text.lower()))


@cache
def _pattern() -> re.Pattern[str]:
    points = (*range(0x0300, _MARKS_UNTIL), *_SELECTORS)
    marks = _ranges([point for point in points if unicodedata.category(chr(point)).startswith("M")])
    single = _ranges([p for first, last in _BY_CHARACTER for p in range(first, last + 1) if chr(p).isalnum()])
    word = rf"[^\W{single}]"
    return re.compile(rf"[{single}][{marks}]*|{word}+(?:[{marks}]+{word}*)*|[^\w\s]+")


def _ranges(points: list[int]) -> str:
    """Ascending code points as the inside of a character class."""
    runs: list[list[int]] = []
    for point in points:
        if runs and point == runs[-1][1] + 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)
