"""Doubly greedy: worked by hand, and equal to what its card says."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from tamis.selections import choose, choose_ranked
from tests.selections.draws import both, tied_scores
from tests.selections.test_round_robin import F1


def test_f1() -> None:
    choice = choose_ranked("doubly-greedy", F1, 6, task_of=["x", "y", "y"])
    assert choice.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert choice.query.tolist() == [0, 0, 1, 2, 2, 0] and choice.task.tolist() == [0, 0, 1, 1, 1, 0]


@given(tied_scores())
def test_it_minimises_the_distance_to_the_nearest_query(scores: np.ndarray) -> None:
    n = scores.shape[1]
    nearest = 1 - scores.max(axis=0)
    for similarity in both(scores):
        rows = choose("doubly-greedy", similarity, n)
        assert np.allclose(np.cumsum(nearest[rows]), np.cumsum(np.sort(nearest)))
        np.testing.assert_array_equal(rows, choose("top-k", similarity, n, aggregate="max"))
        np.testing.assert_array_equal(rows, sorted(range(n), key=lambda j: (nearest[j], j)))
