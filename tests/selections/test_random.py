"""Random: uniform over rows, pairs and sources; follows ids; does not move when rows drop out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from tamis.core.errors import RequestError
from tamis.selections import choose


def chi_square_p(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


def test_sources_are_drawn_by_their_size() -> None:
    source = np.repeat([0, 1, 2], [700, 250, 50])
    counts = np.zeros(3)
    for seed in range(400):
        counts += np.bincount(source[choose("random", None, 100, seed=seed, sources=source)], minlength=3)
    assert chi_square_p(counts, np.array([28_000.0, 10_000, 2_000])) > 1e-3


def test_first_rows_and_pairs_are_uniform() -> None:
    usable = np.ones(6, bool)
    draws = np.array([choose("random", None, 2, seed=seed, usable=usable) for seed in range(6000)])
    assert chi_square_p(np.bincount(draws[:, 0], minlength=6), np.full(6, 1000.0)) > 1e-3
    pairs = np.bincount(draws[:, 0] * 6 + draws[:, 1], minlength=36)[~np.eye(6, dtype=bool).ravel()]
    assert chi_square_p(pairs, np.full(30, 200.0)) > 1e-3


def test_seeds_are_independent() -> None:
    overlap = [
        len(
            np.intersect1d(
                *(choose("random", None, 100, seed=s, cost=None, ids=np.arange(1000)) for s in (a, a + 1))
            )
        )
        for a in range(0, 60, 2)
    ]
    assert 8 < np.mean(overlap) < 12  # expectation 10, standard deviation of this mean 0.5


def test_the_draw_follows_the_ids_and_drops_only_what_is_unusable() -> None:
    ids = np.array([f"{i:032x}" for i in range(50)])
    drawn = choose("random", None, 50, ids=ids, seed=4)
    shuffled = np.random.default_rng(0).permutation(50)
    again = choose("random", None, 50, ids=ids[shuffled], seed=4)
    np.testing.assert_array_equal(shuffled[again], drawn)
    usable = np.ones(50, bool)
    usable[drawn[3]] = False
    np.testing.assert_array_equal(
        choose("random", None, 49, ids=ids, usable=usable, seed=4), np.delete(drawn, 3)
    )


def test_t9_at_most_50_rows_of_a_task() -> None:
    sources = np.repeat(["large", "fifty", "small"], [120, 50, 7])
    draws = {
        seed: choose("random", None, 107, sources=sources, seed=seed, most_per_source=50) for seed in (0, 1)
    }
    for rows in draws.values():
        assert [int((sources[rows] == name).sum()) for name in ("large", "fifty", "small")] == [50, 50, 7]
        assert len(set(rows)) == 107
    assert set(draws[0]) != set(draws[1])  # other rows of the large one
    plain = choose("random", None, 177, sources=sources, seed=0)
    of_large = [row for row in plain if sources[row] == "large"]
    assert [row for row in draws[0] if sources[row] == "large"] == of_large[:50]
    assert (
        draws[0][:20].tolist()
        == choose("random", None, 20, sources=sources, seed=0, most_per_source=50).tolist()
    )
    with pytest.raises(RequestError, match="can choose 107 of the 108"):
        choose("random", None, 108, sources=sources, most_per_source=50)


def test_the_cap_counts_only_rows_that_can_be_drawn() -> None:
    sources, usable = np.repeat([0, 1], [10, 4]), np.ones(14, bool)
    usable[:7] = False
    rows = choose("random", None, 5, sources=sources, usable=usable, most_per_source=3, allow_underflow=True)
    assert np.bincount(sources[rows]).tolist() in ([2, 3], [3, 2])
    with pytest.raises(RequestError, match="needs sources="):
        choose("random", None, 2, usable=usable, most_per_source=3)
    with pytest.raises(RequestError, match="most_per_source=0"):
        choose("random", None, 2, sources=sources, most_per_source=0)
