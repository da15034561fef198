"""Checks before a selection: what is dropped, what is only said, what is an error, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.pools.near_duplicates import NearDuplicates
from tamis.study.hygiene import dropped_near
from tests.pools.rows import lines, put

LEAK = "Nora has 12 boxes with 7 pens each and gives 9 pens to her brother. How many pens does she keep?"
ASKED = "Sort these eight words by their second letter and write them on one line: tree, ant, owl, cup."
TWICE = "Write a short letter to a neighbour whose dog barks all night, and be as polite as you can."


def rows(*prompts: str) -> bytes:
    return lines(
        {"instruction": prompt, "input": "", "output": f"answer {i}"} for i, prompt in enumerate(prompts)
    )


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Rows 3 and 9 hold test text, row 5 a query; row 8 nearly repeats row 2, and 9 repeats 3."""
    prompts = [f"Row number {i} speaks of subject {i * 7} and of nothing else at all" for i in range(12)]
    prompts[2], prompts[8] = TWICE, TWICE.lower() + " Please."
    prompts[3], prompts[9] = f"{LEAK} Think.", f"{LEAK} Think!!"
    prompts[5] = f"Hello. {ASKED}"
    pool = tamis.read_pool([put(tmp_path / "pool.jsonl", rows(*prompts))], store=tmp_path / "store")
    return {
        "pool": pool,
        "store": tmp_path / "store",
        "query": {"sort": put(tmp_path / "query.jsonl", rows(ASKED))},
        "test": {
            "sums": put(tmp_path / "test.jsonl", rows("What is the capital of Peru, do you know?", LEAK))
        },
        "budget": 7,
        "strategy": ["random", "ngrams/top-k"],
    }


def select(given: dict[str, Any], **more: Any) -> list[Any]:
    arguments = {**given, **more}
    return tamis.select(arguments.pop("pool"), **arguments)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_nothing_is_checked_unless_asked(given, tmp_path):
    plain = select(given, test=None, out=tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["hygiene"] is None and "hygiene" not in manifest["recipe"]
    assert "dropped" not in plain[0].facts
    assert not (tmp_path / "out/contamination.jsonl").exists()


def test_tests_are_looked_for_but_nothing_is_dropped(given, tmp_path):
    before = select(given, test=None)
    after = select(given, out=tmp_path / "out")
    assert [s.positions.tolist() for s in before] == [s.positions.tolist() for s in after]
    facts = json.loads((tmp_path / "out/manifest.json").read_text())["hygiene"]
    assert facts["dropped"] == {} and facts["rows_left"] == 12 and facts["contamination"]["mode"] == "flag"
    assert facts["contamination"]["targets"]["test sums"]["pool_rows"] == 2
    written = read(tmp_path / "out/contamination.jsonl")
    assert [(line["row"], line["task"], line["dropped"]) for line in written] == [
        (3, "test sums", False), (5, "query sort", False), (9, "test sums", False),
    ]  # fmt: skip
    assert written[0]["text"] == LEAK.rstrip("?") and written[0]["id"] == given["pool"].row(3).id
    for subset in after:
        held = len({3, 9} & set(subset.positions.tolist()))
        assert subset.facts["contaminated"]["test"] == held
        assert any("text of a test row" in warning for warning in subset.facts["warnings"]) == (held > 0)


def test_drop_takes_the_rows_from_every_strategy(given, tmp_path):
    subsets = select(given, decontaminate="drop", dedup="near", out=tmp_path / "out")
    for subset in subsets:
        assert not {3, 5, 8, 9} & set(subset.positions.tolist()) and len(subset) == 7
        assert subset.facts["dropped"] == {"test_text": 2, "query_text": 1, "near_duplicate": 1}
        assert subset.facts["contaminated"] == {"test": 0, "query": 0}
    group, gone = read(tmp_path / "out/near_duplicates.jsonl")
    assert group["kept"]["row"] == 2 and group["kept"]["text"].startswith(TWICE)
    assert [(row["row"], row["dropped"]) for row in group["repeats"]] == [(8, True)]
    assert gone["kept"]["row"] == 3 and gone["repeats"][0]["dropped"] is False  # gone already, as test text
    assert all(line["dropped"] for line in read(tmp_path / "out/contamination.jsonl"))
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "dropped: 2 as test_text" in page
    assert "near duplicates in" in page and "rows of test " in page


def test_dedup_alone_and_its_parameters(given, tmp_path):
    subset = select(given, test=None, dedup="near", budget=10, strategy="random")
    assert sorted(subset.positions.tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    strict = {"near-duplicates": {"threshold": 0.99}}
    subset = select(given, test=None, dedup="near", budget=12, strategy="random", parameters=strict)
    assert sorted(subset.positions.tolist()) == list(range(12))
    with pytest.raises(RequestError, match="underflow"):
        select(given, test=None, dedup="near", budget=11, strategy="random")


def test_every_word_of_it_is_in_the_recipe(given, tmp_path):
    asked: list[dict[str, Any]] = [
        {"test": None}, {}, {"decontaminate": "drop"}, {"dedup": "near"}, {"allow_leak": True},
        {"parameters": {"contamination": {"share": 0.9}}},
        {"dedup": "near", "parameters": {"near-duplicates": {"seed": 1}}},
    ]  # fmt: skip
    digests = set()
    for i, more in enumerate(asked):
        select(given, out=tmp_path / str(i), strategy=["random"], **more)
        digests.add(json.loads((tmp_path / str(i) / "manifest.json").read_text())["digest"])
    assert len(digests) == len(asked)


def test_a_test_row_among_the_queries(given, tmp_path):
    query = {"sort": put(tmp_path / "leaky.jsonl", rows(ASKED, f"Q: {LEAK}"))}
    with pytest.raises(
        RequestError, match=r"1 of 2 rows of query 'sort'(.|\n)*Nora has 12(.|\n)*--allow-leak"
    ):
        select(given, query=query, out=tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
    (line,) = read(tmp_path / "out/contamination.jsonl")
    assert (line["where"], line["row"], line["task"], line["target_row"]) == ("query sort", 1, "test sums", 1)
    select(given, query=query, out=tmp_path / "out", allow_leak=True)
    facts = json.loads((tmp_path / "out/manifest.json").read_text())["hygiene"]
    assert facts["contamination"]["leak"] == {"sort": {"query_rows": 1, "of": 2}}
    assert read(tmp_path / "out/contamination.jsonl")[0] == line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dedup": "exact"}, "expected 'near'"),
        ({"decontaminate": "keep"}, "'flag' or 'drop'"),
        ({"decontaminate": "drop", "test": None, "query": None, "strategy": "random"}, "--test NAME=PATH"),
        ({"parameters": {"contamination": {"shares": 1}}}, "no parameter 'shares'"),
        ({"parameters": {"near-duplicates": {"threshold": 2}}}, "expected a number in"),
    ],
)
def test_what_cannot_be(given, more, words):
    with pytest.raises(RequestError, match=words):
        select(given, **more)


def test_the_next_of_a_group_takes_the_place_of_a_dropped_first():
    near = NearDuplicates(np.array([3, 4, 6, 7]), np.array([1, 2, 1, 1]), np.ones(4, np.float32), summary={})
    keep = np.ones(9, bool)
    assert dropped_near(near, keep).tolist() == [3, 4, 6, 7]
    keep[1] = False
    assert dropped_near(near, keep).tolist() == [4, 6, 7]
    keep[3] = False
    assert dropped_near(near, keep).tolist() == [4, 7]
