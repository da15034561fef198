"""Replies of judges: T2's strings, the released programs' goldens, and what must not become a number."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from tamis.scores import _judge_parse as parse
from tamis.scores._judge_parse import read_reply
from tests.conftest import Conformance, shared


@pytest.mark.parametrize(
    ("reply", "word", "score"),
    [
        # T2
        ("4.5/5", "of_five", 4.5),
        ("Score: 4.5", "labelled", 4.5),
        ("Score:4.5", "labelled", 4.5),
        ("The response answers the instruction well.", "no_number", None),
        ("5.0", "number", 5.0),
        ("4.0", "number", 4.0),
        ("4.5", "number", 4.5),
        ("3.5", "number", 3.5),
        ("10", "out_of_range", None),
        # the form that is asked for, and its neighbours
        ("4.5\n\nMostly right.", "number", 4.5),
        ("\n \n  3 \nfine", "number", 3.0),
        ("**4.5**\nbecause", "number", 4.5),
        ("**Score:** 4/5", "of_five", 4.0),
        ("# Rating = 2.", "labelled", 2.0),
        ("Accuracy score: 4.5 out of 5", "of_five", 4.5),
        ("4.5 - good", "number", 4.5),
        ("3 stars", "number", 3.0),
        ("评分：4.5", "labelled", 4.5),
        ("４．５", "number", 4.5),
        ("0", "number", 0.0),
        ("<think>Score: 1 at first</think>\n4\nwhy", "number", 4.0),
        # labelled, later
        ("The answer is right.\nScore: 4", "labelled_later", 4.0),
        ("It is right, so the score is 4.5/5, a high one.", "labelled_later", 4.5),
        ("Score: 3 for style.\nSum: the rating is 3.", "labelled_later", 3.0),
        ("10\nThat is, score: 5", "labelled_later", 5.0),
        # no number: another scale, ambiguous, unfinished, words
        ("8/10", "out_of_range", None),
        ("Score: 8/10", "out_of_range", None),
        ("4/10", "out_of_range", None),
        ("4 out of 10", "out_of_range", None),
        ("90%", "out_of_range", None),
        ("5.5", "out_of_range", None),
        ("-1", "out_of_range", None),
        ("-0.5", "out_of_range", None),
        ("-0", "out_of_range", None),
        ("4,5", "no_number", None),
        ("4-5", "no_number", None),
        ("4 of the 5 facts are wrong", "no_number", None),
        ("4 - 5", "no_number", None),
        ("1e1", "no_number", None),
        ("nan", "no_number", None),
        ("inf", "no_number", None),
        ("0x5", "no_number", None),
        ("1_0", "no_number", None),
        ("N/A", "no_number", None),
        ("I would rate this 4", "no_number", None),
        ("Good.\nScore: 2 for style.\nScore: 4 for content.", "no_number", None),
        ("Good.\nThe score is 4/10.", "no_number", None),
        ("Good.\nScore: 4-5", "no_number", None),
        ("Good.\nScore: 4,5", "no_number", None),
        ("<think>the score is 4", "empty", None),
        ("", "empty", None),
        (" \n\t", "empty", None),
        ("I'm sorry, but I can't rate this.", "refusal", None),
        ("I cannot assist with that request.", "refusal", None),
        ("As an AI language model, I have no opinions.", "refusal", None),
        ("Sorry.\nScore: 1", "labelled_later", 1.0),
    ],
)
def test_a_reply_is_a_number_or_has_none(reply: str, word: str, score: float | None) -> None:
    verdict = read_reply(reply)
    assert (verdict.word, verdict.score) == (word, score)


@pytest.mark.parametrize(
    ("reply", "word", "score"),
    [
        ("4", "truncated", None),  # it may have become 4.5
        ("Score: 4", "truncated", None),
        ("4\nThe response is", "number", 4.0),
        ("The response is", "truncated", None),
        ("Well.\nScore: 4", "truncated", None),
        ("Well.\nScore: 4. The", "labelled_later", 4.0),
        ("", "truncated", None),
        ("<think>hm", "truncated", None),
    ],
)
def test_a_reply_that_was_cut(reply: str, word: str, score: float | None) -> None:
    verdict = read_reply(reply, cut=True)
    assert (verdict.word, verdict.score) == (word, score)


def _as_recorded(read: Callable[[str], float], review: str) -> Any:
    """What a released reader makes of a reply, as the golden file writes it."""
    try:
        found = read(review)
    except ValueError as error:
        return {"error": f"ValueError: {error}"}
    return found if math.isfinite(found) else str(found)


def test_golden_readings_of_the_released_programs(conforms: Conformance) -> None:
    cases = json.loads(shared("golden/score_parsing.json").read_text())
    assert len(cases) == 35
    named = {
        "get_scores": parse.released_first_line,
        "filter": parse.released_labelled,
        "chatgpt_rating": parse.released_labelled,
    }
    for name, read in named.items():
        found = [_as_recorded(read, case["review"]) for case in cases]
        conforms.exact(f"`judge`, reader of `{name}`", found, [case[name] for case in cases])


def test_the_recorded_replies_give_us_a_number_of_the_scale_or_none() -> None:
    for case in json.loads(shared("golden/score_parsing.json").read_text()):
        score = read_reply(case["review"]).score
        assert score is None or 0.0 <= score <= 5.0
        theirs = case["get_scores"]
        if isinstance(theirs, float) and 0 <= theirs <= 5:  # where they read the asked form, so do we
            assert score == theirs, case["review"]


@pytest.mark.parametrize(
    ("reply", "score"),
    [("5.0", 0), ("4.0", 0), ("4.5", 4), ("3.5", 3), ("10", 0), ("no number", -1), ("5", 5)],
)
def test_the_studys_reader_loses_half_points(reply: str, score: int) -> None:
    assert parse.released_first_digit(reply) == score


def test_released_readers_on_t2() -> None:
    assert parse.released_labelled("4.5/5") == -1
    with pytest.raises(ValueError, match="could not convert"):
        parse.released_labelled("Score: 4.5")
    assert parse.released_labelled("Score:4.5") == 4.0
    assert parse.released_labelled("The response is good.") == -1
