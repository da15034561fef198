"""Orders of the published codes, row by row, for every case, budget and matrix that was recorded.

Where a reference has a quirk (lowest first, best last, larger row first), the scores are turned so that ours
asks the same question; nothing is compared as a set.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

from tamis.selections import choose
from tamis.selections._order import level_quotas
from tests.conftest import Conformance, shared

CASES = ("plain", "ties", "duplicates", "wide", "degenerate", "peaked", "rds")
LOSSY = {"duplicates": "lose-turn"}
SAME_ORDER: dict[str, tuple[str, int, dict[str, Any]]] = {
    "dcml.round_robin": ("round-robin", 1, {}),
    "get_top_influences.max": ("round-robin", 1, LOSSY),
    "get_top_influences.min": ("round-robin", -1, LOSSY),
    "get_top_influences.mean_min": ("top-k", -1, {"aggregate": "mean"}),
    "get_top_optimized.max": ("top-k", 1, {"aggregate": "max"}),
    "doubly_greedy.stable": ("doubly-greedy", 1, {}),
    "get_top_aggregated_influences.round_robin.max": ("round-robin", 1, {**LOSSY, "task_of": ...}),
    "get_top_aggregated_influences.round_robin.min": ("round-robin", -1, {**LOSSY, "task_of": ...}),
    "get_top_aggregated_influences.mean_of_means.maximize_inf": (
        "top-k",
        1,
        {"aggregate": "task-mean-mean", "task_of": ...},
    ),
}
BEST_LAST = {
    "get_top_influences.mean_max": "mean",
    "get_top_influences.normalized_mean_max": "normalized-mean",
}


@cache
def recorded(case: str) -> tuple[np.ndarray, dict[str, Any]]:
    described = json.loads(shared("golden/selection.json").read_text())[case]
    if case == "rds":
        scores = np.load(shared("golden/representations.npz"))["rds_similarity"]
    else:
        scores = np.load(shared("golden/selection.npz"))[f"{case}.sim"]
    return scores, described


def task_of(described: dict[str, Any], m: int) -> np.ndarray:
    tasks = np.empty(m, int)
    for number, queries in enumerate(described["tasks"]):
        tasks[queries] = number
    return tasks


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algorithm", SAME_ORDER)
def test_the_order_is_the_references(case: str, algorithm: str, conforms: Conformance) -> None:
    scores, described = recorded(case)
    name, sign, parameters = SAME_ORDER[algorithm]
    if "task_of" in parameters:
        parameters = {**parameters, "task_of": task_of(described, len(scores))}
    for budget, expected in described["ids"][algorithm].items():
        found = choose(name, sign * scores, int(budget), **parameters).tolist()
        conforms.exact(f"`{name}`, order of `{algorithm}`", found, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algorithm", BEST_LAST)
def test_the_order_is_the_references_turned_round(case: str, algorithm: str) -> None:
    scores, described = recorded(case)
    n = scores.shape[1]
    for budget, expected in described["ids"][algorithm].items():
        # Columns mirrored, so that our smaller position is its larger row.
        ours = n - 1 - choose("top-k", scores[:, ::-1], int(budget), aggregate=BEST_LAST[algorithm])
        if isinstance(expected, dict):  # it divides by the range of a constant query
            assert "ZeroDivisionError" in expected["error"] and len(ours) == int(budget)
        else:
            assert ours[::-1].tolist() == expected, budget


@pytest.mark.parametrize("case", ["plain", "wide", "peaked"])
def test_doubly_greedy_where_its_unstable_sort_has_no_ties(case: str) -> None:
    scores, described = recorded(case)
    assert not described["max_key_has_ties"]
    for budget, expected in described["ids"]["dcml.doubly_greedy"].items():
        assert choose("doubly-greedy", scores, int(budget)).tolist() == expected, budget


@pytest.mark.parametrize("case", ["ties", "duplicates", "degenerate", "rds"])
def test_doubly_greedy_with_ties_has_the_same_scores_in_order(case: str) -> None:
    scores, described = recorded(case)
    largest = scores.max(axis=0)
    for budget, expected in described["ids"]["dcml.doubly_greedy"].items():
        ours = choose("doubly-greedy", scores, int(budget))
        np.testing.assert_array_equal(largest[ours], largest[expected])


def test_balanced_random_has_the_references_counts() -> None:
    described = json.loads(shared("golden/selection.json").read_text())["balanced_random"]
    # As the reference does first: "science" merged and moved to the end, "hard_coded" dropped.
    merged = ["science" if "science" in source else source for source in described["rows"]]
    names = [s for s in dict.fromkeys(merged) if s not in ("science", "hard_coded")] + ["science"]
    rows = sorted((s for s in merged if s != "hard_coded"), key=names.index)
    sizes = np.array([rows.count(name) for name in names])
    for result in described["results"]:
        budget = result["num_samples"]
        counted = Counter(rows[i] for i in choose("random-balanced", None, budget, sources=rows, seed=3))
        assert counted == result["counts_science_merged"], budget
        np.testing.assert_array_equal(level_quotas(sizes, budget), [counted[name] for name in names])
