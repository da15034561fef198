"""Random: uniform over rows, pairs and sources; follows ids; does not move when rows drop out."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

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
