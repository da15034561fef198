"""Sums of similarities and joined vectors against plain arrays: blocks, columns, parts of some rows only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis.core.similarity import FeatureSimilarity, Similarity
from tamis.core.summed import JoinedVectors, Part, SummedSimilarity
from tamis.core.vectors import Vectors

N, M = 41, 3
PLACES = np.array([0, 3, 4, 17, 18, 19, 30, 40])


class Case:
    """A first part of all rows, one of `PLACES` alone, one more of all rows; and the arrays they are of."""

    def __init__(self, folder: Path, dtype: str = "float32", block_rows: int = 7) -> None:
        draw = np.random.default_rng(0)
        self.parts, self.dense, self.rows = [], [], []
        for k, (weight, places) in enumerate([(0.5, None), (0.3, PLACES), (0.2, None)]):
            count = N if places is None else len(places)
            queries, rows = draw.normal(size=(M, 5)), draw.normal(size=(count, 5)).astype(dtype)
            shards = []
            for number, shard in enumerate(np.split(rows, [count // 3, count // 2])):
                shards.append(folder / f"{k}-{number}.npy")
                np.save(shards[-1], shard)
            similarity = FeatureSimilarity(queries, shards, block_rows=block_rows)
            self.parts.append(Part(weight, similarity, places))
            whole, vectors = np.zeros((M, N)), np.zeros((N, 5))
            where = slice(None) if places is None else places
            vectors[where] = rows
            whole[:, where] = queries.astype(np.float32) @ rows.T.astype(float)
            self.dense.append(weight * whole)
            self.rows.append(weight**0.5 * vectors)

    def summed(self, *numbers: int, usable: Any = None) -> SummedSimilarity:
        return SummedSimilarity([self.parts[i] for i in numbers], usable)


def whole(similarity: Any) -> np.ndarray:
    """All blocks put together; NaN where none came."""
    found = np.full((similarity.m, similarity.n), np.nan)
    for start, block in similarity.blocks():
        assert np.isnan(found[:, start : start + block.shape[1]]).all()
        found[:, start : start + block.shape[1]] = block
    return found


@pytest.mark.parametrize("block_rows", [1, 4, 7, 1000])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("numbers", [(0,), (0, 2), (0, 1), (0, 1, 2)])
def test_blocks_and_columns_are_the_weighted_sum(
    tmp_path: Path, block_rows: int, dtype: str, numbers: tuple[int, ...]
) -> None:
    case = Case(tmp_path, dtype, block_rows)
    found = case.summed(*numbers)
    assert isinstance(found, Similarity) and (found.m, found.n) == (M, N)
    wanted = sum(case.dense[i] for i in numbers)
    usable = np.isin(np.arange(N), PLACES) if 1 in numbers else np.ones(N, bool)
    np.testing.assert_array_equal(found.usable, usable)
    blocks = whole(found)
    np.testing.assert_allclose(blocks[:, usable], wanted[:, usable], atol=1e-5)
    positions = np.array([30, 0, 40, 17, 3, 30, 2])
    np.testing.assert_allclose(found.columns(positions), wanted[:, positions], atol=1e-5)
    assert found.columns(np.zeros(0, np.int64)).shape == (M, 0)


def test_restricted_it_leaves_blocks_out_and_nothing_else_changes(tmp_path: Path) -> None:
    case = Case(tmp_path, block_rows=4)
    found = case.summed(0, 2, usable=np.arange(N) != 5)
    mask = (np.arange(N) < 6) | (np.arange(N) > 35)
    fewer = found.restrict(mask)
    np.testing.assert_array_equal(fewer.usable, mask & (np.arange(N) != 5))
    assert found.usable.sum() == N - 1
    blocks = whole(fewer)
    assert np.isnan(blocks).any() and np.isfinite(blocks[:, mask]).all()
    np.testing.assert_allclose(blocks[:, mask], (case.dense[0] + case.dense[2])[:, mask], atol=1e-5)


def test_a_block_stays_what_it_was_when_the_next_is_asked_for(tmp_path: Path) -> None:
    case = Case(tmp_path)
    kept = [(start, block, block.copy()) for start, block in case.summed(0, 2).blocks()]
    for _, block, copy in kept:
        np.testing.assert_array_equal(block, copy)


def test_parts_whose_features_have_other_widths_are_read_in_the_same_blocks() -> None:
    # Ranks may differ between adapters of one's own, and with them the rows that fill a block.
    draw = np.random.default_rng(1)
    pairs = [(draw.normal(size=(2, d)).astype("f4"), draw.normal(size=(30, d)).astype("f4")) for d in (4, 9)]
    similarities = [
        FeatureSimilarity(query, [rows[:13], rows[13:]], block_rows=count)
        for (query, rows), count in zip(pairs, (11, 4), strict=True)
    ]
    found = whole(SummedSimilarity([Part(0.5, one) for one in similarities]))
    wanted = 0.5 * sum(query @ rows.T for query, rows in pairs)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert [one.block_rows for one in similarities] == [11, 4]


def test_the_first_part_is_of_the_whole_pool_and_all_have_the_same_queries(tmp_path: Path) -> None:
    case = Case(tmp_path)
    with pytest.raises(ValueError, match="first part must be of the whole pool"):
        case.summed(1, 0)
    other = FeatureSimilarity(np.ones((M + 1, 5)), [np.ones((N, 5), np.float32)])
    with pytest.raises(ValueError, match="all of the same queries"):
        SummedSimilarity([case.parts[0], Part(1.0, other)])


def test_joined_vectors_have_the_sums_as_products(tmp_path: Path) -> None:
    case = Case(tmp_path)
    vectors = case.summed(0, 1, 2).vectors
    assert isinstance(vectors, Vectors) and (vectors.n, vectors.d) == (N, 15)
    positions = np.array([40, 1, 3, 18, 0, 25])
    found = vectors.take(positions)
    np.testing.assert_allclose(found, np.concatenate(case.rows, axis=1)[positions], atol=1e-6)
    wanted = sum(rows @ rows.T for rows in case.rows)
    np.testing.assert_allclose(found @ found.T, wanted[np.ix_(positions, positions)], atol=1e-5)


def test_a_part_without_weight_takes_no_room_and_without_vectors_there_are_none(tmp_path: Path) -> None:
    case = Case(tmp_path)
    parts = [case.parts[0], Part(0.0, case.parts[2].similarity)]
    assert JoinedVectors(parts).d == 5
    assert SummedSimilarity(parts, keeps_vectors=False).vectors is None
