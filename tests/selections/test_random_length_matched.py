"""Length-matched random: classes match, nearest class when one is empty, uniform inside a class."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.selections import choose, choose_ranked
from tests.selections.test_random import chi_square_p

NAME = "random-length-matched"


def test_lengths_are_matched_one_by_one() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 5000)
    reference = np.argsort(-lengths)[100:600]  # a selection of long rows
    choice = choose_ranked(NAME, None, 500, lengths=lengths, reference=reference, seed=3, bins=50)
    assert choice.notes["length_fallbacks"] == 0
    assert np.sort(lengths)[-100 * 8 :].min() <= lengths[choice.positions].min()
    gap = np.abs(
        np.quantile(lengths[choice.positions], [0.25, 0.5, 0.75])
        / np.quantile(lengths[reference], [0.25, 0.5, 0.75])
        - 1
    )
    assert gap.max() < 0.05
    plain = choose("random", lengths, 500, seed=3)
    assert np.median(lengths[plain]) < 0.5 * np.median(lengths[reference])


def test_an_empty_class_gives_way_to_the_nearest_and_that_is_counted() -> None:
    lengths = np.array([1, 1, 5, 5, 9, 9])
    usable = np.array([True, True, True, False, True, True])
    choice = choose_ranked(NAME, None, 4, lengths=lengths, reference=[2, 3, 3, 3], usable=usable, bins=3)
    assert choice.positions[0] == 2 and set(choice.positions[1:3]) == {
        0,
        1,
    }  # the shorter of two that are as near
    assert choice.positions[3] in (4, 5)
    assert choice.notes["length_fallbacks"] == 3 and choice.notes["source_fallbacks"] == 0


def test_sources_are_matched_when_asked() -> None:
    rng = np.random.default_rng(1)
    lengths, sources = rng.integers(1, 100, 400), rng.choice(["a", "b"], 400)
    reference = np.flatnonzero(sources == "a")[:60]
    inputs = {"lengths": lengths, "reference": reference, "sources": sources, "bins": 4}
    assert set(sources[choose(NAME, None, 60, match_sources=True, **inputs)]) == {"a"}
    assert set(sources[choose(NAME, None, 60, **inputs)]) == {"a", "b"}
    usable = sources == "b"
    moved = choose_ranked(NAME, None, 60, match_sources=True, usable=usable, **inputs)
    assert moved.notes["source_fallbacks"] == 60


def test_inside_a_class_the_draw_is_uniform() -> None:
    lengths = np.array([1] * 8 + [50] * 8)
    counts = np.zeros(8)
    for seed in range(2000):
        rows = choose(NAME, None, 2, lengths=lengths, reference=[0, 3], seed=seed, bins=2)
        counts += np.bincount(rows, minlength=8)
    assert (
        chi_square_p(counts / 0.75, np.full(8, 500 / 0.75)) > 1e-3
    )  # without replacement: variance × (1 - 2/8)


def test_budgets_beyond_the_reference_and_missing_sources_are_refused() -> None:
    lengths = np.ones(10)
    with pytest.raises(RequestError, match="exceeds the 2 reference rows"):
        choose(NAME, None, 3, lengths=lengths, reference=[0, 1])
    with pytest.raises(RequestError, match="match_sources"):
        choose(NAME, None, 1, lengths=lengths, reference=[0, 1], match_sources=True)
    with pytest.raises(RequestError, match="bins"):
        choose(NAME, None, 1, lengths=lengths, reference=[0, 1], bins=0)
    with pytest.raises(RequestError, match="positions from 0 to 9"):
        choose(NAME, None, 1, lengths=lengths, reference=[10])
