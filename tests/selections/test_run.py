"""Budgets in rows and in cost, budgets shared over groups, and requests that are refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.selections import SELECTIONS, choose, choose_ranked, chosen, prefixes
from tests.selections.draws import Stream, both, tied_scores
from tests.selections.test_round_robin import F1

SCORE = np.array([5.0, 4.0, 3.0, 2.0, 1.0])


@dataclass(frozen=True)
class Nothing:
    """No parameters."""


def test_a_cost_budget_stops_at_the_first_row_that_does_not_fit() -> None:
    cost = np.array([10, 30, 15, 5, 1])
    assert choose("top-k", SCORE, 10, cost=cost).tolist() == [0]
    assert choose("top-k", SCORE, 39, cost=cost).tolist() == [
        0
    ]  # row 1 does not fit, though rows 2 to 4 would
    choice = choose_ranked("top-k", SCORE, 59, cost=cost)
    assert choice.positions.tolist() == [0, 1, 2] and choice.notes["cost"] == 55
    assert choose("top-k", SCORE, 61, cost=cost).tolist() == [0, 1, 2, 3, 4]
    assert choose("top-k", SCORE, 9, cost=cost).tolist() == []
    assert choose("top-k", SCORE, 0, cost=cost).tolist() == []


def test_a_cost_budget_larger_than_the_pool_is_an_underflow() -> None:
    cost = np.array([10, 30, 15, 5, 1])
    with pytest.raises(RequestError, match=r"all 5 rows .* cost 61, less than the budget of 62"):
        choose("top-k", SCORE, 62, cost=cost)
    assert len(choose("top-k", SCORE, 62, cost=cost, allow_underflow=True)) == 5


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.data())
def test_cost_budgets_are_the_longest_prefix_that_fits(costs: list[int], data: st.DataObject) -> None:
    cost = np.array(costs)
    scores = np.random.default_rng(len(costs)).standard_normal((3, len(costs)))
    budget = data.draw(st.integers(0, int(cost.sum())))
    order = choose("round-robin", scores, len(costs))
    rows = choose("round-robin", scores, budget, cost=cost, allow_underflow=True)
    np.testing.assert_array_equal(rows, order[: len(rows)])
    assert cost[rows].sum() <= budget
    if budget and len(rows) < len(order):
        assert cost[rows].sum() + cost[order[len(rows)]] > budget


def test_few_rows_of_great_cost_are_not_missed() -> None:
    cost = np.ones(4000)
    cost[:100] = 0.0  # the mean says that 50 units hold about 50 rows; they hold 150
    assert len(choose("top-k", -np.arange(4000.0), 50, cost=cost)) == 150


def test_a_method_that_does_not_nest_takes_no_cost_budget() -> None:
    anew = replace(SELECTIONS["top-k"], nested=False)
    with pytest.raises(RequestError, match="in rows only"):
        choose(anew, SCORE, 3, cost=np.ones(5))
    assert choose(anew, SCORE, 3).tolist() == [0, 1, 2]


def test_a_selection_of_ones_own_is_a_method_or_a_module() -> None:
    own = ModuleType("own")
    own.METHOD = Method(  # type: ignore[attr-defined]
        "last",
        lambda request, limit, config: chosen(np.flatnonzero(request.usable)[::-1][:limit]),
        Nothing,
        "Last.",
    )
    for mine in (own, own.METHOD):
        assert choose(mine, SCORE, 2, usable=np.array([True, True, True, True, False])).tolist() == [3, 2]
    with pytest.raises(RequestError, match="a Method or a module"):
        choose(own.METHOD.run, SCORE, 2)


def test_a_matched_control_is_not_shared_over_groups() -> None:
    with pytest.raises(RequestError, match="row by row"):
        choose("random-length-matched", SCORE, 2, lengths=SCORE, reference=[0, 1], within=[0, 0, 0, 1, 1])


def test_groups_share_the_budget_by_hand() -> None:
    score = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5])
    within = np.array(list("bbaabbaaba"))  # b has 5 rows, a has 5
    choice = choose_ranked("top-k", score, 4, within=within)
    assert choice.positions.tolist() == [0, 2, 1, 3]
    within = np.array(list("aaaaaaaabb"))
    # Shares 8/10 and 2/10; the fourth turn is a tie (8/4 = 2/1), which the earlier group gets.
    assert choose("top-k", score, 5, within=within).tolist() == [0, 1, 2, 3, 8]


@given(tied_scores(4, 20), st.data())
def test_groups_get_their_share_and_the_best_of_their_own(scores: np.ndarray, data: st.DataObject) -> None:
    n = scores.shape[1]
    within = np.array(data.draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n)))
    budget = data.draw(st.integers(0, n))
    largest = choose("round-robin", scores, n, within=within)
    for similarity in both(scores):
        choice = choose_ranked("round-robin", similarity, budget, within=within)
        np.testing.assert_array_equal(choice.positions, largest[:budget])  # budgets nest
        for group in set(within):
            mine = choice.positions[within[choice.positions] == group]
            size = int((within == group).sum())
            assert budget * size // n <= len(mine) <= -(-budget * size // n)
            np.testing.assert_array_equal(
                mine, choose("round-robin", scores, len(mine), usable=within == group)
            )


def test_groups_and_costs_together() -> None:
    rows = choose("top-k", SCORE, 3, within=np.array(list("aabbb")), cost=np.ones(5))
    np.testing.assert_array_equal(rows, choose("top-k", SCORE, 3, within=np.array(list("aabbb"))))


def test_rows_that_turn_out_not_finite_are_counted_once() -> None:
    scores = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    scores[1, 7] = np.nan
    usable = np.ones(40, bool)
    usable[[3, 9]] = False
    for source in (scores, Stream(scores)):
        for name in ("round-robin", "top-k", "doubly-greedy"):
            notes = choose_ranked(name, source, 20, usable=usable, within=np.arange(40) % 2).notes
            assert (notes["nan_count"], notes["unusable_count"], notes["usable_rows"]) == (1, 2, 37), name


def test_underflow_is_an_error_unless_allowed() -> None:
    usable = np.array([True, False, True, True, False])
    with pytest.raises(RequestError, match=r"top-k can choose 3 of the 4 rows asked for \(3 rows"):
        choose("top-k", SCORE, 4, usable=usable)
    assert choose("top-k", SCORE, 4, usable=usable, allow_underflow=True).tolist() == [0, 2, 3]
    hidden = Stream(np.array([[1.0, np.nan, 3.0]]))
    with pytest.raises(RequestError, match="2 of the 3"):
        choose("round-robin", hidden, 3)
    assert choose("round-robin", hidden, 3, allow_underflow=True).tolist() == [2, 0]


def test_prefixes_are_of_one_order() -> None:
    choice = choose_ranked("round-robin", F1, 6)
    parts = prefixes(choice, [0, 2, 6])
    assert [len(parts[b]) for b in (0, 2, 6)] == [0, 2, 6]
    np.testing.assert_array_equal(parts[2].query, choice.query[:2])
    with pytest.raises(RequestError, match="largest"):
        prefixes(choice, [7])


@pytest.mark.parametrize(
    ("name", "scores", "budget", "given", "message"),
    [
        ("round-robbin", F1, 2, {}, "did you mean 'round-robin'"),
        (
            "top-k",
            F1,
            2,
            {"agregate": "max"},
            r"unknown parameter of top-k 'agregate'; did you mean 'aggregate'",
        ),
        ("top-k", F1, 2, {"alpha": 1}, "known: aggregate, allow_underflow, cost"),
        ("top-k", F1, 2, {"aggregate": "median"}, "normalized-mean"),
        ("top-k", F1, -1, {}, "not below 0"),
        ("top-k", F1, 1.5, {}, "must be whole"),
        ("top-k", F1, float("nan"), {}, "budget must be a number"),
        ("top-k", F1, True, {}, "budget must be a number"),
        ("top-k", F1, "500", {}, "budget must be a number"),
        ("top-k", np.zeros((0, 5)), 2, {}, "no query"),
        ("top-k", None, 2, {"ids": np.arange(3)}, "top-k needs scores"),
        ("random", None, 2, {}, "cannot tell how many rows"),
        ("random-balanced", None, 2, {"ids": np.arange(3)}, "needs sources="),
        ("top-k", F1, 2, {"task_of": [0, 1]}, "task_of has 2 entries, but there are 3 queries"),
        ("top-k", F1, 2, {"usable": np.ones(5, bool)}, r"usable must be \(6,\) bool"),
        ("random", F1, 2, {"sources": ["a"] * 7}, "sources has 7 entries, but the pool has 6 rows"),
        ("top-k", F1, 2, {"within": ["a"]}, "within has 1 entries"),
        ("top-k", F1, 2, {"cost": [1, 2]}, "cost has 2 entries"),
        ("top-k", F1, 2, {"cost": [-1, 1, 1, 1, 1, 1]}, "none below 0"),
    ],
)
def test_what_is_refused_and_how(
    name: str, scores: object, budget: object, given: dict, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        choose(name, scores, budget, **given)
