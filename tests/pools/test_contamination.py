"""Text of targets in a pool: by hand, against sets of word tuples, and what must not be flagged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tamis.pools.contamination import (
    Config,
    contamination,
    contamination_slow,
    excerpt,
)
from tamis.pools.pool import Message
from tamis.pools.read import read_pool
from tests.conftest import ROOT, shared
from tests.pools.rows import lines, put

QUESTION = "Nora has 12 boxes with 7 pens each and gives 9 pens to her brother. How many pens does she keep?"
SOLUTION = "She begins with 12 times 7, which is 84 pens. After the gift there are 84 - 9 = 75 pens."


def pool_of(folder: Path, name: str, *rows: tuple[str, ...]):
    """A pool of conversations given by their turns, the user's first; equal rows stay apart."""
    data = lines(
        {
            "messages": [
                {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
            ]
        }
        for texts in rows
    )
    return read_pool([put(folder / f"{name}.jsonl", data)], store=folder / "store", merge_duplicates=False)


def matched(folder: Path, pool, target, **parameters) -> set[tuple[int, int, str, float]]:
    found = contamination(pool, {"t": target}, folder / "store", Config(**parameters))
    parts = ("prompt", "answer")
    return {
        (row, at, parts[part], round(share, 5))
        for row, at, part, share in zip(
            *(getattr(found, name).tolist() for name in ("row", "target_row", "part", "share")), strict=True
        )
    }


def rows_matched(folder: Path, rows: list[tuple[str, ...]], *target: tuple[str, ...]) -> list[int]:
    pool, tests = pool_of(folder, "pool", *rows), pool_of(folder, "test", *target)
    return sorted(set(contamination(pool, {"t": tests}, folder / "store").row.tolist()))


def test_verbatim_inside_a_longer_conversation(tmp_path):
    rows = [
        ("Hello!", "Hi.", f"I have a riddle.   {QUESTION.upper()} Tell me.", "75"),
        ("Explain this.", f"Well: {SOLUTION}"),
        ("Tell me a story about Nora and her brother.", "Nora has 12 boxes with 3 balls."),
    ]
    pool = pool_of(tmp_path, "pool", *rows)
    tests = pool_of(
        tmp_path, "test", ("What is the capital of the country of Peru?", "Lima"), (QUESTION, SOLUTION)
    )
    assert matched(tmp_path, pool, tests) == {(0, 1, "prompt", 1.0), (1, 1, "answer", 1.0)}


def test_the_share_by_hand(tmp_path):
    # 20 words have 13 runs of 8; a changed word at place 10 (from 0) is in the 8 runs that begin at 3 to 10
    words = [f"word{i}" for i in range(20)]
    changed = [*words[:10], "other", *words[11:]]
    pool = pool_of(tmp_path, "pool", (" ".join(changed), "x"))
    tests = pool_of(tmp_path, "test", (" ".join(words), "y"))
    assert matched(tmp_path, pool, tests, share=0.3) == {(0, 0, "prompt", round(5 / 13, 5))}
    assert matched(tmp_path, pool, tests, share=0.4) == set()


def test_shares_do_not_add_up_over_pool_rows(tmp_path):
    half, rest = QUESTION.split(" and ")
    assert rows_matched(tmp_path, [(half, "a"), (rest, "b")], (QUESTION, "75")) == []


def test_short_texts_are_no_evidence(tmp_path):
    tests = [
        ("Is it so that water is wet, or is it not? Think first, then answer with one letter.", "A"),
        ("Continue.", "B"),
        ("Name three red fruits.", "Apples, cherries and strawberries are three fruits that are red."),
        ("Which planet is the largest one in our solar system?", "Jupiter"),
    ]
    rows = [
        ("A", "A"),  # answers of one letter are everywhere
        ("Continue.", "Continue."),  # too short even as a whole turn
        ("Please name three red fruits.", "no"),  # a short prompt within other text
        ("name three red fruits", "ok"),  # the whole turn
        ("What?", "Apples, cherries and strawberries are three fruits that are red."),  # a short answer
        (
            "Do you know which planet is the largest one in our solar system? I do.",
            "yes",
        ),  # whole, in other text
        ("Which planet is the largest one in our little solar system?", "Jupiter"),
    ]
    pool, target = pool_of(tmp_path, "pool", *rows), pool_of(tmp_path, "test", *tests)
    assert matched(tmp_path, pool, target) == {(3, 2, "prompt", 1.0), (5, 3, "prompt", 1.0)}
    summary = contamination(pool, {"t": target}, tmp_path / "store").summary["t"]
    assert summary == {"rows": 4, "prompts": 3, "answers": 0, "rows_not_checked": 1}


def test_a_template_of_all_test_rows_is_not_flagged(tmp_path):
    template = "Here is a question with four options. Think step by step, then give one letter. Question: {}"
    topics = ["rivers", "kings", "metals", "sonnets", "engines", "proteins", "orbits", "markets"]
    tests = [(template.format(f"which of these four {topic} is the oldest known"), "C") for topic in topics]
    rows = [(template.format("what is heavier, lead or gold, and by how much?"), "D"), tests[2]]
    assert rows_matched(tmp_path, rows, *tests) == [1]


def test_scripts_without_spaces(tmp_path):
    question = "小明有十二个盒子，每个盒子里有七支铅笔，他送给弟弟九支，请问他还剩下多少支铅笔？"
    phrase = "请问他还剩下多少支铅笔"  # 11 characters count as 5.5 words: only as a whole turn
    rows = [(f"题目：{question}谢谢", "75"), (f"今天天气很好，{phrase}，我不知道", "好"), (phrase, "75")]
    assert rows_matched(tmp_path, rows, (question, "七十五")) == [0]
    assert rows_matched(tmp_path / "2", rows, (phrase, "七十五")) == [2]


def test_a_paraphrase_is_not_found(tmp_path):
    """Stated as a limit: other words are other n-grams."""
    other = (
        "There are 12 boxes, 7 pens in each. Nora's brother receives 9 of them. What number remains with her?"
    )
    assert rows_matched(tmp_path, [(other, "75")], (QUESTION, "75")) == []


@pytest.mark.parametrize("seed", range(3))
def test_against_sets_of_words(tmp_path, seed):
    chance = random.Random(seed)
    vocabulary = ["oak", "elm", "ash", "fir", "yew", "bay", "中", "文", "ça"]

    def text(most: int) -> str:
        return " ".join(chance.choices(vocabulary, k=chance.randrange(most)))

    tests = [tuple(text(40) for _ in range(chance.choice([2, 2, 4]))) for _ in range(40)]
    tests[5:9] = [(f"{tests[0][0]} {text(9)}", "same words before each") for _ in range(4)]
    rows = [tuple(text(60) for _ in range(2)) for _ in range(50)]
    for turns in chance.sample(tests, 30):
        kept = turns[0].split()[: chance.randrange(2, 50)]
        rows.append((" ".join([text(9), *kept, text(9)]), chance.choice([turns[1], text(9)])))
        rows.append((turns[0], text(5)))
    config = Config(words=3, share=0.6, whole=6, least=2)
    pool, target = pool_of(tmp_path, "pool", *rows), pool_of(tmp_path, "test", *tests)
    slow = contamination_slow(pool.conversations(), target.conversations(), config)
    assert len(slow) > 20
    names = ("prompt", "answer")
    found = matched(tmp_path, pool, target, words=3, share=0.6, whole=6, least=2)
    assert found == {(row, at, names[part], round(share, 5)) for row, at, part, share in slow}


def test_the_text_that_is_shown(tmp_path):
    said = f"So: {QUESTION}\nBye"
    turns = [Message("user", "Hi"), Message("user", said)]
    target = [Message("user", QUESTION), Message("assistant", SOLUTION)]
    assert excerpt(turns, target, 0, Config()) == QUESTION.rstrip("?")
    assert excerpt([Message("assistant", f"İ {SOLUTION}")], target, 1, Config()).startswith(
        "she begins with 12"
    )
    short = [Message("user", "Name three red fruits.")]
    assert excerpt([Message("user", "name three red fruits")], short, 0, Config()) == "name three red fruits"
    long = [Message("user", " ".join(f"w{i}" for i in range(400)))]
    assert len(excerpt(long, long, 0, Config())) == 300


def test_several_targets_and_the_store(tmp_path):
    pool = pool_of(tmp_path, "pool", (QUESTION, "75"), (SOLUTION, "yes"))
    one, two = pool_of(tmp_path, "one", (QUESTION, "1")), pool_of(tmp_path, "two", ("Hello there", SOLUTION))
    found = contamination(pool, {"one": one, "two": two}, tmp_path / "store")
    assert found.row.tolist() == [0, 1] and found.target.tolist() == [0, 1]
    again = contamination(pool, {"a": one, "b": two}, tmp_path / "store")
    assert again.digest == found.digest and again.targets == ("a", "b") and again.summary["b"]["answers"] == 1


def test_an_empty_pool_and_targets_without_text(tmp_path):
    assert rows_matched(tmp_path, [("?", "!")], ("…", "?!")) == []


@pytest.mark.parametrize("faulty", [{"share": 0}, {"least": 9}, {"words": 14}])
def test_faulty_parameters(faulty):
    with pytest.raises(ValueError, match="expected"):
        Config(**faulty)


def test_blocks_change_nothing(tmp_path, monkeypatch):
    from tamis.pools import _shingles

    rows = [(f"{QUESTION} {i}", SOLUTION) for i in range(40)]
    pool, tests = pool_of(tmp_path, "pool", *rows), pool_of(tmp_path, "test", (QUESTION, SOLUTION))
    whole = contamination(pool, {"t": tests}, tmp_path / "one")
    monkeypatch.setattr(_shingles, "_WINDOW_CHARS", 500)
    cut = contamination(pool, {"t": tests}, tmp_path / "two")
    assert len(whole) == 80 and all(
        (getattr(whole, n) == getattr(cut, n)).all() for n in ("row", "part", "share")
    )


@pytest.mark.parametrize(
    ("pool", "target", "expected"),
    [
        ("lima", "pool/gsm8k_train.jsonl.gz", {801, 804, 805, 826, 835, 848}),
        ("foundry_finetune_example", "targets/multiple_choice/arc_easy.jsonl", set(range(100))),
        ("fireact_messages", "targets/multiple_choice/openbook_qa.jsonl", {814, 1998}),
        ("fireact_messages", "targets/gsm8k/test.jsonl", set()),
    ],
)
def test_known_contamination_of_real_rows(tmp_path, pool, target, expected):
    """Every row that the README of the data names (lines from 0, counts for FireAct), and no other."""
    store, mapping = tmp_path / "store", ROOT / "examples/maps/shared-pool.yaml"
    rows = read_pool([shared(f"data/pool/{pool}.jsonl.gz")], map=mapping, store=store)
    tests = read_pool([shared(f"data/{target}")], map=mapping, store=store, merge_duplicates=False)
    found = contamination(rows, {"t": tests}, store)
    assert {rows.row(row).line - 1 for row in found.row.tolist()} == expected
