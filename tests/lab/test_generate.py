from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from importlib import import_module

import pytest

from tamis.core.digest import file_digest
from tamis.core.errors import RequestError
from tamis.lab import FAULTS, SKILLS, SOURCES, corpus, generate, write_lab
from tamis.lab.generate import CORPUS_SEEDS, part_of
from tests.lab.solve import SOLVERS, is_right


@pytest.fixture(scope="module")
def lab():
    return generate(rows=2000, seed=3)


def prompts(rows):
    return [turn["content"] for row in rows for turn in row["messages"] if turn["role"] == "user"]


def answer(row):
    return row["messages"][-1]["content"]


def letters(text):
    return "".join(c for c in text.casefold() if c.isalnum())


def test_same_seed_same_bytes(tmp_path):
    write_lab(tmp_path / "a", rows=200, seed=0)
    write_lab(tmp_path / "b", rows=200, seed=0)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jsonl"))
    assert len(files) == 2 + 2 * len(SKILLS)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    # Pinned: labs of a seed are named in documents and results. Another digest is another laboratory.
    assert file_digest(tmp_path / "a" / "pool.jsonl") == "7ca358332fdb01e3127a7da2a0fbf210"
    assert file_digest(tmp_path / "a" / "truth.jsonl") == "7a9ee51659986a798aab0d9e44cb167d"


def test_another_seed_is_another_pool(lab):
    ours = {json.dumps(row) for row in lab.rows}
    assert len(ours & {json.dumps(row) for row in generate(rows=200, seed=4).rows}) < 20


def test_files_hold_the_lab(tmp_path):
    lab = write_lab(tmp_path, rows=100, seed=5, query_rows=3, test_rows=4)

    def read(name):
        return [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]

    assert read("pool.jsonl") == lab.rows
    assert read("truth.jsonl") == [asdict(entry) for entry in lab.truth]
    for skill in SKILLS:
        assert read(f"queries/{skill}.jsonl") == lab.queries[skill] and len(lab.queries[skill]) == 3
        assert read(f"tests/{skill}.jsonl") == lab.tests[skill] and len(lab.tests[skill]) == 4


def test_pool_queries_and_tests_share_no_user_turn(lab):
    pool = {letters(text) for text in prompts(lab.rows)}
    queries = [letters(text) for rows in lab.queries.values() for text in prompts(rows)]
    tests = [letters(text) for rows in lab.tests.values() for text in prompts(rows)]
    assert len(queries) == 12 * len(SKILLS) and len(tests) == 50 * len(SKILLS)
    assert len(pool | set(queries) | set(tests)) == len(pool) + len(queries) + len(tests)


def test_no_pool_and_no_training_text_holds_a_test_of_any_seed(lab):
    held_out = {
        letters(text) for s in (0, 1, 2) for rows in generate(100, s).tests.values() for text in prompts(rows)
    }
    seen = prompts(lab.rows) + [
        turn["content"] for m in corpus(2000, CORPUS_SEEDS.start) for turn in m if turn["role"] == "user"
    ]
    assert not held_out & {letters(text) for text in seen}
    assert {part_of(text) for text in seen} == {"pool"}


def test_rows_do_not_tell_the_truth(lab):
    assert all(set(row) == {"messages", "source"} for row in lab.rows)
    by_source = {source: Counter() for source in SOURCES}
    for row, truth in zip(lab.rows, lab.truth, strict=True):
        by_source[row["source"]][truth.skill] += 1
    for skill in SKILLS:
        of_skill = [count[skill] for count in by_source.values()]
        assert min(of_skill) > 0 and max(of_skill) / sum(of_skill) < 0.6
    for count in by_source.values():
        assert max(count[skill] for skill in SKILLS) / count.total() < 0.15


def test_shares_of_skills_and_faults(lab):
    assert len(lab.rows) == len(lab.truth) == 2000
    assert [truth.line for truth in lab.truth] == list(range(2000))
    skills = Counter(truth.skill for truth in lab.truth)
    assert all(0.03 < skills[skill] / 2000 < 0.07 for skill in SKILLS)
    assert Counter(truth.fault for truth in lab.truth) == {None: 1700} | dict.fromkeys(FAULTS, 60)
    assert {truth.fault for truth in generate(rows=100, seed=3, fault_share=0).truth} == {None}


def test_clean_rows_are_right_and_spoilt_rows_are_not(lab):
    seen = Counter()
    for row, truth in zip(lab.rows, lab.truth, strict=True):
        if truth.skill in SOLVERS and truth.fault in (None, "duplicate", "wrong", "mismatched"):
            question = row["messages"][-2]["content"]
            right = is_right(truth.skill, question, answer(row))
            assert right == (truth.fault not in ("wrong", "mismatched")), (question, answer(row), truth)
            seen[truth.fault] += 1
    assert min(seen.values()) > 20 and len(seen) == 4


def test_earlier_turns_of_a_conversation_are_right(lab):
    longer = [
        (row["messages"], truth)
        for row, truth in zip(lab.rows, lab.truth, strict=True)
        if truth.skill in SOLVERS and len(row["messages"]) >= 4
    ]
    assert len(longer) > 50
    for messages, truth in longer:
        assert is_right(truth.skill, messages[-4]["content"], messages[-3]["content"])


def test_empty_answers_are_empty_and_only_they(lab):
    assert [truth.fault == "empty" for truth in lab.truth] == [answer(row) == "" for row in lab.rows]


def test_duplicates_are_equal_and_near_duplicates_are_not(lab):
    text = [json.dumps(row["messages"]) for row in lab.rows]
    for truth in lab.truth:
        if truth.fault not in ("duplicate", "near-duplicate"):
            assert truth.duplicate_of is None
            continue
        origin = lab.truth[truth.duplicate_of]
        assert origin.line < truth.line and origin.fault is None and origin.skill == truth.skill
        assert (text[truth.line] == text[origin.line]) == (truth.fault == "duplicate")
        near, first = (lab.rows[line]["messages"] for line in (truth.line, origin.line))
        assert near[-1] == first[-1] and near[:-2] == first[:-2]
        assert letters(first[-2]["content"]) in letters(near[-2]["content"])
    planted = sum(truth.fault == "duplicate" for truth in lab.truth)
    assert len(set(text)) == len(text) - planted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rows": 39}, "rows is 39"),
        ({"fault_share": 0.6}, "fault_share is 0.6"),
        ({"seed": CORPUS_SEEDS.start}, "1000000"),
        ({"seed": -1}, "seed is -1"),
        ({"query_rows": 0}, "query_rows is 0"),
    ],
)
def test_refusals_name_what_was_given(arguments, words):
    with pytest.raises(RequestError, match=words):
        generate(**arguments)


def test_a_skill_that_runs_out_of_questions_is_refused(monkeypatch):
    module = import_module("tamis.lab.generate")  # the package's `generate` is the function
    monkeypatch.setattr(module, "_MAX_TRIES", 10)  # a query is found in 16 tries on average
    with pytest.raises(RequestError, match=r"'arithmetic' for the query .* ask for fewer rows"):
        generate(rows=40)


def test_training_text_refuses_a_seed_of_pools():
    with pytest.raises(RequestError, match="corpus seed 0"):
        next(corpus(1, 0))
