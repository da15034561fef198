"""Vectors by position: dense, sparse and n-gram ones give the same rows as the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from tamis.core.errors import RequestError
from tamis.core.similarity import FeatureSimilarity, SparseSimilarity
from tamis.core.vectors import DenseVectors, Vectors, products, unit, vectors_of

ORDER = np.array([9, 0, 4, 4, 3, 8])


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)


def test_dense_rows_come_in_the_order_asked_for(matrix: np.ndarray, tmp_path) -> None:
    np.save(tmp_path / "b.npy", matrix[4:].astype(np.float16))
    found = DenseVectors([matrix[:4], tmp_path / "b.npy"])
    assert (found.n, found.d) == (10, 5)
    expected = np.concatenate([matrix[:4], matrix[4:].astype(np.float16).astype(np.float32)])
    np.testing.assert_array_equal(found.take(ORDER), expected[ORDER])
    assert found.take(np.zeros(0, np.int64)).shape == (0, 5)


def test_sparse_rows_are_the_dense_ones(matrix: np.ndarray) -> None:
    sparse = np.where(matrix > 0, matrix, 0)
    similarity = SparseSimilarity(csr_array(sparse[:2]), [csr_array(sparse[:3]), csr_array(sparse[3:])])
    found = similarity.vectors
    assert isinstance(found, Vectors)
    np.testing.assert_array_equal(found.take(ORDER).toarray(), sparse[ORDER])
    assert found.take(np.zeros(0, np.int64)).shape == (0, 5)
    np.testing.assert_allclose(unit(found.take(ORDER)).toarray(), unit(sparse[ORDER]), atol=1e-6)
    np.testing.assert_allclose(
        products(found.take(ORDER), found.take(ORDER)), sparse[ORDER] @ sparse[ORDER].T, atol=1e-6
    )


def test_a_row_of_zeros_stays_zero() -> None:
    np.testing.assert_array_equal(unit(np.zeros((1, 3), np.float32)), np.zeros((1, 3)))


def test_a_similarity_of_features_gives_its_vectors(matrix: np.ndarray) -> None:
    found = FeatureSimilarity(matrix[:2], [matrix]).vectors
    np.testing.assert_array_equal(found.take(ORDER), matrix[ORDER])


def test_an_array_becomes_vectors_and_nothing_stays_nothing(matrix: np.ndarray) -> None:
    assert vectors_of(None) is None
    found = vectors_of(matrix.astype(np.float64))
    assert found is not None and found.take(ORDER).dtype == np.float32
    with pytest.raises(RequestError, match=r"\(n, d\)"):
        vectors_of(np.arange(3))
