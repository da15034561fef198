"""cluster-quota: shares by hand, quotas against water-filling, clusters that are plain to see, samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tamis.core.errors import RequestError
from tamis.core.vectors import SparseVectors
from tamis.selections import choose, choose_ranked
from tamis.selections._order import level_quotas
from tamis.selections.cluster_quota import turns

SIZES = (60, 25, 15)


@pytest.fixture
def islands() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of three far clusters, mixed, of different lengths, and the cluster of each."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(3), SIZES))
    rows = np.eye(3, 6)[label] + 0.05 * rng.standard_normal((100, 6))
    return rows * rng.uniform(0.5, 5, (100, 1)), label


def test_turns_by_hand() -> None:
    labels = np.array([0, 1, 0, 0, 1, 2])
    within = np.array([3, 5, 4, 2, 1, 0])
    assert turns(labels, within, 6, "equal").tolist() == [3, 4, 5, 2, 1, 0]
    # Shares of 1/2, 1/3, 1/6: the third cluster's one row must come by the last turn.
    assert turns(labels, within, 6, "proportional").tolist() == [3, 4, 2, 1, 0, 5]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_equal_turns_fill_like_water(sizes: list[int], data: st.DataObject) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    limit = data.draw(st.integers(0, len(labels)))
    taken = turns(labels, np.arange(len(labels)), limit, "equal")
    counts = np.bincount(labels[taken], minlength=len(sizes))
    np.testing.assert_array_equal(counts, level_quotas(np.array(sizes), limit))


@pytest.mark.parametrize(
    ("quota", "shares"), [("equal", [18, 17, 15]), ("proportional", [30, 12, 8])]
)  # 12.5 and 7.5 round to either side
def test_clusters_share_the_budget(quota: str, shares: list[int], islands: Any) -> None:
    vectors, label = islands
    score = np.arange(100.0)[::-1]
    choice = choose_ranked("cluster-quota", score, 50, vectors=vectors, clusters=3, quota=quota)
    counts = np.bincount(label[choice.positions])
    np.testing.assert_allclose(counts, shares, atol=1 if quota == "proportional" else 0)
    for island in range(3):
        mine = choice.positions[label[choice.positions] == island]
        np.testing.assert_array_equal(mine, np.flatnonzero(label == island)[: len(mine)])
    np.testing.assert_array_equal(choice.gain, score[choice.positions])
    assert choice.notes["empty_clusters"] == 0 and choice.notes["fitted_rows"] == 100


def test_without_scores_the_seed_draws_inside_a_cluster(islands: Any) -> None:
    vectors, label = islands
    first, other = (choose("cluster-quota", None, 45, vectors=vectors, clusters=3, seed=s) for s in (0, 1))
    assert np.bincount(label[first]).tolist() == np.bincount(label[other]).tolist() == [15, 15, 15]
    assert sorted(first) != sorted(other)


def test_a_sample_finds_the_same_islands(islands: Any) -> None:
    vectors, label = islands
    choice = choose_ranked("cluster-quota", None, 30, vectors=vectors, clusters=3, sample=40)
    assert choice.notes["fitted_rows"] == 40
    assert np.bincount(label[choice.positions]).tolist() == [10, 10, 10]


def test_sparse_rows_give_the_same_clusters(islands: Any) -> None:
    vectors = np.zeros((100, 5000))
    vectors[:, [7, 90, 800, 801, 4000, 4999]] = islands[0]
    rows = csr_array(vectors.astype(np.float32))
    rows.indices, rows.indptr = rows.indices.astype(np.int64), rows.indptr.astype(np.int64)
    sparse = SparseVectors([rows])
    asked: dict[str, Any] = {"clusters": 3, "seed": 2, "sample": 60}
    np.testing.assert_array_equal(
        choose("cluster-quota", None, 60, vectors=sparse, **asked),
        choose("cluster-quota", None, 60, vectors=vectors, **asked),
    )


def test_more_clusters_than_distinct_rows_are_counted() -> None:
    vectors = np.repeat(np.eye(3), 5, axis=0)
    choice = choose_ranked("cluster-quota", None, 15, vectors=vectors, clusters=7)
    assert choice.notes["empty_clusters"] == 4
    assert sorted(choice.positions) == list(range(15))
    assert (
        choose_ranked("cluster-quota", None, 2, vectors=vectors[:2], clusters=7).notes["empty_clusters"] == 6
    )


def test_one_cluster_is_top_k(islands: Any) -> None:
    scores = np.random.default_rng(1).standard_normal((4, 100)).astype(np.float32)
    np.testing.assert_array_equal(
        choose("cluster-quota", scores, 30, vectors=islands[0], clusters=1), choose("top-k", scores, 30)
    )


def test_parameters_outside_their_domain_are_refused() -> None:
    for wrong in ({"clusters": 0}, {"quota": "half"}, {"sample": 10}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            choose("cluster-quota", None, 2, vectors=np.eye(3), **wrong)
