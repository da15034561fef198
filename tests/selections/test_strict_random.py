"""Strict random: the complement of given subsets, and what happens where little of it is left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.core.errors import RequestError
from tamis.selections import choose, choose_ranked

IDS = np.array([f"row {i}" for i in range(40)])


@given(excluded=st.lists(st.integers(0, 39), max_size=30), seed=st.integers(0, 5), data=st.data())
def test_it_is_the_random_draw_with_the_excluded_rows_passed_over(
    excluded: list[int], seed: int, data: st.DataObject
) -> None:
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=40, max_size=40)))
    common = {"ids": IDS, "usable": usable, "seed": seed, "allow_underflow": True}
    left = [row for row in choose("random", None, 40, **common) if row not in excluded]
    found = choose_ranked("strict-random", None, 40, exclude=excluded, **common)
    assert found.positions.tolist() == left
    assert found.notes["usable_rows"] == len(left)
    assert found.notes["excluded_rows"] == int(usable[list(set(excluded))].sum())
    assert found.notes["unusable_count"] == int((~usable).sum())
    assert (
        choose("strict-random", None, len(left) // 2, exclude=excluded, **common).tolist()
        == (left[: len(left) // 2])
    )


def test_t18_ten_rows_and_three_subsets() -> None:
    union = [*{0, 1, 2}, *{2, 3}, *{4}]
    common = {"usable": np.ones(10, bool), "exclude": union}
    assert sorted(choose("strict-random", None, 5, **common)) == [5, 6, 7, 8, 9]
    with pytest.raises(RequestError, match=r"infeasible: .* 5 left, and 6 were asked for"):
        choose("strict-random", None, 6, **common)


@pytest.mark.parametrize(
    ("rows", "identical", "independent", "disjoint"),
    [(15_011, 5_011, 186, 0), (52_002, 42_002, 22_132, 12_002), (88_000, 78_000, 54_316, 48_000)],
)
def test_what_four_subsets_of_10000_leave(rows: int, identical: int, independent: int, disjoint: int) -> None:
    """The published table: what is left can be drawn, one row more is infeasible; independent on average."""
    usable = np.ones(rows, bool)

    def left(subsets: list[np.ndarray]) -> int:
        union = np.unique(np.concatenate(subsets))
        found = rows - len(union)
        assert len(choose("strict-random", None, found, usable=usable, exclude=union)) == found
        with pytest.raises(RequestError, match="infeasible"):
            choose("strict-random", None, found + 1, usable=usable, exclude=union)
        return found

    assert left([np.arange(10_000)] * 4) == identical
    drawn = left([choose("random", None, 10_000, usable=usable, seed=seed) for seed in range(4)])
    assert abs(drawn - independent) < 5 * np.sqrt(independent)
    if disjoint:
        assert left(list(np.arange(40_000).reshape(4, 10_000))) == disjoint


def test_too_few_rows_left_is_an_error_that_says_the_numbers() -> None:
    exclude = [*range(30), *range(10)]
    usable = np.arange(40) < 38
    with pytest.raises(RequestError) as caught:
        choose("strict-random", None, 9, exclude=exclude, ids=IDS, usable=usable)
    assert (
        "infeasible: of 40 rows in the pool 38 are usable, 30 of them excluded, 8 left, and 9 were asked for"
        in str(caught.value)
    )
    some = choose("strict-random", None, 9, exclude=exclude, ids=IDS, usable=usable, allow_underflow=True)
    assert sorted(some) == list(range(30, 38))
    assert len(choose("strict-random", None, 5, exclude=range(40), ids=IDS, allow_underflow=True)) == 0


def test_groups_share_what_is_left_in_each() -> None:
    within = np.repeat([0, 1], 20)
    found = choose("strict-random", None, 15, exclude=range(10), ids=IDS, within=within)
    assert np.bincount(within[found]).tolist() == [5, 10]


def test_it_needs_to_know_what_to_exclude_and_others_do_not_take_it() -> None:
    with pytest.raises(RequestError, match="strict-random needs exclude="):
        choose("strict-random", None, 5, ids=IDS)
    with pytest.raises(RequestError, match="random does not look at exclude="):
        choose("random", None, 5, ids=IDS, exclude=[1])
    for wrong in ([40], [-1], [0.5]):
        with pytest.raises(RequestError, match="exclude must be positions from 0 to 39"):
            choose("strict-random", None, 5, ids=IDS, exclude=wrong)
