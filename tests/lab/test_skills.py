from __future__ import annotations

import re
from random import Random

import pytest

from tamis.lab.chat import chat
from tamis.lab.skills import MAKERS, SKILLS
from tamis.lab.words import CATEGORIES, OPPOSITES, PAST
from tests.lab.solve import SOLVERS, is_right

DRAWS = 1000


@pytest.mark.parametrize("skill", SKILLS)
def test_the_wrong_answer_differs_and_both_have_text(skill):
    rng = Random(7)
    for question in (MAKERS[skill](rng) for _ in range(DRAWS)):
        assert question.answer != question.wrong
        assert (
            question.prompt == question.prompt.strip() and question.answer.strip() and question.wrong.strip()
        )
        assert "{r}" not in question.answer and "{r}" not in question.wrong


@pytest.mark.parametrize("skill", SOLVERS)
def test_a_second_opinion_agrees(skill):
    rng = Random(8)
    for question in (MAKERS[skill](rng) for _ in range(DRAWS)):
        assert is_right(skill, question.prompt, question.answer), question
        assert not is_right(skill, question.prompt, question.wrong), question


def test_python_answers_run():
    rng = Random(9)
    for question in (MAKERS["python"](rng) for _ in range(DRAWS)):
        if question.answer.startswith("def"):
            scope: dict[str, object] = {}
            exec(question.answer, scope)
            name = re.match(r"def (\w+)", question.answer)
            assert name is not None and callable(scope[name[1]]) and name[1] in question.prompt
            continue
        code = re.search(r"print\((.*)\)$|expression (.*)$|result of (.*) in Python\?$", question.prompt)
        assert code is not None
        value = eval(next(group for group in code.groups() if group))
        assert question.answer.split(" ", 2)[2] == str(value) != question.wrong.split(" ", 2)[2]


@pytest.mark.parametrize(
    ("body", "text", "x", "value"),
    [
        ("x % 3 == 0", "whether x is divisible by 3", 9, True),
        ("x[-3:]", "the last 3 items of x", [1, 2, 3, 4], [2, 3, 4]),
        ("x ** 2 + 3", "x squared plus 3", 5, 28),
    ],
)
def test_functions_do_what_their_text_says(body, text, x, value):
    rng = Random(10)
    found = [q for q in (MAKERS["python"](rng) for _ in range(6000)) if q.answer.endswith(f"return {body}")]
    assert found
    for question in found:
        scope: dict[str, object] = {}
        exec(question.answer, scope)
        assert text in question.prompt
        assert next(f for name, f in scope.items() if name != "__builtins__")(x) == value


def test_string_edits_by_hand():
    from tamis.lab.verbal import edited

    assert [edited(edit, "pear") for edit in ("upper", "reverse", "vowels", "double")] == [
        "PEAR",
        "raep",
        "pr",
        "pear-pear",
    ]


def test_every_word_has_one_category_one_opposite_and_one_past():
    words = [word for members in CATEGORIES.values() for word in members]
    sides = [word for pair in OPPOSITES for word in pair]
    verbs = [verb for verb, _ in PAST]
    for table in (words, sides, verbs):
        assert len(table) == len(set(table))


def test_small_talk_has_no_open_slots():
    rng = Random(11)
    for question in (chat(rng) for _ in range(DRAWS)):
        assert not set("{}") & set(question.prompt + question.answer + question.wrong)
        assert question.answer != question.wrong
