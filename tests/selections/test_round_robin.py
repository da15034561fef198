"""Round-robin: worked by hand, against the definition, and its refills."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.core.errors import RequestError
from tamis.core.similarity import ArraySimilarity
from tamis.selections import choose, choose_ranked, round_robin
from tamis.selections.round_robin import printed_picks, round_robin_slow
from tests.selections.draws import Stream, both, tied_scores

F1 = np.array(
    [
        [0.90, 0.80, 0.70, 0.10, 0.20, 0.30],
        [0.85, 0.40, 0.75, 0.20, 0.10, 0.00],
        [0.10, 0.20, 0.30, 0.60, 0.50, 0.05],
    ]
)
F3 = np.array([[0.9, 0.8, 0.1, 0.2], [0.95, 0.3, 0.6, 0.1]])


def test_f1_lossless() -> None:
    assert choose("round-robin", F1, 4).tolist() == [0, 2, 3, 1]
    assert choose("round-robin", F1, 6).tolist() == [0, 2, 3, 1, 4, 5]


def test_f1_losing_turns() -> None:
    choice = choose_ranked("round-robin", F1, 4, duplicates="lose-turn")
    assert choice.positions.tolist() == [0, 3, 1, 2]
    assert choice.query.tolist() == [0, 2, 0, 1]
    assert choice.gain.tolist() == pytest.approx([0.9, 0.6, 0.8, 0.75])
    assert choice.notes["lost_turns"] == 1  # query 1 found row 0 taken
    assert choose("round-robin", F1, 6, duplicates="lose-turn").tolist() == [0, 3, 1, 2, 4, 5]


def test_f1_as_printed_repeats_rows_only_when_asked() -> None:
    assert printed_picks(ArraySimilarity(F1), 4).tolist() == [0, 0, 3, 1]
    with pytest.raises(RequestError, match="3 of the 4 rows"):
        choose("round-robin", F1, 4, duplicates="as-printed")
    fewer = choose("round-robin", F1, 4, duplicates="as-printed", allow_underflow=True)
    assert fewer.tolist() == [0, 3, 1]


def test_f3_tasks_take_the_turns() -> None:
    tasks = {"task_of": ["a", "b"]}
    assert choose("round-robin", F3, 2, **tasks).tolist() == [0, 2]
    assert choose("round-robin", F3, 4, **tasks).tolist() == [0, 2, 1, 3]
    assert choose("round-robin", F3, 2, duplicates="lose-turn", **tasks).tolist() == [0, 1]
    assert choose("round-robin", F3, 4, duplicates="lose-turn", **tasks).tolist() == [0, 1, 2, 3]


def test_tasks_name_the_query_that_gives_the_score() -> None:
    for similarity in both(F1):
        choice = choose_ranked("round-robin", similarity, 4, task_of=["b", "a", "b"])
        assert choice.positions.tolist() == [0, 2, 1, 4 - 1]
        assert choice.task.tolist() == [0, 1, 0, 1] and choice.query.tolist()[:3] == [0, 1, 0]
        assert choice.gain.tolist() == pytest.approx([0.9, 0.75, 0.8, 0.2])


def test_more_queries_than_rows_asked_for() -> None:
    assert choose_ranked("round-robin", F1, 2).query.tolist() == [0, 1]


@settings(max_examples=300)
@given(tied_scores(), st.sampled_from(["skip", "lose-turn"]), st.integers(1, 4), st.data())
def test_it_is_the_definition(
    scores: np.ndarray, duplicates: str, block_rows: int, data: st.DataObject
) -> None:
    budget = data.draw(st.integers(1, scores.shape[1]))
    expected = round_robin_slow(scores, budget, duplicates)
    for similarity in both(scores, block_rows):
        choice = choose_ranked("round-robin", similarity, budget, duplicates=duplicates)
        assert list(zip(choice.positions.tolist(), choice.query.tolist(), strict=True)) == expected
        np.testing.assert_array_equal(choice.gain, scores[choice.query, choice.positions])


@given(tied_scores(), st.integers(0, 20))
def test_printed_picks_are_the_definition(scores: np.ndarray, turns: int) -> None:
    turns = min(turns, scores.size)
    expected = [row for row, _ in round_robin_slow(scores, turns, "as-printed")]
    for similarity in both(scores):
        assert printed_picks(similarity, turns).tolist() == expected


@settings(max_examples=200)
@given(tied_scores(5, 12), st.sampled_from(["skip", "lose-turn"]))
def test_lists_that_run_out_are_filled_again(scores: np.ndarray, duplicates: str) -> None:
    n = scores.shape[1]
    expected = [row for row, _ in round_robin_slow(scores, n, duplicates)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_robin, "LIST_ENTRIES", 1)
        patch.setattr(round_robin, "LIST_SHARES", 1)
        for similarity in both(scores):
            assert choose("round-robin", similarity, n, duplicates=duplicates).tolist() == expected


@pytest.mark.parametrize("duplicates", ["skip", "lose-turn"])
def test_equal_queries_need_refills_and_say_so(duplicates: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_robin, "LIST_ENTRIES", 1)
    scores = np.tile(np.random.default_rng(0).standard_normal(300).astype(np.float32), (20, 1))
    choice = choose_ranked("round-robin", Stream(scores, block_rows=32), 200, duplicates=duplicates)
    np.testing.assert_array_equal(choice.positions, np.argsort(-scores[0], kind="stable")[:200])
    assert choice.notes["passes"] > 1


@given(tied_scores(), st.data())
def test_every_query_gets_its_share(scores: np.ndarray, data: st.DataObject) -> None:
    m, n = scores.shape
    budget = data.draw(st.integers(0, n))
    picks = np.bincount(choose_ranked("round-robin", scores, budget).query, minlength=m)
    assert set(picks) <= {budget // m, -(-budget // m)}
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=m, max_size=m)))
    tasks = len(set(labels.tolist()))
    by_task = np.bincount(choose_ranked("round-robin", scores, budget, task_of=labels).task, minlength=tasks)
    assert set(by_task) <= {budget // tasks, -(-budget // tasks)}


@given(tied_scores(), st.data())
def test_one_task_is_doubly_greedy(scores: np.ndarray, data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, scores.shape[1]))
    together = choose_ranked("round-robin", scores, budget, task_of=np.zeros(len(scores), int))
    greedy = choose_ranked("doubly-greedy", scores, budget)
    np.testing.assert_array_equal(together.positions, greedy.positions)
    np.testing.assert_array_equal(together.query, greedy.query)


def test_unknown_duplicates_are_refused() -> None:
    with pytest.raises(RequestError, match="lose-turn"):
        choose("round-robin", F1, 2, duplicates="keep")
