"""Distances, transport, overlap and stability of subsets."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from tamis.core.similarity import ArraySimilarity
from tamis.selections import SELECTIONS, choose
from tamis.study import diagnostics
from tamis.study.diagnostics import distances, overlap, stability, wasserstein

F1 = np.array(
    [
        [0.90, 0.80, 0.70, 0.10, 0.20, 0.30],
        [0.85, 0.40, 0.75, 0.20, 0.10, 0.0],
        [0.1, 0.2, 0.3, 0.6, 0.5, 0.05],
    ]
)


def test_distances_by_hand() -> None:
    found = distances(ArraySimilarity(F1), np.array([0, 3]))
    assert found["subset_to_query"] == pytest.approx(1 - (0.90 + 0.60) / 2)
    assert found["query_to_subset"] == pytest.approx(1 - (0.90 + 0.85 + 0.60) / 3)
    # Rows have mass 1/2, queries 1/3: row 0 serves query 0 (1/3) and half of query 1 (1/6), row 3 the rest.
    moved = (1 - 0.90) / 3 + (1 - 0.85) / 6 + (1 - 0.20) / 6 + (1 - 0.60) / 3
    assert found["wasserstein"] == {
        "value": pytest.approx(moved),
        "kind": "exact",
        "rows": 2,
        "queries": 3,
    }


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(size=(4, 50))
    positions = np.random.default_rng(1).permutation(50)[:17]
    whole = distances(ArraySimilarity(scores), positions)
    monkeypatch.setattr(diagnostics, "COLUMNS", 3)
    cut = distances(ArraySimilarity(scores), positions)
    assert cut.pop("wasserstein") == whole.pop("wasserstein")
    assert cut == pytest.approx(whole)


def test_transport_between_equal_numbers_is_the_best_of_all_assignments() -> None:
    scores = np.random.default_rng(0).random((4, 4))
    best = min(np.mean([1 - scores[q, j] for q, j in enumerate(order)]) for order in permutations(range(4)))
    assert wasserstein(ArraySimilarity(scores), np.arange(4))["value"] == pytest.approx(best)


@pytest.mark.parametrize(("m", "k"), [(3, 300), (300, 3), (40, 40)])
def test_a_sampled_transport_is_near_the_whole_one(m: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Points on a line, so that W1 has a closed form of its own.
    rng = np.random.default_rng(0)
    queries, rows = rng.random(m), rng.random(k) + 2
    similarity = ArraySimilarity(1 - np.abs(queries[:, None] - rows[None, :]))
    whole = wasserstein(similarity, np.arange(k))
    assert whole["kind"] == "exact"
    assert whole["value"] == pytest.approx(rows.mean() - queries.mean(), abs=1e-9)
    monkeypatch.setattr(diagnostics, "PLAN_CELLS", 10)
    monkeypatch.setattr(diagnostics, "SIDE", 200)
    sampled = wasserstein(similarity, np.arange(k))
    assert sampled["kind"] == "sampled"
    assert sampled["rows"] <= min(k, 200) and sampled["queries"] <= min(m, 200)
    assert sampled["value"] == pytest.approx(whole["value"], abs=0.1)


def test_overlap_and_what_chance_would_give() -> None:
    found = overlap(np.array([1, 5, 9, 2]), np.array([9, 1, 3]), rows=10)
    assert found == {
        "shared": 2,
        "share": 0.5,
        "expected": 0.3,
        "sd": pytest.approx(np.sqrt(0.3 * 0.7 * 6 / 9 / 4)),
    }
    assert overlap(np.zeros(0, int), np.array([1]), rows=10)["share"] == 0.0


def test_chance_is_what_random_draws_overlap_by() -> None:
    draws = [np.asarray(choose("random", None, 30, usable=np.ones(200, bool), seed=s)) for s in range(60)]
    found = [overlap(draws[0], other, 200) for other in draws[1:]]
    shares = np.array([one["share"] for one in found])
    assert shares.mean() == pytest.approx(found[0]["expected"], abs=3 * found[0]["sd"] / np.sqrt(len(shares)))
    assert shares.std() == pytest.approx(found[0]["sd"], rel=0.3)


def test_a_choice_that_all_queries_agree_on_is_stable() -> None:
    same = np.tile(np.linspace(0, 1, 100), (6, 1))
    found = stability(ArraySimilarity(same), SELECTIONS["round-robin"], 10)
    assert found is not None and (found["least"], found["mean"], found["most"]) == (1.0, 1.0, 1.0)
    apart = np.kron(np.eye(6), np.ones(20)) + np.random.default_rng(0).random((6, 120)) * 0.1
    found = stability(ArraySimilarity(apart), SELECTIONS["round-robin"], 60)
    assert found is not None and found["mean"] < 0.9  # a query that is not drawn loses its rows


def test_stability_needs_two_queries_and_says_what_it_sampled() -> None:
    assert stability(ArraySimilarity(F1[:1]), SELECTIONS["top-k"], 2) is None
    scores = np.random.default_rng(0).normal(size=(300, 30_000)).astype(np.float32)
    found = stability(ArraySimilarity(scores), SELECTIONS["top-k"], 3000)
    assert found is not None
    assert found["rows"] == diagnostics.SAMPLE_CELLS // 300
    assert found["budget"] == round(3000 * found["rows"] / 30_000)


def test_rows_that_may_not_be_chosen_are_not_sampled() -> None:
    usable = np.arange(6) < 3
    found = stability(ArraySimilarity(F1, usable), SELECTIONS["top-k"], 3)
    assert found is not None and found["rows"] == 3 and found["mean"] == 1.0


@pytest.mark.parametrize(
    ("rows", "budget", "expected", "sd", "places"),
    [
        (15_011, 1_000, 6.66, 0.76, 2),
        (15_011, 5_000, 33.3, 0.54, 1),
        (15_011, 10_000, 66.6, 0.27, 1),
        (52_002, 1_000, 1.92, None, 2),
        (52_002, 5_000, 9.62, None, 2),
        (52_002, 10_000, 19.2, 0.35, 1),
        (88_000, 10_000, 11.4, None, 1),
        (196_000, 10_000, 5.1, None, 1),
    ],
)
def test_overlaps_of_random_subsets_are_those_of_the_published_table(
    rows: int, budget: int, expected: float, sd: float | None, places: int
) -> None:
    """Two random subsets of equal size, in per cent."""
    found = overlap(np.arange(budget), np.arange(budget), rows)
    assert round(100 * found["expected"], places) == expected
    assert sd is None or round(100 * found["sd"], 2) == sd
