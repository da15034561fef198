"""Similarities: stream, array and plain product agree; blocks do not move; bad input is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from tamis.core.errors import RequestError
from tamis.core.similarity import (
    ArraySimilarity,
    FeatureSimilarity,
    Similarity,
    SparseSimilarity,
    finite_columns,
    widen,
)


def assembled(similarity: Similarity) -> np.ndarray:
    whole = np.full((similarity.m, similarity.n), np.nan)
    for start, block in similarity.blocks():
        whole[:, start : start + block.shape[1]] = block
    return whole


def test_every_half_widens_as_numpy_does() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    out = np.empty(halves.shape, np.float32)
    widen(halves, out)
    np.testing.assert_array_equal(out, halves.astype(np.float32))  # NaN, infinities, subnormals, both zeros
    assert (np.signbit(out) == np.signbit(halves.astype(np.float32)))[~np.isnan(out)].all()


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 65504.0, 6e-8])
def test_one_odd_number_in_a_piece_widens_right(odd: float) -> None:
    halves = np.ones((300, 4), np.float16)
    halves[270, 2] = odd
    out = np.empty(halves.shape, np.float32)
    widen(halves, out)
    np.testing.assert_array_equal(out, halves.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("block_rows", [1, 5, 64, None])
def test_features_give_the_inner_products(dtype: type, block_rows: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((7, 16)).astype(np.float32)
    parts = [rng.standard_normal((rows, 16)).astype(dtype) for rows in (13, 0, 30)]
    np.save(tmp_path / "part.npy", parts[2])
    mapped = np.load(tmp_path / "part.npy", mmap_mode="r")
    expected = queries.astype(float) @ np.concatenate(parts).astype(float).T
    for last in (parts[2], mapped, tmp_path / "part.npy"):
        similarity = FeatureSimilarity(queries, [*parts[:2], last], block_rows=block_rows)
        np.testing.assert_allclose(assembled(similarity), expected, atol=2e-5)
        where = np.array([40, 3, 12, 13, 3])
        np.testing.assert_allclose(similarity.columns(where), expected[:, where], atol=2e-5)


def test_a_second_pass_and_a_smaller_pool_see_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    shards = [rng.standard_normal((50, 24)).astype(np.float16) for _ in range(3)]
    queries = rng.standard_normal((5, 24)).astype(np.float32)
    whole = FeatureSimilarity(queries, shards, block_rows=16)
    first = assembled(whole)
    np.testing.assert_array_equal(first, assembled(whole))
    np.testing.assert_array_equal(
        first[:, :100], assembled(FeatureSimilarity(queries, shards[:2], block_rows=16))
    )
    mask = np.zeros(150, bool)
    mask[60] = True
    seen = assembled(whole.restrict(mask))
    assert np.isnan(seen).sum() == 5 * (150 - 16)  # only the block that holds row 60 is read
    np.testing.assert_array_equal(seen[:, 60], first[:, 60])
    assert whole.usable.all()  # restricting leaves the original as it was


def test_sparse_features_give_the_inner_products() -> None:
    rng = np.random.default_rng(2)
    shards = [sparse.random_array((rows, 40), density=0.2, rng=rng, format="csr") for rows in (11, 20)]
    queries = rng.standard_normal((4, 40))
    expected = np.concatenate([queries @ shard.toarray().T for shard in shards], axis=1)
    for given in (queries, sparse.csr_array(queries)):
        similarity = SparseSimilarity(given, shards, block_rows=8)
        np.testing.assert_allclose(assembled(similarity), expected, atol=1e-5)
        np.testing.assert_allclose(similarity.columns(np.array([30, 2])), expected[:, [30, 2]], atol=1e-5)


def test_array_keeps_float64_and_marks_rows_that_are_not_finite() -> None:
    scores = np.ones((3, 6))
    scores[1, 2], scores[0, 4], scores[2, 5] = np.nan, np.inf, np.nan
    usable = np.array([True, False, True, True, True, False])
    similarity = ArraySimilarity(scores, usable, block_rows=4)
    np.testing.assert_array_equal(similarity.usable, [True, False, False, True, False, False])
    assert similarity.nan_count == 2  # row 5 was unusable anyway
    assert next(similarity.blocks())[1].dtype == np.float64
    assert next(ArraySimilarity(np.arange(3)).blocks())[1].tolist() == [[0, 1, 2]]


def test_large_finite_scores_are_finite() -> None:
    block = np.full((4, 3), 3e38, np.float32)  # whose column sums overflow
    block[2, 1] = -np.inf
    np.testing.assert_array_equal(finite_columns(block), [True, False, True])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ArraySimilarity(np.zeros((2, 3, 4))), r"\(2, 3, 4\)"),
        (lambda: ArraySimilarity(np.array(["a"])), "numbers"),
        (lambda: ArraySimilarity(np.zeros((2, 3)), np.ones(2, bool)), r"\(3,\) bool"),
        (lambda: ArraySimilarity(np.zeros((2, 3)), np.ones(3)), "bool"),
        (lambda: FeatureSimilarity(np.zeros(3), []), "queries"),
        (lambda: FeatureSimilarity(np.zeros((1, 3)), [np.zeros((2, 4), np.float32)]), "shard 0"),
        (lambda: FeatureSimilarity(np.zeros((1, 3)), [np.zeros((2, 3))]), "float64"),
        (lambda: SparseSimilarity(np.zeros((1, 3)), [np.zeros((2, 3))]), "CSR"),
    ],
)
def test_wrong_input_is_refused(build, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build()
