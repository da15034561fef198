"""gumbel-top-k: its probabilities by exact enumeration, and what a seed and a row's id fix."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from tamis.selections import choose, choose_ranked
from tamis.selections.gumbel_top_k import gumbel


def order_probabilities(weights: list[float], k: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered draw of `k` without replacement, each in proportion to its weight."""
    found = {}
    for order in permutations(range(len(weights)), k):
        left, probability = sum(weights), 1.0
        for row in order:
            probability *= weights[row] / left
            left -= weights[row]
        found[order] = probability
    return found


def test_draws_are_in_proportion_to_the_weights() -> None:
    weights = [1.0, 2.0, 3.0, 6.0]
    draws = 6000
    wanted = order_probabilities(weights, 2)
    assert sum(wanted.values()) == 1.0 or abs(sum(wanted.values()) - 1) < 1e-12
    counts = dict.fromkeys(wanted, 0)
    for seed in range(draws):
        counts[tuple(choose("gumbel-top-k", np.log(weights), 2, seed=seed).tolist())] += 1
    # Chi-square with 11 degrees of freedom: beyond 31.3 once in a thousand.
    distance = sum((counts[key] - draws * p) ** 2 / (draws * p) for key, p in wanted.items())
    assert distance < 31.3


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    scores = np.random.default_rng(0).normal(0, 2, 50)
    np.testing.assert_array_equal(
        choose("gumbel-top-k", scores, 20, seed=1), choose("gumbel-top-k", scores + 8.0, 20, seed=1)
    )


def test_the_draw_follows_the_ids_whatever_their_order() -> None:
    rng = np.random.default_rng(1)
    scores, ids = rng.normal(0, 1, 60), np.array([f"row-{i}" for i in range(60)])
    order = rng.permutation(60)
    first = choose("gumbel-top-k", scores, 15, ids=ids, seed=2)
    moved = choose("gumbel-top-k", scores[order], 15, ids=ids[order], seed=2)
    assert ids[first].tolist() == ids[order][moved].tolist()
    assert first.tolist() != choose("gumbel-top-k", scores, 15, ids=ids, seed=3).tolist()


def test_gains_are_the_noisy_scores_and_far_scores_are_top_k() -> None:
    scores = np.array([0.0, 100.0, 50.0, -100.0])
    choice = choose_ranked("gumbel-top-k", scores, 3, seed=4)
    assert choice.positions.tolist() == [1, 2, 0] and (choice.query == -1).all()
    np.testing.assert_allclose(choice.gain, (scores + gumbel(4, 4))[choice.positions], rtol=1e-6)


def test_numbers_are_standard_gumbel_and_finite() -> None:
    numbers = gumbel(200_000, 0)
    assert np.isfinite(numbers).all()
    # Mean Euler's constant, variance pi^2 / 6; four standard errors.
    assert abs(numbers.mean() - 0.5772157) < 4 * np.sqrt(1.645 / 200_000)
    assert abs(numbers.var() - 1.644934) < 0.04
