"""What every selection of the table must do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.core.method import CARD_FIELDS
from tamis.core.vectors import unit
from tamis.selections import SELECTIONS, FeatureSimilarity, choose, choose_ranked
from tests.selections.draws import Stream, tied_scores

OF_SCORES = [method.name for method in SELECTIONS.values() if "similarity" in method.needs]
OF_THE_ORDER = {"cluster-middle"}  # spreads its rows over the order of the pool
OF_SMALL_POOLS: dict[str, dict[str, Any]] = {
    "cluster-quota": {"clusters": 4},
    "cluster-middle": {"clusters": 4, "per_cluster": 1000, "restarts": 1},
    "strict-random": {"exclude": []},
    "diversity-threshold": {"max_similarity": 1.0},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, OF_SMALL_POOLS.get(name, {})) for name in SELECTIONS),
    ("round-robin", {"duplicates": "lose-turn"}),
    *(("top-k", {"aggregate": how}) for how in ("max", "min", "normalized-mean")),
    ("top-k", {"tie_seed": 3}),
    ("knn-uniform", {"neighbours": 3, "alpha": 0.9}),
    ("knn-uniform", {"compatible": True}),
    ("transport", {"eps": 0.1, "m2": 0.0}),
    ("knn-kde", {"neighbours": 3, "alpha": 0.9}),
    ("coverage", {"shortlist": 4}),
    ("coverage", {"kernel": "euclidean"}),
    ("diversity-threshold", {"max_similarity": 0.3, "escalate": (0.6, 1.0)}),
    ("cluster-quota", {"clusters": 3, "quota": "proportional", "sample": 9}),
    ("knn-kde", {"compatible": True}),
]
every_variant = pytest.mark.parametrize(("name", "parameters"), VARIANTS)


def inputs(n: int) -> dict[str, Any]:
    """All a method of the table could need besides scores."""
    return {
        "sources": np.array(["a", "b", "c"], object)[np.arange(n) % 3],
        "lengths": np.arange(n) % 7,
        "reference": np.arange(n)[::-1],
        "vectors": np.random.default_rng(7).integers(-2, 3, (n, 4)) + np.array([0.5, 0, 0, 0]),
    }


@every_variant
@settings(max_examples=60, deadline=None)  # the first call of some imports a library
@given(scores=tied_scores(4, 14), data=st.data())
def test_distinct_exact_nested_and_never_an_unusable_row(
    name: str, parameters: dict[str, Any], scores: np.ndarray, data: st.DataObject
) -> None:
    n = scores.shape[1]
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    scores[0, data.draw(st.integers(0, n - 1))] = data.draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    rows = np.flatnonzero(usable & np.isfinite(scores).all(axis=0))
    seed = data.draw(st.integers(0, 3))
    common = {**inputs(n), **parameters, "usable": usable, "seed": seed}
    whole = choose(name, scores, len(rows), **common)
    assert whole.dtype == np.int64
    assert sorted(whole) == rows.tolist()
    budget = data.draw(st.integers(0, len(rows)))
    if SELECTIONS[name].nested:
        np.testing.assert_array_equal(choose(name, scores, budget, **common), whole[:budget])
    assert len(
        choose(name, scores, n + 1, allow_underflow=True, **common | {"reference": np.zeros(n + 1, int)})
    ) == len(rows)


@every_variant
def test_columns_fit_and_the_same_seed_gives_the_same_answer(name: str, parameters: dict[str, Any]) -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, (4, 60)).astype(np.float32)
    common = {**inputs(60), **parameters}
    first = choose_ranked(name, scores, 25, seed=5, **common)
    again = choose_ranked(name, scores, 25, seed=5, **common)
    for column, dtype in (
        ("positions", np.int64),
        ("gain", np.float32),
        ("query", np.int32),
        ("task", np.int32),
    ):
        values = getattr(first, column)
        assert values.dtype == dtype and values.shape == (25,)
        np.testing.assert_array_equal(values, getattr(again, column))
    other = choose(name, scores, 25, seed=6, **common)
    assert (other.tolist() != first.positions.tolist()) == SELECTIONS[name].seeded


@every_variant
@given(scores=tied_scores(4, 14), block_rows=st.integers(1, 15))
def test_streaming_changes_nothing(
    name: str, parameters: dict[str, Any], scores: np.ndarray, block_rows: int
) -> None:
    n = scores.shape[1]
    common = {**inputs(n), **parameters}
    whole = choose_ranked(name, scores, n, **common)
    streamed = choose_ranked(name, Stream(scores, block_rows=block_rows), n, **common)
    np.testing.assert_array_equal(streamed.positions, whole.positions)
    np.testing.assert_array_equal(streamed.gain, whole.gain)
    np.testing.assert_array_equal(streamed.query, whole.query)


@every_variant
def test_shards_on_disk_equal_the_array(name: str, parameters: dict[str, Any], tmp_path) -> None:
    rng = np.random.default_rng(1)
    queries = unit(rng.standard_normal((5, 16))).astype(np.float32)
    shards = [unit(rng.standard_normal((rows, 16))).astype(np.float16) for rows in (90, 33, 77)]
    for number, shard in enumerate(shards):
        np.save(tmp_path / f"{number}.npy", shard)
    stored = FeatureSimilarity(queries, [tmp_path / f"{number}.npy" for number in range(3)], block_rows=20)
    scores = np.concatenate([block.copy() for _, block in stored.blocks()], axis=1)
    common = {**inputs(200), **parameters}
    np.testing.assert_array_equal(choose(name, stored, 120, **common), choose(name, scores, 120, **common))


@pytest.mark.parametrize("name", [name for name in OF_SCORES if name not in OF_THE_ORDER])
@given(seed=st.integers(0, 10_000))
def test_shuffling_the_pool_shuffles_the_answer(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(5 * 30).reshape(5, 30) / 160  # distinct
    scores += 1e-5 * rng.random(30)  # and distinct means
    order = rng.permutation(30)
    vectors = rng.standard_normal((30, 4))
    common = {"allow_underflow": name == "diversity-threshold"}
    ids = np.array([f"row-{i}" for i in range(30)])  # a draw follows the ids
    shuffled = choose(name, scores[:, order], 20, vectors=vectors[order], ids=ids[order], **common)
    np.testing.assert_array_equal(
        order[shuffled], choose(name, scores, 20, vectors=vectors, ids=ids, **common)
    )


@pytest.mark.parametrize("parameters", [p for name, p in VARIANTS if name == "top-k" and "tie_seed" not in p])
@given(scores=tied_scores(1, 14))
def test_with_one_query_all_are_the_same(parameters: dict[str, Any], scores: np.ndarray) -> None:
    n = scores.shape[1]
    expected = sorted(range(n), key=lambda j: (-scores[0, j], j))
    for given_scores in (scores, scores[0]):
        assert choose("top-k", given_scores, n, **parameters).tolist() == expected
        assert choose("doubly-greedy", given_scores, n).tolist() == expected
        for duplicates in ("skip", "lose-turn", "as-printed"):
            assert choose("round-robin", given_scores, n, duplicates=duplicates).tolist() == expected


@pytest.mark.parametrize("name", list(SELECTIONS))
def test_a_budget_of_nothing_is_nothing(name: str) -> None:
    assert choose(name, np.ones((2, 4)), 0, **inputs(4), **OF_SMALL_POOLS.get(name, {})).tolist() == []


@pytest.mark.parametrize("name", list(SELECTIONS))
def test_cards_are_complete(name: str) -> None:
    method = SELECTIONS[name]
    assert set(method.card) == set(CARD_FIELDS)
    assert (method.name == name and method.summary.endswith(".")) or ":" in method.summary
