"""The running lists against a full sort, in the cases that break such filters, and the reductions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.core.similarity import ArraySimilarity, FeatureSimilarity, Similarity
from tamis.selections._best import After, best, column_means, grouped, reduce_rows
from tests.selections.draws import Stream, tied_scores


def sorted_whole(scores: np.ndarray, usable: np.ndarray) -> list[list[int]]:
    """Each query's usable finite rows, best first: the definition."""
    rows = [j for j in range(scores.shape[1]) if usable[j] and np.isfinite(scores[:, j]).all()]
    return [sorted(rows, key=lambda j, q=q: (-scores[q, j], j)) for q in range(len(scores))]


def check(similarity: Similarity, scores: np.ndarray, depth: int, after: After | None = None) -> None:
    lists = best(similarity, depth, after)
    for q, order in enumerate(sorted_whole(scores, similarity.usable)):
        if after is not None:
            order = [j for j in order if (-scores[q, j], j) > (-after.score[q], after.row[q])]
        k = lists.length[q]
        assert k == min(depth, len(order)) and lists.complete[q] == (len(order) <= depth)
        np.testing.assert_array_equal(lists.rows[q, :k], order[:depth])
        np.testing.assert_array_equal(lists.scores[q, :k], scores[q, order[:depth]])


@settings(max_examples=300)
@given(tied_scores(4, 30), st.integers(1, 12), st.integers(1, 9), st.data())
def test_lists_are_the_head_of_a_full_sort(
    scores: np.ndarray, depth: int, block_rows: int, data: st.DataObject
) -> None:
    n = scores.shape[1]
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    if data.draw(st.booleans()):
        scores[0, data.draw(st.integers(0, n - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    after = None
    if data.draw(st.booleans()):
        rows = np.array(data.draw(st.lists(st.integers(-1, n), min_size=len(scores), max_size=len(scores))))
        after = After(np.full(len(scores), data.draw(st.sampled_from([0.0, 0.5, np.inf]))), rows)
    check(Stream(scores, usable, block_rows), scores, depth, after)
    check(ArraySimilarity(scores, usable, block_rows), scores, depth, after)


@pytest.mark.parametrize("kind", ["massive ties", "all equal", "rising", "falling", "random"])
@pytest.mark.parametrize("depth", [1, 7, 100, 1999])
def test_lists_where_filters_break(kind: str, depth: int) -> None:
    rng = np.random.default_rng(0)
    n = 2000
    scores = {
        "massive ties": rng.integers(0, 3, (3, n)) / 2 - 0.5,
        "all equal": np.zeros((3, n)),
        "rising": np.arange(3 * n).reshape(3, n) * 1e-3,
        "falling": -np.arange(3 * n).reshape(3, n) * 1e-3,
        "random": rng.standard_normal((3, n)),
    }[kind].astype(np.float32)
    check(Stream(scores, block_rows=64), scores, depth)


def test_float64_arrays_are_not_rounded() -> None:
    scores = 1.0 + np.arange(50)[None] * 1e-12  # all equal in float32
    np.testing.assert_array_equal(best(ArraySimilarity(scores), 3).rows, [[49, 48, 47]])
    np.testing.assert_array_equal(reduce_rows(ArraySimilarity(scores), "max").key, scores[0])


def test_streamed_features_equal_the_array_of_their_scores() -> None:
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((6, 32)).astype(np.float32)
    shards = [rng.standard_normal((rows, 32)).astype(np.float16) for rows in (400, 37)]
    features = FeatureSimilarity(queries, shards, block_rows=50)
    scores = np.concatenate([block.copy() for _, block in features.blocks()], axis=1)
    check(features, scores, 40)


@given(tied_scores(5, 12), st.integers(1, 5), st.data())
def test_reductions_are_numpys(scores: np.ndarray, block_rows: int, data: st.DataObject) -> None:
    m, n = scores.shape
    hole = data.draw(st.integers(0, n - 1))
    scores[data.draw(st.integers(0, m - 1)), hole] = np.nan
    rest = np.arange(n) != hole
    for similarity in (Stream(scores, block_rows=block_rows), ArraySimilarity(scores)):
        for how, expected in [("mean", scores.mean(0)), ("max", scores.max(0)), ("min", scores.min(0))]:
            reduced = reduce_rows(similarity, how)
            np.testing.assert_array_equal(reduced.choosable, rest)
            np.testing.assert_allclose(reduced.key[rest], expected[rest], rtol=1e-6, atol=1e-7)
            assert np.isnan(reduced.key[hole])
        winner = reduce_rows(similarity, "max").query
        assert winner is not None
        np.testing.assert_array_equal(winner[rest], scores.argmax(0)[rest])


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=8))
def test_means_of_float64_are_the_exact_ones_rounded_once(rows: list[list[float]]) -> None:
    from statistics import mean

    block = np.array(rows) + 0.1
    exact = [mean(block[:, j].tolist()) for j in range(3)]
    np.testing.assert_allclose(column_means(block), exact, rtol=3e-16, atol=1e-25)


@given(tied_scores(6, 10), st.data())
def test_groups_are_the_largest_of_their_queries(scores: np.ndarray, data: st.DataObject) -> None:
    m = len(scores)
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=m, max_size=m)))
    groups = np.unique(labels, return_inverse=True)[1]
    expected = np.stack([scores[groups == g].max(0) for g in range(groups.max() + 1)])
    for similarity in (Stream(scores), ArraySimilarity(scores)):
        table = grouped(similarity, groups)
        whole = np.concatenate([block.copy() for _, block in table.blocks()], axis=1)
        np.testing.assert_array_equal(whole, expected)
        np.testing.assert_array_equal(table.columns(np.array([0])), expected[:, :1])


def test_a_group_does_not_hide_a_score_that_is_not_finite() -> None:
    scores = np.array([[1.0, 2.0], [-np.inf, 0.0]], np.float32)
    assert best(grouped(Stream(scores), np.zeros(2, int)), 2).rows[0, :1].tolist() == [1]
    assert best(grouped(Stream(scores), np.zeros(2, int)), 2).length.tolist() == [1]
