"""Facts and warnings about a subset, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tamis.study.summary import Rendering, drawn_by_ties, summarise


def _pool(codes: list[int], chars: list[int], counts: list[int] | None = None) -> Any:
    return SimpleNamespace(
        source_codes=np.array(codes),
        source_names=["a", "b", "c"],
        chars=np.array(chars),
        counts=np.array(counts or [1] * len(codes)),
        __len__=lambda: len(codes),
    )


class _Pool(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.source_codes)


def _facts(pool: Any, positions: list[int], **given: Any) -> dict[str, Any]:
    rows = len(positions)
    task = given.get("task", np.full(rows, "", dtype=object))
    query = given.get("query", np.full(rows, -1, np.int32))
    score = given.get("score", np.linspace(1, 0, rows, dtype=np.float32))
    sizes = given.get("sizes", {})
    return summarise(
        _Pool(**vars(pool)), np.array(positions), score, task, query, given.get("rendering"), sizes
    )


def test_counts_shares_and_lengths() -> None:
    pool = _pool([0, 0, 0, 1, 1, 2], [10, 20, 30, 40, 50, 60], [1, 1, 1, 3, 1, 1])
    tokens = np.array([1, 2, 3, 4, 5, 6], np.int32)
    codes = np.array([0, 0, 0, 1, 2, 0], np.uint8)
    facts = _facts(pool, [3, 4], rendering=Rendering(tokens, codes))
    assert facts["rendering"] == {"truncated": 1, "empty_response": 1}
    assert "1 of the chosen rows are empty_response" in facts["warnings"][-1]
    assert facts["sources"][0] == {
        "source": "b", "rows": 2, "share": 1.0, "pool_rows": 2, "pool_share": round(2 / 6, 6),
    }  # fmt: skip
    assert [entry["source"] for entry in facts["sources"]] == ["b", "a", "c"]
    assert facts["tokens"] == 9 and facts["merged_duplicates"] == 2
    assert facts["length"]["characters"] == {"median": 45, "pool_median": 35, "mean": 45, "pool_mean": 35}
    assert facts["length"]["tokens"]["median"] == 4.5


def test_picks_per_query() -> None:
    pool = _pool([0] * 8, [10] * 8)
    task = np.array(["x", "x", "x", "y"], dtype=object)
    query = np.array([0, 0, 2, 0], np.int32)
    facts = _facts(pool, [0, 1, 2, 3], task=task, query=query, sizes={"x": 3, "y": 1, "z": 2})
    assert facts["queries"] == {
        "x": {"queries": 3, "picks": 3, "least": 0, "median": 1.0, "most": 2, "without": 1},
        "y": {"queries": 1, "picks": 1, "least": 1, "median": 1.0, "most": 1, "without": 0},
    }


def test_a_sound_selection_has_no_warning_and_degenerate_ones_say_why() -> None:
    pool = _pool([0, 1, 2] * 40, [100] * 120)
    assert _facts(pool, list(range(0, 30)))["warnings"] == []
    one_source = [i for i in range(120) if i % 3 == 1][:30]
    assert "one source, 'b'" in _facts(pool, one_source)["warnings"][0]
    long = _pool([0, 1, 2] * 40, [100] * 90 + [500] * 30)
    assert "much longer" in _facts(long, list(range(90, 120)))["warnings"][0]
    ties = np.repeat(np.float32([0.5, 0.25]), 15)
    assert "ties decided much" in _facts(pool, list(range(30)), score=ties)["warnings"][0]
    query = np.array([0] * 20 + [1, 2, 3] * 3 + [1], np.int32)
    task = np.full(30, "t", dtype=object)
    found = _facts(pool, list(range(30)), task=task, query=query, sizes={"t": 4})["warnings"]
    assert found == ["one query row of 't' chose 20 of its 30 rows"]
    assert "more than half of the pool" in _facts(pool, list(range(70)))["warnings"][0]


def test_rows_that_equal_scores_left_to_the_order_of_ties() -> None:
    nan = float("nan")
    values = np.array([5.0, 4.5, 4.5, 4.5, 4.0, nan, 4.5])
    usable = np.array([True, True, True, True, True, False, False])
    assert drawn_by_ties(values, usable, np.array([0, 1, 2])) == {
        "rows": 2, "share": round(2 / 3, 6), "among": 3, "score": 4.5,
    }  # fmt: skip
    none = {"rows": 0, "share": 0.0, "among": 0, "score": None}
    assert drawn_by_ties(values, usable, np.array([0])) == none
    assert drawn_by_ties(values, usable, np.array([0, 1, 2, 3])) == none
    assert drawn_by_ties(values, usable, np.array([], np.int64)) == none


def test_ties_that_decided_much_are_a_warning() -> None:
    pool = _pool([0, 1] * 500, [10] * 1000)
    ties = {"rows": 98, "share": 0.98, "among": 9218, "score": 4.5}
    score = np.full(100, 4.5, np.float32)
    facts = summarise(
        _Pool(**vars(pool)), np.arange(100), score, np.full(100, ""), np.full(100, -1), None, {}, ties
    )
    assert facts["ties"] == ties
    assert any("98 of the 100 rows were drawn from 9,218" in warning for warning in facts["warnings"])
    ties = {"rows": 2, "share": 0.02, "among": 3, "score": 4.5}
    facts = summarise(
        _Pool(**vars(pool)), np.arange(100), score, np.full(100, ""), np.full(100, -1), None, {}, ties
    )
    assert not any("drawn" in warning for warning in facts["warnings"])
