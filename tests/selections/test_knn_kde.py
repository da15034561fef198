"""knn-kde: F2 by hand, the heap against the sort, the guards, densities against their definition, goldens."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from tamis.core.errors import RequestError
from tamis.core.similarity import ArraySimilarity, SparseSimilarity
from tamis.core.vectors import DenseVectors, SparseVectors
from tamis.selections import FeatureSimilarity, _pairs, choose, choose_ranked, knn_kde
from tamis.selections._best import best
from tamis.selections._pairs import UnitRows
from tamis.selections._tsds import masses, reach, reach_slow
from tamis.selections.knn_kde import Config, cost_estimate, densities, densities_slow, published_densities
from tests.conftest import Conformance, shared

ALPHAS = ("0.01", "0.5", "0.9", "0.99")
CASES = ("plain", "ties", "duplicates", "wide", "degenerate", "peaked")


def plane(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


POOL = plane(10, 12, 14, 30, 75, 120)
F2 = plane(0, 90) @ POOL.T
BY_HAND: dict[str, Any] = {"vectors": POOL, "sigma": 0.5, "alpha": 0.7, "c": 1.0, "neighbours": 6}


def mass_of(*args: Any, **parameters: Any) -> np.ndarray:
    choice = choose_ranked(*args, **parameters)
    mass = np.zeros(args[1].shape[1])
    mass[choice.positions] = choice.gain
    return mass


def clusters(seed: int, rows: int, d: int, copies: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Unit query (7, d) and pool (rows, d) vectors around a few centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((4, d))
    made = centres[rng.integers(0, 4, rows + 7)] + 0.3 * rng.standard_normal((rows + 7, d))
    made = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return made[:7], np.repeat(made[7:], copies, axis=0)[:rows]


def test_two_queries_by_hand() -> None:
    density, crowded = densities(UnitRows(DenseVectors([POOL]), np.arange(6)), 0.5, 6)
    np.testing.assert_allclose(density, [3.493180, 3.598705, 3.665733, 2.816087, 1, 1], atol=2e-6)
    assert crowded == 0
    lists = best(ArraySimilarity(F2), 6)
    found = reach(1 - lists.scores, density[lists.rows], 0.7, 1.0)
    assert found.s == pytest.approx(1.192049, abs=1e-6)
    assert found.used.tolist() == [3, 1] and found.stopped
    choice = choose_ranked("knn-kde", F2, 6, **BY_HAND)
    assert choice.positions.tolist() == [4, 3, 0, 1, 2, 5]
    np.testing.assert_allclose(
        choice.gain, [0.419446, 0.148946, 0.120076, 0.116555, 0.114423, 0.080554], atol=1e-6
    )
    assert choice.query.tolist() == [1, 0, 0, 0, 0, 1]


def test_without_a_kernel_every_density_is_one() -> None:
    mass = mass_of("knn-kde", F2, 6, **BY_HAND | {"sigma": 0.0, "alpha": 0.75})
    np.testing.assert_allclose(mass, [0.25, 0.25, 0, 0, 0.25, 0.25], atol=1e-7)


@pytest.mark.parametrize("alpha", [0.7, 0.8, 0.9, 0.95])
def test_without_a_kernel_the_masses_are_those_of_knn_uniform(alpha: float) -> None:
    queries, pool = clusters(6, 300, 8)
    asked = {"alpha": alpha, "c": 0.5, "neighbours": 100}
    uniform = choose_ranked("knn-uniform", queries @ pool.T, 300, **asked)
    expected = np.zeros(300)
    expected[uniform.positions] = uniform.gain
    mass = mass_of("knn-kde", queries @ pool.T, 300, vectors=pool, sigma=0.0, **asked)
    np.testing.assert_allclose(mass, expected, atol=1e-8)
    assert 2 < 1 / (7 * mass[mass > 0].min()) < 99  # it stopped in between


@given(
    seed=st.integers(0, 10_000), alpha=st.sampled_from([0.01, 0.5, 0.9, 0.97, 0.99]), depth=st.integers(2, 12)
)
def test_the_sort_visits_what_the_heap_does(seed: int, alpha: float, depth: int) -> None:
    rng = np.random.default_rng(seed)
    distance = np.sort(rng.integers(0, 9, (5, depth)) / 8, axis=1)
    density = 1.0 + rng.integers(0, 4, (5, depth)) / 2  # so that many counts tie
    fast, slow = reach(distance, density, alpha, 0.4), reach_slow(distance, density, alpha, 0.4)
    assert (fast.s, fast.used.tolist(), fast.stopped) == (slow.s, slow.used.tolist(), slow.stopped)


@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0.01, 0.6, 0.9, 0.97]))
def test_a_query_gives_its_share_and_leaves_nothing_on_its_last_row(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    distance = np.sort(rng.random((6, 8)), axis=1)
    density = 1.0 + 5 * rng.random((6, 8))
    found = reach(distance, density, alpha, 0.4)
    mass = masses(density, found)
    np.testing.assert_allclose(mass.sum(axis=1), 1 / 6)
    assert (mass[:, -1] == 0).all()
    whole = 1 / (6 * found.s * density)
    for q, used in enumerate(found.used):
        if used < 7:  # the rank after the last used one is used in part
            np.testing.assert_allclose(mass[q, :used], whole[q, :used])
            assert mass[q, used] <= whole[q, used] + 1e-12
        else:
            ratio = mass[q, :7] / whole[q, :7]
            np.testing.assert_allclose(ratio, ratio[0])


def test_the_guard_takes_the_farthest_rows_from_the_top() -> None:
    queries, pool = clusters(0, 400, 16)
    scores = queries @ pool.T
    farthest = best(ArraySimilarity(scores), 40).rows[:, -1]
    asked = {"vectors": pool, "neighbours": 40}
    guarded = choose_ranked("knn-kde", scores, 7, **asked)
    published = choose_ranked("knn-kde", scores, 7, compatible=True, **asked)
    assert len(set(farthest) & set(published.positions)) >= 4
    assert not set(farthest) & set(guarded.positions)
    assert guarded.notes["exhausted"] == 7 and guarded.notes["stopped"] == 0


@pytest.mark.parametrize("most", [3, 20, 1000])
@pytest.mark.parametrize("sigma", [0.3, 0.75])
def test_densities_are_their_definition(most: int, sigma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = clusters(1, 150, 12)[1]
    expected = densities_slow(pool, sigma, most)
    for held, step in ((_pairs.HELD_BYTES, 64), (0, 17)):
        monkeypatch.setattr(_pairs, "HELD_BYTES", held)
        monkeypatch.setattr(_pairs.pair_blocks, "__defaults__", (step,))
        monkeypatch.setattr(knn_kde, "CROWDED_ENTRIES", 1000)
        rows = UnitRows(DenseVectors([pool * 3]), np.arange(150))
        found, crowded = densities(rows, sigma, most)
        np.testing.assert_allclose(found, expected, rtol=2e-5)
        assert (crowded > 0) == (most < 1000)
        np.testing.assert_allclose(published_densities(rows, sigma, most), expected, rtol=2e-5)
    sparse = UnitRows(SparseVectors([csr_array(pool)]), np.arange(150))
    np.testing.assert_allclose(densities(sparse, sigma, most)[0], expected, rtol=2e-5)


def test_a_copy_raises_a_density_by_one() -> None:
    pool = clusters(2, 60, 12)[1]
    with_copy = np.concatenate([pool, pool[:1]])
    alone = densities(UnitRows(DenseVectors([pool]), np.arange(60)), 0.75, 1000)[0]
    beside = densities(UnitRows(DenseVectors([with_copy]), np.arange(61)), 0.75, 1000)[0]
    assert beside[0] == pytest.approx(alone[0] + 1, abs=1e-5)


def test_neighbours_follow_the_budget_unless_given() -> None:
    config = Config()
    assert config.depth(10_000, 8, 200_000) == 5000  # the published setting
    assert config.depth(500, 500, 200_000) == 64
    assert config.depth(500, 500, 30) == 30
    assert Config(neighbours=70).depth(10_000, 8, 200_000) == 70
    assert Config(compatible=True).depth(10_000, 8, 200_000) == 5000
    assert Config(compatible=True).depth(10_000, 8, 3_000) == 300


def test_the_union_grows_until_it_holds_the_budget() -> None:
    pool = clusters(3, 1500, 8)[1]
    scores = np.tile(pool[:1] @ pool.T, (40, 1))  # forty queries with one list
    choice = choose_ranked("knn-kde", scores, 1000, vectors=pool)
    assert choice.notes["neighbours"] == 1000 and choice.notes["passes"] == 5 + 1
    # The last rank is never used, so that one row comes from beyond.
    assert choice.notes["beyond_neighbours"] == 1 and choice.query[-1] == -1


def test_rows_without_mass_follow_by_mean_similarity() -> None:
    choice = choose_ranked("knn-kde", F2, 6, **BY_HAND | {"neighbours": 2})
    left = sorted({0, 1, 2, 3, 4, 5} - {0, 4}, key=lambda j: -F2[:, j].mean())
    assert choice.positions.tolist() == [4, 0, *left]  # 4 and 0 have the same mass, 4 the larger mean
    assert choice.notes["beyond_neighbours"] == 4
    assert choice.query.tolist() == [1, 0, -1, -1, -1, -1] and (choice.gain[2:] == 0).all()


def test_given_neighbours_nest_and_take_a_budget_in_tokens() -> None:
    queries, pool = clusters(4, 200, 8)
    scores, tokens = queries @ pool.T, np.arange(200) % 9 + 1
    whole = choose("knn-kde", scores, 200, vectors=pool, neighbours=30)
    for budget in (1, 50, 150):
        np.testing.assert_array_equal(
            choose("knn-kde", scores, budget, vectors=pool, neighbours=30), whole[:budget]
        )
    spent = choose("knn-kde", scores, 300, vectors=pool, neighbours=30, cost=tokens)
    np.testing.assert_array_equal(spent, whole[: len(spent)])
    with pytest.raises(RequestError, match="budgets in rows only"):
        choose("knn-kde", scores, 300, vectors=pool, cost=tokens)


def test_sparse_and_dense_rows_give_one_answer() -> None:
    queries, pool = clusters(5, 120, 30)
    queries, pool = np.maximum(queries, 0), np.maximum(pool, 0)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    dense = FeatureSimilarity(queries, [pool])
    sparse = SparseSimilarity(csr_array(queries), [csr_array(pool)])
    np.testing.assert_array_equal(choose("knn-kde", sparse, 60), choose("knn-kde", dense, 60))


def test_parameters_outside_their_domain_are_refused() -> None:
    for wrong in ({"alpha": 1.0}, {"c": 0.0}, {"sigma": -1.0}, {"neighbours": 1}, {"kde_neighbours": 0}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            choose("knn-kde", F2, 2, vectors=POOL, **wrong)


def test_the_estimate_bounds_a_run() -> None:
    made = cost_estimate(500, 1_000_000, 1024, Config(), 10_000)
    assert made["neighbours"] == 80 and made["candidates"] == 40_000
    assert made["density_flops"] / made["pass_flops"] < 2
    published = cost_estimate(500, 5_800_000, 4 * 8192, Config(neighbours=5000), 10_000)
    assert published["candidates"] == 2_500_000
    assert published["density_flops"] == pytest.approx(2_500_000**2 * 4 * 8192)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("case", [*CASES, "rds"])
def test_the_published_code(case: str, alpha: str, conforms: Conformance) -> None:
    arrays = np.load(shared("golden/selection.npz"))
    if case == "rds":
        given = np.load(shared("golden/representations.npz"))
        scores, vectors = given["rds_similarity"], given["rds_pool"]
    else:
        scores, vectors = arrays[f"{case}.sim"], arrays[f"{case}.emb_pool"]
    described = json.loads(shared("golden/selection.json").read_text())[case]
    asked: dict[str, Any] = {"vectors": vectors, "alpha": float(alpha), "compatible": True}
    mass = mass_of("knn-kde", scores, scores.shape[1], **asked)
    recorded = arrays[f"{case}.knn_kde_probs_float64_a{alpha}"]
    conforms.close("`knn-kde`, masses in float64", mass, recorded, atol=2e-7)
    conforms.close("`knn-kde`, masses in float32", mass, arrays[f"{case}.knn_kde_probs_a{alpha}"], atol=2e-7)
    for budget, expected in described["ids"][f"dcml.knn_kde.float64.a{alpha}"].items():
        ours = choose("knn-kde", scores, int(budget), **asked)
        # Rows whose recorded masses differ by float32 noise of the densities may change places elsewhere.
        np.testing.assert_allclose(recorded[ours], recorded[expected], atol=1e-8, rtol=0)
        clear = np.abs(np.subtract.outer(recorded[expected], recorded)) > 1e-8
        alone = clear.sum(axis=1) == len(recorded) - 1
        np.testing.assert_array_equal(ours[alone], np.array(expected)[alone])
    found = described["knn"][f"kde_a{alpha}"] if "knn" in described else None
    if found is not None:
        lists = best(ArraySimilarity(scores), max(2, scores.shape[1] // 10))
        (_, _, _), facts = knn_kde.weigh(
            lists, DenseVectors([vectors]), Config(alpha=float(alpha), compatible=True), scores.shape[1]
        )
        assert facts["exhausted"] == sum(last == facts["neighbours"] - 2 for last in found["lastK"])


def test_two_checkpoints_are_one_longer_vector() -> None:
    arrays = np.load(shared("golden/selection.npz"))
    parts = [np.sqrt(w) * arrays[f"two_checkpoints.emb_pool_{i}"] for i, w in enumerate((0.7, 0.3))]
    mass = mass_of(
        "knn-kde", arrays["two_checkpoints.sim"], 200,
        vectors=np.concatenate(parts, axis=1), alpha=0.5, compatible=True,
    )  # fmt: skip
    np.testing.assert_allclose(mass, arrays["two_checkpoints.knn_kde_probs_a0.5"], atol=2e-7, rtol=0)


@pytest.mark.parametrize("sigma", [0.75, 0.0])
@pytest.mark.parametrize("alpha", [0.5, 0.9])
@pytest.mark.parametrize("case", CASES)
def test_the_published_first_code(case: str, alpha: float, sigma: float, conforms: Conformance) -> None:
    arrays = np.load(shared("golden/selection.npz"))
    pool = arrays[f"{case}.emb_pool"]
    mass = mass_of(
        "knn-kde", arrays[f"{case}.emb_query"] @ pool.T, 200,
        vectors=pool, alpha=alpha, sigma=sigma, distance="euclidean", compatible=True,
    )  # fmt: skip
    recorded = np.load(shared("golden/tsds.npz"))[f"{case}.probs_a{alpha}_sigma{sigma}"]
    conforms.close("`knn-kde`, masses of TSDS", mass, recorded, atol=2e-7)
