"""Subsets kept in the store: found again, named by what determines them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.study.stored import stored_subsets


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    words = ["red", "green", "blue", "black", "white"]
    rows = [
        {"instruction": f"name {words[i % 5]} thing {i}", "output": f"{words[i % 5]} {'x ' * i}"}
        for i in range(30)
    ]
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_every_subset_is_kept_as_it_was_chosen(pool_file: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    pool = tamis.read_pool([pool_file], store=store)
    query = tmp_path / "q.jsonl"
    query.write_text(json.dumps({"instruction": "name blue thing", "output": "blue"}) + "\n")
    subsets = tamis.select(
        pool, query={"t": query}, strategy=["ngrams/top-k", "random"], budget=[3, 6], store=store
    )
    kept = stored_subsets(store, pool.digest)
    assert len(kept) == 4 and stored_subsets(store, "other") == []
    by_name = {(one.strategy, one.budget): one for one in kept}
    for subset in subsets:
        found = by_name[subset.strategy.name, subset.budget.folder]
        np.testing.assert_array_equal(found.positions, subset.positions)
        np.testing.assert_array_equal(found.score, subset.score)
        assert found.task == subset.task.tolist()
        assert found.seed == 0
    assert by_name["ngrams/top-k", "3"].signals and not by_name["random", "3"].signals

    # The random draw does not depend on what else was asked for; it is the same stored thing.
    tamis.select(pool, strategy="random", budget=3, store=store)
    assert len(stored_subsets(store, pool.digest)) == 4
    tamis.select(pool, strategy="random", budget=3, seed=1, store=store)
    assert len(stored_subsets(store, pool.digest)) == 5


def test_overlap_and_distances_are_in_the_facts(pool_file: Path, tmp_path: Path) -> None:
    pool = tamis.read_pool([pool_file], store=tmp_path / "store")
    queries = tmp_path / "q.jsonl"
    rows = [{"instruction": f"name {word} thing", "output": word} for word in ("blue", "red")]
    queries.write_text("\n".join(map(json.dumps, rows)) + "\n")
    chosen, random = tamis.select(
        pool,
        query={"t": queries},
        strategy=["ngrams/round-robin", "random"],
        budget=6,
        store=tmp_path / "store",
    )
    found = chosen.facts["diagnostics"]
    assert found["representation"] == "ngrams"
    assert found["subset_to_query"] < found["random"]["subset_to_query"]
    assert found["wasserstein"]["value"] < found["random"]["wasserstein"]["value"]
    assert found["stability"]["draws"] == diagnostics_draws()
    (other,) = found["overlap"]
    assert (other["strategy"], other["rows"]) == ("random", 6)
    assert other["shared"] == len(set(chosen.positions) & set(random.positions))
    assert "subset_to_query" not in random.facts["diagnostics"]


def test_a_sample_too_small_for_the_method_does_not_lose_the_selection(
    pool_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: object, **more: object) -> None:
        raise RequestError("too few rows")

    monkeypatch.setattr("tamis.study.diagnostics.stability", refused)
    pool = tamis.read_pool([pool_file], store=tmp_path / "store")
    query = tmp_path / "q.jsonl"
    query.write_text(json.dumps({"instruction": "name blue thing", "output": "blue"}) + "\n")
    given = {"query": {"t": query}, "strategy": "ngrams/top-k", "budget": 3}
    subset = tamis.select(pool, store=tmp_path / "store", out=tmp_path / "out", **given)
    found = subset.facts["diagnostics"]
    assert found["stability"] is None and found["stability_missing"] == "too few rows"
    assert (tmp_path / "out" / "report.html").exists()


def test_overlap_with_earlier_selections_of_the_store(pool_file: Path, tmp_path: Path) -> None:
    pool = tamis.read_pool([pool_file], store=tmp_path / "store")

    def select(out: str, **given: object) -> Any:
        return tamis.select(pool, budget=10, store=tmp_path / "store", out=tmp_path / out, **given)

    first = select("a", strategy="random")
    assert first.elsewhere == []
    second = select("b", strategy="random", seed=1)
    (other,) = second.elsewhere
    assert (other["strategy"], other["seed"], other["rows"]) == ("random", 0, 10)
    assert other["shared"] == len(set(first.positions) & set(second.positions))
    assert other["expected"] == 10 / 30
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert list(manifest["elsewhere"].values()) == [second.elsewhere]
    again = select("b2", strategy="random", seed=1)
    assert [one["seed"] for one in again.elsewhere] == [0]  # not with itself


def diagnostics_draws() -> int:
    from tamis.study.diagnostics import RESAMPLED

    return RESAMPLED
