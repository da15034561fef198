"""coverage: T5 by hand, plain greedy, the best subset of all, the shortlist, Superfiltering's picks."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tamis.core.errors import RequestError
from tamis.core.vectors import DenseVectors
from tamis.selections import choose, choose_ranked, coverage
from tamis.selections._pairs import UnitRows
from tamis.selections.coverage import Cover, cover_slow, kernel_of
from tests.conftest import Conformance, shared


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def kernel(vectors: np.ndarray, name: str = "cosine") -> np.ndarray:
    wide = unit(vectors.astype(np.float32).astype(np.float64))  # as vectors are stored
    return kernel_of(wide @ wide.T, name, vectors.shape[1])


def clusters(seed: int, rows: int, d: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((6, d))[rng.integers(0, 6, rows)] + 0.5 * rng.standard_normal((rows, d))


def test_three_rows_by_hand() -> None:
    """T5."""
    similarity = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    vectors = np.linalg.cholesky(similarity)  # rows with these cosines
    choice = choose_ranked("coverage", None, 3, vectors=vectors)
    assert choice.positions.tolist() == [1, 2, 0]
    np.testing.assert_allclose(choice.gain, [2.1, 0.8, 0.1], atol=1e-6)
    assert cover_slow(similarity, 3) == [1, 2, 0]
    assert choice.notes["covered"] == pytest.approx(3)


def test_rows_that_point_away_cover_nothing() -> None:
    vectors = np.array([[1.0, 0], [-1, 0], [-1, 0], [0, 1]])
    choice = choose_ranked("coverage", None, 4, vectors=vectors)
    assert choice.positions.tolist() == [1, 0, 3, 2]  # not by negative gains; the smaller of two copies
    assert choice.gain.tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("name", ["cosine", "euclidean"])
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 90))
@settings(max_examples=40)
def test_lazy_greedy_picks_what_plain_greedy_picks(name: Any, seed: int, rows: int) -> None:
    vectors = clusters(seed, rows)
    budget = min(rows, 40)
    ours = choose("coverage", None, budget, vectors=vectors, kernel=name)
    whole = kernel(vectors, name)
    np.fill_diagonal(whole, 1)
    assert ours.tolist() == cover_slow(whole, budget, coverage.EQUAL[name])


@pytest.mark.parametrize("room", [1, 1 << 30])
def test_columns_that_went_and_came_back_change_nothing(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clusters(3, 900)
    expected = cover_slow(kernel(vectors), 200)
    monkeypatch.setattr(coverage, "COLUMN_BYTES", room)
    monkeypatch.setattr(coverage, "_LINES", 100)
    cover = Cover(UnitRows(DenseVectors([vectors]), np.arange(900)), "cosine")
    assert cover.pick(200)[0].tolist() == expected
    if room == 1:
        assert cover.columns_made > 900 and len(cover._columns) == 512
    else:
        assert cover.columns_made <= 900
    assert cover.evaluations < 900 * 200 / 5


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_cover_is_near_the_best_of_all_subsets(seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((10, 3))
    values = kernel(vectors)
    for size in (1, 2, 3):
        found = values[:, choose("coverage", None, size, vectors=vectors)].max(axis=1).sum()
        best = max(values[:, list(rows)].max(axis=1).sum() for rows in combinations(range(10), size))
        assert found >= (1 - 1 / np.e) * best - 1e-6
        if size == 1:
            assert found == pytest.approx(best)


def test_gains_add_up_to_what_is_covered() -> None:
    vectors = clusters(4, 300)
    choice = choose_ranked("coverage", None, 50, vectors=vectors)
    value = kernel(vectors)[:, choice.positions].max(axis=1).sum()
    assert choice.gain.sum(dtype=np.float64) == pytest.approx(value, rel=1e-5)
    assert choice.notes["covered"] == pytest.approx(value, rel=1e-5)
    assert (np.diff(choice.gain) <= 1e-4).all()


def test_a_shortlist_is_the_top_of_the_scores_and_says_what_it_leaves_out() -> None:
    vectors = clusters(5, 400)
    scores = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
    top = np.argsort(-scores.mean(axis=0, dtype=np.float64), kind="stable")
    choice = choose_ranked("coverage", scores, 120, vectors=vectors, shortlist=100)
    inside = np.sort(top[:100])
    assert choice.positions[:100].tolist() == inside[cover_slow(kernel(vectors[inside]), 100)].tolist()
    assert choice.positions[100:].tolist() == top[100:120].tolist()
    assert np.isnan(choice.gain[100:]).all() and choice.notes["beyond_shortlist"] == 20
    few = choose_ranked("coverage", scores, 10, vectors=vectors, shortlist=100)
    outside = kernel(vectors)[np.ix_(np.setdiff1d(np.arange(400), inside), few.positions)].max(axis=1)
    assert few.notes["sample_rows"] == 300 and few.notes["shortlist_rows"] == 100
    assert few.notes["sample_covered"] == pytest.approx(outside.sum(), rel=1e-5)


def test_a_shortlist_without_scores_is_a_fixed_draw_by_id() -> None:
    vectors, ids = clusters(6, 200), np.array([f"row {i}" for i in range(200)])
    order = np.random.default_rng(1).permutation(200)
    found = choose("coverage", None, 50, vectors=vectors, ids=ids, shortlist=50)
    shuffled = choose("coverage", None, 50, vectors=vectors[order], ids=ids[order], shortlist=50)
    assert sorted(order[shuffled]) == sorted(found)
    other = choose("coverage", None, 50, vectors=vectors, ids=ids, shortlist=50, shortlist_seed=1)
    assert sorted(other) != sorted(found)


def test_sparse_rows() -> None:
    vectors = np.maximum(np.abs(clusters(7, 80)) - 0.3, 0) + np.eye(80, 8)[np.arange(80) % 8]
    found = choose("coverage", None, 30, vectors=Sparse(vectors))
    assert found.tolist() == cover_slow(kernel(vectors), 30)


class Sparse:
    """Vectors that come as CSR."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, (self.n, self.d) = csr_array(rows.astype(np.float32)), rows.shape

    def take(self, positions: np.ndarray) -> Any:
        return self.rows[positions]


def test_parameters_outside_their_domain_are_refused() -> None:
    for wrong in ({"shortlist": 0}, {"kernel": "dot"}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            choose("coverage", None, 2, vectors=np.eye(3), **wrong)


@pytest.mark.parametrize("case", ["plain", "wide", "peaked"])
def test_the_published_picks(case: str, conforms: Conformance) -> None:
    recorded = json.loads(shared("golden/facility_location.json").read_text())["ids"][case]
    vectors = np.load(shared("golden/selection.npz"))[f"{case}.emb_pool"]
    for expected in recorded.values():
        ours = choose("coverage", None, len(expected), vectors=vectors, kernel="euclidean")
        conforms.exact("`coverage`, order", ours.tolist(), expected)
