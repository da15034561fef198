"""Projections: the slow obvious matrix, unbiased inner products, and what must not change a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tamis.models import projections as module  # noqa: E402
from tamis.models.projections import (  # noqa: E402
    CountSketch,
    Rademacher,
    Slot,
    hashed,
    key_of,
    layout_of,
    projection,
    signs_of,
)

SHAPES = {"a.weight": (3, 5), "b.weight": (2, 4), "c.weight": (1, 1), "d.weight": (5, 6)}
LAYOUT = layout_of(SHAPES)
SIZE = sum(slot.size for slot in LAYOUT)
MASK = 2**64 - 1


def numbers(count: int, seed: int = 0) -> Any:
    return torch.tensor(np.random.default_rng(seed).normal(size=(count, SIZE)), dtype=torch.float32)


def projected(made: Any, rows: Any, layout: list[Slot] = LAYOUT) -> np.ndarray:
    out = torch.zeros(len(rows), made.dimensions)
    for slot in layout:
        made.add(out, slot, rows[:, slot.offset : slot.offset + slot.size])
    return out.numpy()


def splitmix(state: int) -> int:
    """As published, with whole numbers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def hashed_slow(key: np.uint64, counter: int) -> int:
    return splitmix((int(key) + (counter + 1) * 0x9E3779B97F4A7C15) & MASK)


def test_splitmix_known_answers() -> None:
    # The first numbers of splitmix64.c by Vigna with the seeds 0 and 1234567.
    zero = hashed(np.uint64(0), np.arange(3, dtype=np.uint64)).tolist()
    assert zero == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    seeded = hashed(np.uint64(1234567), np.arange(5, dtype=np.uint64)).tolist()
    assert seeded == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_signs_are_the_bits_of_the_hash_and_do_not_depend_on_where_one_starts() -> None:
    key = key_of(3, "count-sketch", "a.weight")
    slow = [1 if hashed_slow(key, i // 64) >> (i % 64) & 1 else -1 for i in range(300)]
    assert signs_of(key, 0, 300).tolist() == slow
    assert signs_of(key, 2, 100).tolist() == slow[128:228]
    long = signs_of(key, 0, 100_000).astype(float)
    assert abs(long.mean()) < 0.02 and abs((long[:-1] * long[1:]).mean()) < 0.02


def test_keys_are_of_seed_use_and_name() -> None:
    keys = {key_of(seed, use, name) for seed in (0, 1) for use in ("x", "y") for name in ("p", "q", "pq")}
    assert len(keys) == 12


def sketch_matrix(dimensions: int, seed: int) -> np.ndarray:
    """(SIZE, d): number i of block b goes to place (i + shift of b) mod d with its sign."""
    dense = np.zeros((SIZE, dimensions))
    for slot in LAYOUT:
        for number in range(slot.size):
            block, inside = divmod(number, dimensions)
            shift = hashed_slow(key_of(seed, "shift", slot.name), block) % dimensions
            word = hashed_slow(key_of(seed, "count-sketch", slot.name), number // 64)
            sign = 1 if word >> (number % 64) & 1 else -1
            dense[slot.offset + number, (inside + shift) % dimensions] += sign
    return dense


@pytest.mark.parametrize("dimensions", [1, 4, 7, 15, 30, 64, 1000])
def test_the_sketch_is_the_obvious_matrix(dimensions: int) -> None:
    rows = numbers(4)
    wanted = rows.numpy().astype(float) @ sketch_matrix(dimensions, 5)
    np.testing.assert_allclose(projected(CountSketch(dimensions, 5), rows), wanted, atol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 7, 64, 100])
def test_the_dense_one_is_signs_over_the_root_whatever_its_blocks(
    dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = numbers(4)
    words = -(-dimensions // 64)
    dense = np.zeros((SIZE, dimensions))
    for slot in LAYOUT:
        key = key_of(5, "rademacher", slot.name)
        for number in range(slot.size):
            for d in range(dimensions):
                bit = hashed_slow(key, number * words + d // 64) >> (d % 64) & 1
                dense[slot.offset + number, d] = (1 if bit else -1) / dimensions**0.5
    np.testing.assert_allclose(projected(Rademacher(dimensions, 5), rows), rows.numpy() @ dense, atol=1e-5)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 64 * words * 4)
    blocked = Rademacher(dimensions, 5)
    assert blocked.block == 4
    np.testing.assert_allclose(projected(blocked, rows), rows.numpy() @ dense, atol=1e-5)


@pytest.mark.parametrize("name", ["count-sketch", "rademacher"])
def test_inner_products_are_unbiased_with_the_variance_that_is_promised(name: str) -> None:
    dimensions, seeds = 16, 800
    pair = numbers(2, seed=3)
    pair[1] += 0.7 * pair[0]
    x, y = pair.numpy().astype(float)
    found = np.empty(seeds)
    for seed in range(seeds):
        a, b = projected(
            projection(name, LAYOUT, dimensions, seed, "cpu"), torch.tensor(np.stack([x, y])).float()
        )
        found[seed] = a.astype(float) @ b
    exact, bound = x @ y, ((x @ x) * (y @ y) + (x @ y) ** 2) / dimensions
    assert abs(found.mean() - exact) < 4 * (bound / seeds) ** 0.5
    assert 0.3 * bound < found.var() < 1.2 * bound


@pytest.mark.parametrize("name", ["count-sketch", "rademacher"])
def test_cosines_are_off_by_little_more_than_one_over_the_root(name: str) -> None:
    dimensions, size = 256, 6000
    layout = layout_of({"p": (40, 100), "q": (20, 100)})
    draw = np.random.default_rng(0)
    common = draw.normal(size=size)
    rows = torch.tensor(common + draw.normal(size=(60, size)) * 2, dtype=torch.float32)
    features = projected(projection(name, layout, dimensions, 0, "cpu"), rows, layout)

    def cosines(given: np.ndarray) -> np.ndarray:
        unit = given / np.linalg.norm(given, axis=1, keepdims=True)
        return (unit @ unit.T)[np.triu_indices(len(unit), 1)]

    exact = cosines(rows.numpy().astype(float))
    assert exact.mean() > 0.15
    error = np.sqrt(((cosines(features.astype(float)) - exact) ** 2).mean())
    assert error <= 1.25 / dimensions**0.5


@pytest.mark.parametrize("name", ["count-sketch", "rademacher", "none"])
def test_blocks_of_rows_and_the_order_of_parameters_change_nothing(name: str) -> None:
    rows = numbers(5)
    made = projection(name, LAYOUT, 8, 2, "cpu")
    whole = projected(made, rows)
    parts = [projected(made, rows[start : start + 2]) for start in (0, 2, 4)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    np.testing.assert_allclose(projected(made, rows, LAYOUT[::-1]), whole, atol=1e-5)
    fresh = projection(name, LAYOUT, 8, 2, "cpu")  # knows none of the signs yet
    np.testing.assert_array_equal(projected(fresh, rows), whole)


@pytest.mark.parametrize("name", ["count-sketch", "rademacher"])
def test_seed_and_names_change_the_features(name: str) -> None:
    rows = numbers(3)
    base = projected(projection(name, LAYOUT, 8, 0, "cpu"), rows)
    assert np.abs(projected(projection(name, LAYOUT, 8, 1, "cpu"), rows) - base).max() > 0.1
    renamed = layout_of({f"x.{name}": shape for name, shape in SHAPES.items()})
    other = projected(projection(name, renamed, 8, 0, "cpu"), rows, renamed)
    assert np.abs(other - base).max() > 0.1
    # A parameter's part follows from its own name: it is the same beside others.
    alone = layout_of({"d.weight": SHAPES["d.weight"]})
    last = LAYOUT[-1]
    part = projected(
        projection(name, alone, 8, 0, "cpu"), rows[:, last.offset : last.offset + last.size], alone
    )
    zeroed = rows.clone()
    zeroed[:, : last.offset] = 0
    np.testing.assert_allclose(projected(projection(name, LAYOUT, 8, 0, "cpu"), zeroed), part, atol=1e-6)


def test_none_keeps_all_numbers_in_the_order_of_the_layout() -> None:
    rows = numbers(3)
    made = projection("none", LAYOUT, 8, 0, "cpu")
    assert made.dimensions == SIZE
    np.testing.assert_array_equal(projected(made, rows), rows.numpy())
    assert [slot.offset for slot in LAYOUT] == [0, 15, 23, 24]
    assert projection("none", [], 8, 0, "cpu").dimensions == 0
