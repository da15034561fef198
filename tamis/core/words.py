"""Cutting text into words and punctuation, for n-grams and shingles."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache

TOKENS = ("words", "dsir")

# Scripts whose runs between spaces are not words: no spaces are written, or (Hangul) particles are joined on.
_BY_CHARACTER = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic repetition, closing and zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # Burmese
    (0xAA60, 0xAA7F),
    (0xAC00, 0xD7A3),  # Hangul
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # halfwidth Katakana
    (0x1AFF0, 0x1B16F),  # Kana
    (0x20000, 0x323AF),  # Han
)
_WORD_CATEGORIES = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Nd", "Pc", "Mn", "Mc", "Me"))
# What unicodedata cannot say: joiners, and the enclosed letters (symbols that have the property Alphabetic).
_MORE_WORD = ((0x200C, 0x200D), (0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))
# White_Space; Python's \s would add the separators U+001C to U+001F.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ASCII = re.compile(r"[0-9a-z_]+|[^0-9a-z_\t-\r ]+")


def splitter(tokens: str) -> Callable[[str], list[str]]:
    """Function from a text to its tokens in order, all lower-cased.

    "dsir": runs of word characters (Unicode UTS 18: letters, marks, digits, connectors) and of punctuation.
    "words": the same of the NFC of the text, but each character of `_BY_CHARACTER` is a token with its marks.
    """
    by_character = tokens == "words"

    def split(text: str) -> list[str]:
        if text.isascii():  # the common case, where both ways agree
            return _ASCII.findall(text.lower())
        lower = text.lower()
        return _pattern(by_character).findall(unicodedata.normalize("NFC", lower) if by_character else lower)

    return split


def is_term(token: str, tokens: str) -> bool:
    """Whether a token may stand in an n-gram: any in "dsir"; in "words" those with a letter or digit, except
    single letters of scripts with case, which label options and items more often than they are words."""
    if tokens == "dsir":
        return True
    return any(map(str.isalnum, token)) and not (len(token) == 1 and unicodedata.category(token) == "Ll")


@cache
def _pattern(by_character: bool) -> re.Pattern[str]:
    categories = [unicodedata.category(chr(point)) for point in range(sys.maxunicode + 1)]
    word = {point for point, category in enumerate(categories) if category in _WORD_CATEGORIES}
    word.update(_points(_MORE_WORD))
    runs = rf"[^{_inside(word)}{_SPACE}]+"
    if not by_character:
        return re.compile(rf"[{_inside(word)}]+|{runs}")
    marks = {point for point in word if categories[point].startswith("M")}
    single = word.intersection(_points(_BY_CHARACTER)) - marks
    return re.compile(rf"[{_inside(single)}][{_inside(marks)}]*|[{_inside(word - single)}]+|{runs}")


@cache
def kinds() -> bytes:
    """What every code point is in "words": 0 in no word, 1 in a word, 2 a word by itself, 3 a mark."""
    categories = [unicodedata.category(chr(point)) for point in range(sys.maxunicode + 1)]
    found = bytearray(map(_WORD_CATEGORIES.__contains__, categories))
    for point in _points(_MORE_WORD):
        found[point] = 1
    for point in _points(_BY_CHARACTER):
        found[point] *= 2
    for point, category in enumerate(categories):
        if category[0] == "M":
            found[point] = 3
    return bytes(found)


def _points(ranges: Iterable[tuple[int, int]]) -> Iterable[int]:
    return (point for first, last in ranges for point in range(first, last + 1))


def _inside(points: set[int]) -> str:
    """The inside of a character class that matches `points`."""
    runs: list[list[int]] = []
    for point in sorted(points):
        if runs and point == runs[-1][1] + 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)
