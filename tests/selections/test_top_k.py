"""Top-k: the orders worked by hand, the exact twin, ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.core.errors import RequestError
from tamis.selections import choose, choose_ranked
from tamis.selections.top_k import top_k_slow
from tests.selections.draws import Stream, both, tied_scores
from tests.selections.test_round_robin import F1, F3


@pytest.mark.parametrize(
    ("aggregate", "key", "order"),
    [
        ("mean", [0.616667, 0.466667, 0.583333, 0.3, 0.266667, 0.116667], [0, 2, 1, 3, 4, 5]),
        ("min", [0.1, 0.2, 0.3, 0.1, 0.1, 0.0], [2, 1, 0, 3, 4, 5]),
        ("max", [0.9, 0.8, 0.75, 0.6, 0.5, 0.3], [0, 1, 2, 3, 4, 5]),
        ("normalized-mean", [0.696970, 0.539439, 0.695633, 0.411765, 0.353610, 0.083333], [0, 2, 1, 3, 4, 5]),
    ],
)
def test_f1(aggregate: str, key: list[float], order: list[int]) -> None:
    for similarity in (F1, Stream(F1)):
        choice = choose_ranked("top-k", similarity, 6, aggregate=aggregate)
        assert choice.positions.tolist() == order
        assert choice.gain.tolist() == pytest.approx(np.array(key)[order], abs=1e-6)


def test_f3_mean_of_the_tasks() -> None:
    choice = choose_ranked("top-k", F3, 4, aggregate="task-mean-max", task_of=["a", "b"])
    assert choice.positions.tolist() == [0, 1, 2, 3]
    assert choice.gain.tolist() == pytest.approx([0.925, 0.55, 0.35, 0.15])


def test_a_task_of_many_queries_weighs_as_much_as_one_of_few() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.5]])
    tasks = ["a", "a", "a", "b"]
    assert choose("top-k", scores, 1).tolist() == [0]
    assert choose("top-k", scores, 1, aggregate="task-mean-mean", task_of=tasks).tolist() == [1]
    assert choose("top-k", scores, 1, aggregate="task-mean-max", task_of=tasks).tolist() == [1]


def test_a_constant_query_counts_for_nothing() -> None:
    scores = np.array([[5.0, 5.0, 5.0], [0.0, 2.0, 1.0]])
    choice = choose_ranked("top-k", scores, 3, aggregate="normalized-mean")
    assert choice.positions.tolist() == [1, 2, 0] and choice.gain.tolist() == [0.5, 0.25, 0.0]


def test_the_range_of_a_query_is_that_of_the_rows_that_can_be_chosen() -> None:
    scores = np.array([[0.0, 1.0, 2.0, 100.0], [1.0, 0.6, 0.0, 0.0]])
    usable = np.array([True, True, True, False])
    gain = choose_ranked(
        "top-k", Stream(scores, block_rows=4), 1, aggregate="normalized-mean", usable=usable
    ).gain
    assert gain.tolist() == pytest.approx([0.55])  # (1/2 + 6/10) / 2


@given(
    tied_scores(),
    st.sampled_from(["mean", "max", "min", "normalized-mean", "task-mean-max", "task-mean-mean"]),
    st.data(),
)
def test_it_is_the_definition(scores: np.ndarray, aggregate: str, data: st.DataObject) -> None:
    m, n = scores.shape
    tasks = np.array(data.draw(st.lists(st.integers(0, 2), min_size=m, max_size=m)))
    # In eighths, thirds and ranges of few values, equal fractions need not be equal floats: compare the keys.
    budget = data.draw(st.integers(0, n))
    expected = top_k_slow(scores, n, aggregate, tasks)
    whole = choose_ranked("top-k", scores, n, aggregate=aggregate, task_of=tasks)
    keys = dict(zip(whole.positions.tolist(), whole.gain.tolist(), strict=True))
    assert [keys[row] for row in expected] == pytest.approx(whole.gain.tolist(), abs=1e-6)
    if aggregate in ("mean", "max", "min"):
        for similarity in both(scores):
            assert choose("top-k", similarity, budget, aggregate=aggregate).tolist() == expected[:budget]


def test_ties_of_a_score_go_by_position_or_by_the_hash_of_the_id() -> None:
    score, ids = np.array([1.0, 2.0] + [1.0] * 60), np.array([f"row-{i}" for i in range(62)])
    assert choose("top-k", score, 4).tolist() == [1, 0, 2, 3]
    hashed = choose("top-k", score, 62, tie_seed=7, ids=ids)
    assert hashed[0] == 1 and sorted(hashed) == list(range(62)) and (hashed[1:] != np.sort(hashed[1:])).any()
    # The order of the pool's file is no longer a selector: turned around, the same rows come out.
    turned = choose("top-k", score[::-1], 20, tie_seed=7, ids=ids[::-1])
    assert ids[::-1][turned].tolist() == ids[hashed[:20]].tolist()
    assert choose("top-k", score, 62, tie_seed=8, ids=ids).tolist() != hashed.tolist()


def test_t16_equal_scores_are_drawn_by_the_tie_seed_and_too_few_are_an_error() -> None:
    scores, ids = np.full(300, 2.5), np.array([f"row-{i}" for i in range(300)])
    scores[:20] = np.nan
    first, again, other = (choose("top-k", scores, 40, ids=ids, tie_seed=seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() and set(first) != set(other)
    assert np.isfinite(scores[first]).all() and np.isfinite(scores[other]).all()
    with pytest.raises(RequestError, match="can choose 280 of the 281"):
        choose("top-k", scores, 281, ids=ids, tie_seed=1)


def test_a_score_has_no_query() -> None:
    assert choose_ranked("top-k", np.arange(3.0), 2, aggregate="max").query.tolist() == [-1, -1]
    assert choose_ranked("top-k", np.arange(3.0)[None], 2, aggregate="max").query.tolist() == [0, 0]


def test_task_aggregates_need_tasks() -> None:
    with pytest.raises(RequestError, match="task_of"):
        choose("top-k", F3, 2, aggregate="task-mean-max")


def test_the_middle_by_skipping_the_top() -> None:
    nll = np.array([2, 1, 3, 0.5, 2.5, 1.5])  # P1
    assert choose("top-k", nll, 2).tolist() == [2, 4]
    choice = choose_ranked("top-k", nll, 2, skip=0.33)
    assert choice.positions.tolist() == [4, 0] and choice.notes["skipped"] == 1
    with pytest.raises(RequestError, match="can choose 5 of the 6"):
        choose("top-k", nll, 6, skip=0.33)
    with pytest.raises(RequestError, match="skip=1"):
        choose("top-k", nll, 2, skip=1)


def test_rows_above_a_limit_are_left_out_and_counted() -> None:
    choice = choose_ranked("top-k", np.array([0.9, 1.0, 1.1, 0.5, np.nan]), 3, most=1.0)
    assert choice.positions.tolist() == [1, 0, 3] and choice.notes["above_most"] == 1


def test_rows_below_a_limit_are_left_out_and_counted() -> None:
    ratings = np.array([4.5, 4.0, 5.0, 4.5, np.nan, 3.0])
    choice = choose_ranked("top-k", ratings, 3, least=4.5)
    assert choice.positions.tolist() == [2, 0, 3] and choice.notes["below_least"] == 2
    with pytest.raises(RequestError, match="can choose 3 of the 4 rows"):
        choose("top-k", ratings, 4, least=4.5)
    assert choose("top-k", ratings, 1, least=4.0, most=4.4).tolist() == [1]
    with pytest.raises(RequestError, match="below least"):
        choose("top-k", ratings, 1, least=4.5, most=4.0)
