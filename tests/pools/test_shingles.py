"""Hashes of words and n-grams against the words themselves."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tamis.core.words import kinds, splitter
from tamis.pools import _shingles as private
from tamis.pools._shingles import ngrams, normal, shingles, whole_turns, words_of
from tamis.pools.pool import Message

TEXTS = [
    "", " ", "?!", "One", "one two", "One, two; THREE!", "don't stop_me now 3.14", "a\tb\nc\r\nd", "x" * 3000,
    "你好 world，再见。", "กินข้าว", "한국어 문장", "café CAFÉ cafe\u0301", "İstanbul",
    "ｶﾞﾗｽ", "が か\u3099",
    "e\u0301\u0301x", "\u0301a", "中\u0301文a", "a中b", "\ud800 broken",
    "😀 smile 😀",
    "zero\u200djoin", "\x00nul\x00", "Ⓐ𝟘 x²",
]  # fmt: skip


def turns(*texts: str) -> list[Message]:
    return [Message("user", text) for text in texts]


def cut(text: str) -> list[str]:
    return [token for token in splitter("words")(text) if kinds()[ord(token[0])]]


def test_words_are_those_of_the_splitter():
    found = words_of([turns(*TEXTS)])
    names: dict[int, str] = {}
    for i, text in enumerate(TEXTS):
        first, last = found.bounds[i], found.bounds[i + 1]
        assert [normal(text)[a:b] for a, b in found.spans[first:last].tolist()] == cut(text)
        for number, word in zip(found.hashes[first:last].tolist(), cut(text), strict=True):
            assert names.setdefault(number, word) == word
    assert len(set(names.values())) == len(names)


def test_hashes_do_not_depend_on_neighbours():
    together = words_of([turns(*TEXTS)]).hashes.tolist()
    apart = [number for text in TEXTS for number in words_of([turns(text)]).hashes.tolist()]
    assert together == apart


def test_shingles_lie_within_turns_and_a_short_turn_is_one():
    rows = [turns("a b c d", "e f"), turns(), turns("!"), turns("B, c. D")]
    values, bounds = shingles(words_of(rows), 3, len(rows))
    assert np.diff(bounds).tolist() == [3, 0, 0, 1]
    assert values[3] in values[:3] and len(set(values.tolist())) == 3
    # "e f" as a whole turn is not the same as the same two words within a longer one
    other, _ = shingles(words_of([turns("e f g")]), 2, 1)
    assert values[2] not in other


@pytest.mark.parametrize("n", [1, 2, 5])
def test_ngrams_against_tuples(n):
    chance = random.Random(n)
    rows = [
        turns(*(" ".join(chance.choices("abc", k=chance.randrange(9))) for _ in range(chance.randrange(4))))
        for _ in range(60)
    ]
    found = words_of(rows)
    expected = [
        tuple(words[i : i + n])
        for row in rows
        for words in (cut(turn.content) for turn in row)
        for i in range(len(words) - n + 1)
    ]
    grams, at = ngrams(found, n)
    names: dict[int, tuple[str, ...]] = {}
    assert len(grams) == len(expected) == len(at)
    for number, words in zip(grams.tolist(), expected, strict=True):
        assert names.setdefault(number, words) == words
    assert len(set(names.values())) == len(names)
    whole = whole_turns(found, np.arange(len(found.bounds) - 1))
    assert not set(whole.tolist()) & set(names)


def test_windows_cover_every_row_once(monkeypatch):
    class Sized:
        chars = np.array([5, 0, 900, 3, 3, 3000, 1])

    monkeypatch.setattr(private, "_WINDOW_CHARS", 1000)
    found = list(private.windows(Sized(), 1, 7))
    assert [row for a, b in found for row in range(a, b)] == list(range(1, 7)) and len(found) > 2
