"""Hashes, rankings and shares."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tamis.selections._order import codes, hashed, level_quotas, proportional_turns, ranked


def test_hashes_depend_on_seed_salt_and_row() -> None:
    assert len(set(hashed(50_000, 0).tolist())) == 50_000
    assert (hashed(100, 0) != hashed(100, 1)).all() and (hashed(100, 0) != hashed(100, 0, "x")).all()
    np.testing.assert_array_equal(hashed(100, 3), hashed(200, 3)[:100])


def test_hashed_bits_are_balanced() -> None:
    bits = np.unpackbits(hashed(20_000, 5).view(np.uint8)).reshape(20_000, 64)
    # 64 binomials of 20,000: standard deviation 0.0035, so 0.018 is five of them.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.018
    assert np.abs((bits[1:] == bits[:-1]).mean(axis=0) - 0.5).max() < 0.018


def test_hash_by_id_follows_the_id() -> None:
    ids = np.array(["a", "b", "c", "d"])
    np.testing.assert_array_equal(hashed(4, 1, ids=ids)[[2, 0, 3]], hashed(3, 1, ids=ids[[2, 0, 3]]))


def test_ranking_breaks_ties_by_position_or_as_told() -> None:
    key, usable = np.array([0.0, 1.0, -0.0, np.nan, 1.0]), np.array([True, True, True, False, True])
    np.testing.assert_array_equal(ranked(key, usable, 9), [1, 4, 0, 2])
    np.testing.assert_array_equal(ranked(key, usable, 9, np.array([5, 4, 3, 2, 1])), [4, 1, 2, 0])


def test_codes_follow_first_appearance() -> None:
    numbers, names = codes(np.array(["b", "a", "b", "c"], object))
    assert numbers.tolist() == [0, 1, 0, 2] and names == ["b", "a", "c"]


def test_b1() -> None:
    np.testing.assert_array_equal(level_quotas(np.array([5, 1, 3]), 6), [3, 1, 2])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 40))
def test_level_quotas_are_what_visiting_in_turn_gives(sizes: list[int], budget: int) -> None:
    had = [0] * len(sizes)
    for _ in range(7):
        for group, size in enumerate(sizes):
            if had[group] < size and sum(had) < budget:
                had[group] += 1
    assert level_quotas(np.array(sizes), budget).tolist() == had


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.data())
def test_every_prefix_of_the_turns_is_within_one_of_proportional(
    sizes: list[int], data: st.DataObject
) -> None:
    total = sum(sizes)
    budget = data.draw(st.integers(0, total))
    turns = proportional_turns(np.array(sizes), budget)
    np.testing.assert_array_equal(turns, proportional_turns(np.array(sizes), total)[:budget])
    for h in range(budget + 1):
        had = np.bincount(turns[:h], minlength=len(sizes))
        for size, count in zip(sizes, had, strict=True):
            assert h * size // total <= count <= -(-h * size // total)
