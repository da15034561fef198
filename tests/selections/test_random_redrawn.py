"""The overlap rule of a study: T17, what two random subsets share, and where no draw can keep the rule."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.selections import choose, choose_ranked

NAME = "random-redrawn"


def ids(rows: int) -> np.ndarray:
    return np.arange(rows)


def test_t17_dolly_at_10000_is_infeasible_and_alpaca_never_fires() -> None:
    with pytest.raises(RequestError, match=r"infeasible: of 15011 .* at least 4989 \(49.9%\)"):
        choose(NAME, None, 10_000, usable=np.ones(15_011, bool), subsets=[np.arange(10_000)])
    overlaps = []
    for seed in range(20):
        fixed = choose("random", None, 10_000, usable=np.ones(52_002, bool), seed=1000 + seed)
        found = choose_ranked(
            NAME, None, 10_000, usable=np.ones(52_002, bool), seed=seed, subsets=[fixed, np.arange(5_000)]
        )
        assert found.notes["draws"] == 1
        overlaps.append(len(np.intersect1d(found.positions, fixed)) / 10_000)
    assert abs(np.mean(overlaps) - 0.1923) < 0.003


def test_at_half_it_is_redrawn_in_vain_and_says_what_to_expect() -> None:
    """The limit of the study on Dolly: above the least possible, 61 standard deviations below the mean."""
    with pytest.raises(RequestError, match=r"none of 5 draws .* share 66.6% on average"):
        choose(
            NAME, None, 10_000, usable=np.ones(15_011, bool), subsets=[np.arange(10_000)], max_overlap=0.5,
            draws=5,
        )  # fmt: skip


def test_without_subsets_or_when_the_rule_never_fires_it_is_random() -> None:
    for given in ({}, {"subsets": [[0, 1]], "max_overlap": 1.0}):
        assert (
            choose(NAME, None, 30, usable=np.ones(50, bool), seed=3, **given).tolist()
            == choose("random", None, 30, usable=np.ones(50, bool), seed=3).tolist()
        )


def test_a_draw_that_shares_too_many_is_not_taken() -> None:
    usable = np.ones(40, bool)
    usable[30:] = False
    seen = set()
    for seed in range(40):
        subsets = [np.arange(4), np.arange(10, 20)]
        found = choose_ranked(NAME, None, 10, usable=usable, seed=seed, subsets=subsets, max_overlap=0.25)
        positions = found.positions
        shares = [len(np.intersect1d(positions[: len(s)], s)) / len(s) for s in subsets]
        assert max(shares) <= 0.25 and found.notes["largest_overlap"] == max(shares)
        assert len(set(positions)) == 10 and usable[positions].all()
        seen.add(found.notes["draws"])
        first = choose("random", None, 10, usable=usable, seed=seed)
        assert (found.notes["draws"] == 1) == (first.tolist() == positions.tolist())
    assert len(seen) > 2


def test_what_it_is_given_is_checked() -> None:
    usable = np.ones(20, bool)
    with pytest.raises(RequestError, match="a subset has 6 rows, and 5 are drawn"):
        choose(NAME, None, 5, usable=usable, subsets=[range(6)])
    with pytest.raises(RequestError, match="positions from 0 to 19"):
        choose(NAME, None, 5, usable=usable, subsets=[[20]])
    for wrong in ({"max_overlap": 1.5}, {"draws": 0}):
        with pytest.raises(RequestError, match="expected"):
            choose(NAME, None, 5, usable=usable, **wrong)
