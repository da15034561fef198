"""cluster-middle: bands by hand and against exact percentiles, the reference's rows, turns of clusters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.core.errors import RequestError
from tamis.selections import choose, choose_ranked
from tamis.selections.cluster_middle import middle, middle_slow
from tests.conftest import Conformance, shared


def test_band_by_hand() -> None:
    """T4."""
    nine = np.arange(1.0, 10.0)
    (rows,) = middle(np.zeros(9, int), nine, 2, 25, 75)
    assert nine[rows].tolist() == [3, 5]  # the band is 3..7, every second of it
    (rows,) = middle(np.zeros(15, int), np.arange(15.0), 10, 25, 75)
    assert len(rows) == 7
    (rows,) = middle(np.zeros(9, int), nine[::-1], 2, 25, 75)
    assert nine[::-1][rows].tolist() == [7, 5]  # in the order of the pool, not of the score


def test_a_small_cluster_is_taken_whole() -> None:
    found = middle(np.array([1, 0, 1, 1]), np.array([9.0, 1.0, 2.0, 3.0]), 2, 25, 75)
    assert [part.tolist() for part in found] == [[1], [3]]
    found = middle(np.array([1, 0, 1, 1]), np.array([9.0, 1.0, 2.0, 3.0]), 4, 25, 75)
    assert [part.tolist() for part in found] == [[1], [0, 2, 3]]


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 3)), min_size=1, max_size=40),
    n=st.integers(1, 6),
    band=st.sampled_from([(25, 75), (0, 100), (50, 50), (12.5, 62.5)]),
)
def test_equal_to_the_definition(rows: list[tuple[int, int]], n: int, band: tuple[float, float]) -> None:
    labels, scores = (np.array(part) for part in zip(*rows, strict=True))
    found = [part.tolist() for part in middle(labels, scores / 2, n, *band)]
    assert found == middle_slow(labels, scores / 2, n, *band)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6))
def test_increasing_functions_of_the_score_change_nothing(values: list[int], n: int) -> None:
    scores, one = np.array(values) / 8, np.zeros(len(values), int)
    np.testing.assert_array_equal(
        middle(one, scores, n, 25, 75)[0], middle(one, np.exp(scores), n, 25, 75)[0]
    )


@pytest.mark.parametrize(("clusters", "n", "low", "high"), [(6, 3, 25, 75), (4, 10, 1, 99), (20, 2, 25, 75)])
def test_the_rows_of_the_reference_given_its_clusters(
    clusters: int, n: int, low: int, high: int, conforms: Conformance
) -> None:
    golden = np.load(shared("golden/cherry_cluster.npz"))
    wanted = json.loads(shared("golden/losses_selection.json").read_text(encoding="utf-8"))
    found = middle(golden[f"labels_k{clusters}"], golden["ppl"], n, low, high)
    name = f"cherry_cluster_k{clusters}_n{n}_{low}_{high}"
    ids = golden["ids"][np.concatenate(found)].tolist()
    conforms.exact("`cluster-middle`, rows given the clusters", ids, wanted[name])


def test_clusters_take_turns_and_a_larger_budget_is_refused() -> None:
    vectors = np.repeat(np.eye(3) * 10, [20, 12, 8], axis=0) + np.random.default_rng(0).normal(
        0, 0.1, (40, 3)
    )
    given_rows = {"vectors": vectors, "clusters": 3, "per_cluster": 4}
    choice = choose_ranked("cluster-middle", np.arange(40.0), 6, **given_rows)
    assert choice.positions.tolist() == [5, 23, 34, 7, 24, 35]
    np.testing.assert_array_equal(choice.gain, choice.positions)
    assert choice.notes["middle_rows"] == 12 and choice.notes["whole_clusters"] == 0
    with pytest.raises(RequestError, match="12"):
        choose("cluster-middle", np.arange(40.0), 13, **given_rows)


def test_lengths_of_vectors_count() -> None:
    """Rows on one ray are apart as they are stored, and would be one point if scaled."""
    vectors = np.array([[1.0, 0], [1.1, 0], [9.0, 0], [9.1, 0]])
    rows = choose(
        "cluster-middle", np.arange(4.0), 2, vectors=vectors, clusters=2, per_cluster=1, low=0, high=50
    )
    assert rows.tolist() == [0, 2]
