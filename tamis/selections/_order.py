"""Orders and shares: seeded hashes of rows, rankings with explicit ties, and quotas over groups."""

from __future__ import annotations

import hashlib

import numpy as np


def hashed(n: int, seed: int, salt: str = "", ids: np.ndarray | None = None) -> np.ndarray:
    """(n,) uint64, uniform and independent per row: of its id when `ids` are given, else of its position.

    Sorting by it is a random permutation. With ids it does not depend on the order of the pool's file, and a
    row that joins the pool moves no other.
    """
    key = hashlib.blake2b(f"{seed}\0{salt}".encode(), digest_size=32).digest()
    if ids is not None:
        digests = b"".join(hashlib.blake2b(str(i).encode(), digest_size=8, key=key).digest() for i in ids)
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    # splitmix64: a counter with an odd step, then a finaliser in which each bit depends on all.
    first, step = np.frombuffer(key, dtype="<u8")[:2]
    with np.errstate(over="ignore"):
        z = first + np.arange(1, n + 1, dtype=np.uint64) * (step | np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def ranked(key: np.ndarray, usable: np.ndarray, limit: int, ties: np.ndarray | None = None) -> np.ndarray:
    """Positions of the `limit` usable rows with the largest `key` (n,), best first.

    Ties go to the smaller entry of `ties` (n,) when given, then to the smaller position.
    """
    rows = np.flatnonzero(usable)
    keys = key[rows]
    if ties is None:
        return rows[np.argsort(-keys, kind="stable")[:limit]]
    return rows[np.lexsort((ties[rows], -keys))[:limit]]


def codes(labels: np.ndarray) -> tuple[np.ndarray, list[object]]:
    """Group number of each entry, numbered by first appearance, and the label of each group."""
    values, first, inverse = np.unique(np.asarray(labels), return_index=True, return_inverse=True)
    by_appearance = np.argsort(first, kind="stable")
    number = np.empty(len(values), np.int64)
    number[by_appearance] = np.arange(len(values))
    return number[inverse], values[by_appearance].tolist()


def level_quotas(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Water-filling in closed form: every group gets min(size, level), and the rest goes one each to the
    first.

    "The first" are the earliest groups that still have rows; a budget beyond all rows gives all rows.
    """
    ordered = np.sort(sizes)
    filled = np.concatenate([[0], np.cumsum(ordered)])
    left = len(sizes) - np.arange(len(sizes))
    # At level ordered[i] the budget spent is what the smaller groups hold plus that level for the rest.
    reach = filled[:-1] + ordered * left
    at = int(np.searchsorted(reach, budget, side="right"))
    if at == len(sizes):
        return sizes.copy()
    quotas = np.minimum(sizes, (budget - filled[at]) // left[at])
    open_groups = np.flatnonzero(sizes > quotas)
    quotas[open_groups[: budget - int(quotas.sum())]] += 1
    return np.asarray(quotas)


def proportional_turns(sizes: np.ndarray, budget: int) -> np.ndarray:
    """(budget,) group of each turn, such that after h turns group g has had floor or ceil of h × its share.

    Balinski and Young's quota method: the next turn goes to the group with the largest size / (turns + 1)
    among those that stay within the ceiling of their share, ties to the earlier group. Unlike largest
    remainders, a smaller budget is then always a prefix of a larger one.
    """
    total, had = int(sizes.sum()), np.zeros(len(sizes), np.int64)
    turns = np.empty(budget, np.int64)
    for h in range(1, budget + 1):
        allowed = had * total < h * sizes  # had + 1 <= ceil(h × size / total), in integers
        group = int(np.argmax(np.where(allowed, sizes / (had + 1), -1.0)))
        turns[h - 1] = group
        had[group] += 1
    return turns
