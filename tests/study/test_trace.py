"""One row through everything stored: chosen, below the line, without a score, merged with its duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.lab import write_lab
from tamis.study.trace import trace


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder, rows=500, seed=5)
    return folder


@pytest.fixture(scope="module")
def pool(lab: Path) -> Any:
    return tamis.read_pool([lab / "pool.jsonl"], store=lab / "store")


@pytest.fixture(scope="module")
def subsets(lab: Path, pool: Any) -> dict[str, Any]:
    """Four strategies at 40 rows, and the same with one of them at all usable rows."""
    names = ["ngrams/round-robin", "ngrams/top-k", "chars", "random"]
    queries = {path.stem: path for path in sorted((lab / "queries").glob("*.jsonl"))[:2]}
    made = tamis.select(
        pool, query=queries, strategy=["length/top-k" if n == "chars" else n for n in names], budget=40,
        parameters={"length": {"unit": "chars"}}, store=lab / "store",
    )  # fmt: skip
    return {subset.strategy.name: subset for subset in made}


def entries(lab: Path, row_id: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The row's place in the pool, and what each strategy did with it."""
    found = trace(row_id, lab / "store")
    json.dumps(found)
    place = next(place for place in found["rows"] if place["role"] == "pool")
    return place, {entry["strategy"]: entry for entry in place["subsets"]}


def test_a_chosen_row_names_the_query_that_chose_it(lab: Path, pool: Any, subsets: dict[str, Any]) -> None:
    subset = subsets["ngrams/round-robin"]
    place, found = entries(lab, str(subset.ids[7])[:14])
    entry = found["ngrams/round-robin"]
    assert entry["chosen"] and entry["rank"] == 7 and entry["task"] == subset.task[7]
    assert entry["score"] == pytest.approx(float(subset.score[7]))
    asked = (lab / "queries" / f"{subset.task[7]}.jsonl").read_text(encoding="utf-8").splitlines()
    messages = json.loads(asked[int(subset.query[7])])["messages"]
    assert entry["query"]["text"] == " | ".join(m["content"] for m in messages)
    assert place["position"] == subset.positions[7] and place["line"] == pool.row(place["position"]).line


@pytest.mark.parametrize("name", ["ngrams/round-robin", "ngrams/top-k", "length/top-k", "random"])
def test_the_rank_below_the_line_is_that_of_a_larger_budget(
    lab: Path, pool: Any, subsets: dict[str, Any], name: str
) -> None:
    queries = {path.stem: path for path in sorted((lab / "queries").glob("*.jsonl"))[:2]}
    larger = tamis.select(
        pool, query=queries, strategy=name, budget=120, store=lab / "other",
        parameters={"length": {"unit": "chars"}} if name.startswith("length") else {},
    )  # fmt: skip
    _, found = entries(lab, str(larger.ids[100]))
    entry = found[name]
    assert not entry["chosen"] and entry["reason"] == "below the budget" and entry["rank"] == 100
    if name != "random":
        assert entry["score"] == pytest.approx(float(larger.score[100]))
    if name == "ngrams/top-k":
        assert entry["score"] < entry["last_chosen_score"] and entry["best_similarity"] >= entry["score"]


def test_a_row_without_a_score_is_not_usable(lab: Path, pool: Any, subsets: dict[str, Any]) -> None:
    scores = tamis.score(pool, "length", parameters={"unit": "chars"}, store=lab / "store")
    at = int(np.flatnonzero(scores.status == "empty_response")[0])
    place, found = entries(lab, str(pool.ids[at]))
    assert found["length/top-k"]["reason"] == "not usable"
    assert found["length/top-k"]["detail"] == "empty_response"
    assert found["random"].get("detail") is None
    signal = next(signal for signal in place["signals"] if signal["kind"] == "scores")
    assert signal["status"] == "empty_response" and "value" not in signal


def test_duplicates_and_the_rank_of_a_score(lab: Path, pool: Any, subsets: dict[str, Any]) -> None:
    at = int(np.argmax(pool.counts))
    place, _ = entries(lab, str(pool.ids[at]))
    assert len(place["occurrences"]) == pool.counts[at] > 1
    originals = (lab / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {json.dumps(json.loads(originals[line - 1])["messages"]) for _, line in place["occurrences"]}
    assert len(texts) == 1
    scores = tamis.score(pool, "length", parameters={"unit": "chars"}, store=lab / "store")
    signal = next(signal for signal in place["signals"] if signal["kind"] == "scores")
    ahead = (scores.values > scores.values[at]).sum() + (scores.values == scores.values[at])[:at].sum()
    assert signal["rank"] == ahead + 1 and signal["value"] == scores.values[at]


def test_a_dropped_near_duplicate_says_so(lab: Path, pool: Any) -> None:
    store = lab / "near"
    rows = tamis.read_pool([lab / "pool.jsonl"], store=store)
    chosen = tamis.select(rows, strategy="random", budget=20, dedup="near", store=store)
    gone = chosen.facts["dropped"]["near_duplicate"]
    reasons = [trace(str(i), store)["rows"][0]["subsets"][0].get("detail", "") for i in rows.ids[:120]]
    dropped = [reason for reason in reasons if reason == "it is a near duplicate of an earlier row"]
    assert 0 < len(dropped) <= gone


def test_query_rows_are_traced_too_and_unknown_ids_are_refused(lab: Path, subsets: dict[str, Any]) -> None:
    path = sorted((lab / "queries").glob("*.jsonl"))[0]
    query = tamis.read_pool([path], store=lab / "store", merge_duplicates=False)
    places = trace(str(query.ids[0]), lab / "store")["rows"]
    assert "query or test set" in {place["role"] for place in places}
    with pytest.raises(RequestError, match=r"of no row in this store .* selection\.parquet"):
        trace("f" * 32, lab / "store")
    with pytest.raises(RequestError, match=r"begins \d+ ids .* write more digits"):
        trace("a", lab / "store")
    with pytest.raises(RequestError, match="is no row id"):
        trace("xyz", lab / "store")
    with pytest.raises(RequestError, match="no pool is stored here"):
        trace("aa", lab / "nowhere")
