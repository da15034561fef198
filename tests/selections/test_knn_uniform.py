"""KNN-uniform: the fixtures worked by hand, the slow twin, the published code's orders, and the guard."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from tamis.core.errors import RequestError
from tamis.selections import choose, choose_ranked
from tamis.selections.knn_uniform import Config, knn_uniform_slow
from tests.conftest import Conformance, shared
from tests.selections.draws import Stream, both, tied_scores

F1 = np.array(
    [[0.9, 0.8, 0.7, 0.1, 0.2, 0.3], [0.85, 0.4, 0.75, 0.2, 0.1, 0], [0.1, 0.2, 0.3, 0.6, 0.5, 0.05]]
)


def masses(scores: Any, **parameters: Any) -> np.ndarray:
    choice = choose_ranked("knn-uniform", scores, scores.shape[1], **parameters)
    found = np.empty(scores.shape[1])
    found[choice.positions] = choice.gain
    return found


def test_by_hand() -> None:
    choice = choose_ranked("knn-uniform", F1, 6, alpha=0.6, c=1)
    assert choice.notes["K"] == [3] and choice.notes["rows_with_mass"] == 5
    np.testing.assert_allclose(masses(F1, alpha=0.6, c=1), np.array([2, 2, 3, 1, 1, 0]) / 9, rtol=1e-6)
    # Masses 3/9; 2/9 twice (row 0 has the larger mean); 1/9 twice; 0.
    assert choice.positions.tolist() == [2, 0, 1, 3, 4, 5]
    # Who has row 2 nearest among all three: query 1. Row 5 belongs to nobody.
    assert choice.query.tolist() == [1, 0, 0, 2, 2, -1]
    assert choice.gain[-1] == 0


def test_by_hand_in_the_plane() -> None:
    degrees = np.deg2rad([10, 12, 14, 30, 75, 120])
    scores = np.stack([np.cos(degrees), np.sin(degrees)])
    choice = choose_ranked("knn-uniform", scores, 6, alpha=0.75, c=1, compatible=True)
    assert choice.notes["K"] == [2]
    np.testing.assert_allclose(masses(scores, alpha=0.75, c=1), [0.25, 0.25, 0, 0, 0.25, 0.25])
    assert choice.positions.tolist() == [0, 1, 4, 5, 2, 3]


@given(
    scores=tied_scores(4, 12),
    alpha=st.sampled_from([0.0, 0.01, 0.3, 0.6, 0.9, 1.0]),
    c=st.sampled_from([1.0, 5.0]),
    neighbours=st.integers(1, 14),
    compatible=st.booleans(),
)
def test_the_slow_definition_agrees(
    scores: np.ndarray, alpha: float, c: float, neighbours: int, compatible: bool
) -> None:
    n = scores.shape[1]
    config = Config(alpha, c, neighbours, compatible)
    rows, mass, k = knn_uniform_slow(scores, n, config)
    for source in both(scores):
        choice = choose_ranked("knn-uniform", source, n, **vars(config))
        assert choice.notes["K"] == [k]
        assert choice.positions.tolist() == rows
        np.testing.assert_allclose(choice.gain, np.array(mass)[rows], rtol=1e-6)


def recorded(case: str) -> tuple[np.ndarray, dict[str, Any], Any]:
    described = json.loads(shared("golden/selection.json").read_text())[case]
    arrays = np.load(shared("golden/selection.npz"))
    if case == "rds":
        return np.load(shared("golden/representations.npz"))["rds_similarity"], described, arrays
    if case == "large":
        return arrays["large.sim_float16"].astype(np.float32), described, arrays
    return arrays[f"{case}.sim"], described, arrays


def ties_turned(scores: np.ndarray, k: int, count: np.ndarray) -> np.ndarray:
    """Scores in which rows that tie with a query's k-th place are taken as `count` (n,) says they were.

    The published code sorts by an unstable method, so which of them it takes is in no defined order: a flow
    from queries with places left to rows with picks left recovers it.
    """
    m, n = scores.shape
    kth = -np.sort(-scores, axis=1)[:, k - 1 : k]
    above, tied = scores > kth, scores == kth
    ends = m + n
    links = np.zeros((ends + 2, ends + 2), np.int32)
    links[:m, m:ends] = tied
    links[ends, :m] = k - above.sum(axis=1)
    links[m:ends, ends + 1] = count - above.sum(axis=0)
    flow = maximum_flow(csr_array(links), ends, ends + 1)
    assert flow.flow_value == links[ends].sum() == links[:, ends + 1].sum()
    return scores + 1e-10 * (flow.flow.toarray()[:m, m:ends] > 0)


@pytest.mark.parametrize(
    "case", ["plain", "ties", "duplicates", "wide", "degenerate", "peaked", "rds", "large"]
)
def test_the_published_code_gives_the_same(case: str, conforms: Conformance) -> None:
    scores, described, arrays = recorded(case)
    scores = scores.astype(np.float64)
    names = [name for name in described["ids"] if name.startswith("dcml.knn_uniform.a")]
    assert len(names) == (1 if case == "large" else 4)
    for name in names:
        level = name.removeprefix("dcml.knn_uniform.a")
        parameters = {"alpha": float(level), "compatible": True}
        facts = described if case == "large" else described["knn"][f"uniform_a{level}"]
        expected_mass = arrays[f"{case}.knn_uniform_probs_a{level}"]
        k = choose_ranked("knn-uniform", scores, 1, **parameters).notes["K"][0]
        assert k == facts["K"]
        turned = ties_turned(scores, k, np.rint(expected_mass * k * len(scores)).astype(int))
        choice = choose_ranked("knn-uniform", turned, 1, **parameters)
        assert (choice.notes["K"], choice.notes["rows_with_mass"]) == ([k], facts["nonzero"])
        for budget, expected in described["ids"][name].items():
            found = choose("knn-uniform", turned, int(budget), **parameters).tolist()
            conforms.exact("`knn-uniform`, order", found, expected)
        conforms.close("`knn-uniform`, masses", masses(turned, **parameters), expected_mass, atol=2e-7)


@pytest.mark.parametrize("case", ["plain", "wide", "degenerate", "peaked"])
def test_nothing_needs_turning_where_no_row_ties_with_the_last_place(case: str) -> None:
    scores, described, _ = recorded(case)
    for name in (name for name in described["ids"] if name.startswith("dcml.knn_uniform.a")):
        alpha = float(name.removeprefix("dcml.knn_uniform.a"))
        for budget, expected in described["ids"][name].items():
            assert (
                choose("knn-uniform", scores, int(budget), alpha=alpha, compatible=True).tolist() == expected
            )


def test_the_guard_makes_the_choice_independent_of_the_files_order() -> None:
    """8 queries over 3000 rows: K ends at its limit, p has few levels, and position decides inside them."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((8, 3000)) * 0.1
    order = rng.permutation(3000)
    choice = choose_ranked("knn-uniform", scores, 300, neighbours=2500)
    assert choice.notes["K_at_its_limit"] == 1 and choice.notes["levels"][0] <= 8
    turned = order[choose("knn-uniform", scores[:, order], 300, neighbours=2500)]
    assert turned.tolist() == choice.positions.tolist()
    # The pure form takes the first rows of the top level, whichever order the file has.
    for given_scores in (scores, scores[:, order]):
        pure = choose("knn-uniform", given_scores, 300, neighbours=2500, compatible=True)
        assert pure.tolist() == sorted(pure)
    other = order[pure]
    pure = choose("knn-uniform", scores, 300, neighbours=2500, compatible=True)
    assert len(set(pure) & set(other)) < 200
    # The guarded rows are nearer to the queries than the pure form's, at the same masses.
    assert scores[:, choice.positions].mean() > 1.5 * scores[:, pure].mean()


def test_rows_beyond_every_neighbourhood_follow_by_their_mean() -> None:
    scores = np.array([[0.9, 0.1, 0.5, 0.3], [0.8, 0.2, 0.6, 0.3]])
    choice = choose_ranked("knn-uniform", scores, 4, neighbours=1)
    assert choice.positions.tolist() == [0, 2, 3, 1]
    assert choice.gain.tolist() == [1, 0, 0, 0] and choice.query.tolist() == [0, -1, -1, -1]
    assert choice.notes["rows_with_mass"] == 1
    assert choose("knn-uniform", scores, 4, neighbours=1, compatible=True).tolist() == [0, 1, 2, 3]


def test_tasks_name_the_task_of_the_query_and_groups_have_their_own_k() -> None:
    choice = choose_ranked("knn-uniform", F1, 6, alpha=0.6, c=1, task_of=["a", "b", "b"])
    assert choice.task.tolist() == [1, 0, 0, 1, 1, -1]
    inside = choose_ranked("knn-uniform", F1, 6, neighbours=2, within=[0, 0, 0, 1, 1, 1])
    assert inside.notes["K"] == [2, 2]


def test_a_stream_with_rows_that_are_not_finite() -> None:
    scores = F1.astype(np.float32)
    scores[1, 2] = np.nan
    found = choose_ranked("knn-uniform", Stream(scores), 5, alpha=0.6, c=1)
    assert found.notes["nan_count"] == 1 and 2 not in found.positions
    assert found.positions.tolist() == choose("knn-uniform", scores, 5, alpha=0.6, c=1).tolist()


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"alpha": 1.1}, {"c": 0}, {"neighbours": 0}])
def test_parameters_outside_their_domain_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        choose("knn-uniform", F1, 1, **wrong)
