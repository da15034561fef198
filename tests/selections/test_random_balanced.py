"""Balanced random: the counts worked by hand, every prefix balanced, uniform inside a source."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tamis.selections import choose
from tamis.selections._order import codes, level_quotas
from tests.selections.test_random import chi_square_p


def test_b1() -> None:
    sources = np.array(list("AAAAABCCC"))
    rows = choose("random-balanced", None, 6, sources=sources)
    assert sources[rows].tolist() == list("ABCACA")


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=25), st.integers(0, 3), st.data())
def test_every_prefix_has_the_water_filling_counts(labels: list[str], seed: int, data: st.DataObject) -> None:
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    sources = np.array(labels, object)
    rows = choose("random-balanced", None, usable.sum(), sources=sources, seed=seed, usable=usable)
    numbers, names = codes(sources)
    sizes = np.bincount(numbers[usable], minlength=len(names))
    for budget in range(len(rows) + 1):
        counts = np.bincount(numbers[rows[:budget]], minlength=len(names))
        np.testing.assert_array_equal(counts, level_quotas(sizes, budget))


def test_inside_a_source_the_draw_is_uniform() -> None:
    sources = np.array(["a"] * 10 + ["b"] * 3)
    counts = np.zeros(10)
    for seed in range(3000):
        rows = choose("random-balanced", None, 6, sources=sources, seed=seed)
        counts += np.bincount(rows[rows < 10], minlength=10)
    assert (
        chi_square_p(counts / 0.7, np.full(10, 900 / 0.7)) > 1e-3
    )  # without replacement: variance × (1 - 3/10)


def test_a_source_is_shuffled_by_its_own_name() -> None:
    alone = choose("random-balanced", None, 8, sources=np.array(["b"] * 8), seed=1)
    beside = choose("random-balanced", None, 10, sources=np.array(["a"] * 2 + ["b"] * 8), seed=1)
    np.testing.assert_array_equal(beside[beside >= 2] - 2, alone)
    assert choose("random-balanced", None, 8, sources=np.array(["c"] * 8), seed=1).tolist() != alone.tolist()
