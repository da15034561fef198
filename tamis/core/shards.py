"""Making a stored thing shard by shard, alone or beside other writers, resumably."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tamis.core import status as statuses
from tamis.core.cost import booked
from tamis.core.errors import RequestError
from tamis.core.store import Store, Thing

_POLL_S = 0.2


@dataclass(frozen=True)
class Made:
    """One shard: its arrays, the reasons of rows that were refused or failed, and what it cost."""

    arrays: dict[str, np.ndarray]
    reasons: dict[int, str] = field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0


def parse_share(text: str | None) -> tuple[int, int] | None:
    """`i/n` with 1 ≤ i ≤ n: this worker makes every n-th shard, beginning with the i-th."""
    if text is None:
        return None
    part, _, whole = text.partition("/")
    if not (part.isdigit() and whole.isdigit() and 1 <= int(part) <= int(whole)):
        raise RequestError(f"--shard {text!r}: expected i/n with 1 <= i <= n, for example 2/8")
    return int(part), int(whole)


def of_share(shards: Sequence[int], share: tuple[int, int] | None) -> list[int]:
    """Those of `shards` that a worker with this share makes."""
    return [shard for shard in shards if share is None or shard % share[1] == share[0] - 1]


def make_shards(
    store: Store,
    thing: Thing,
    bounds: list[tuple[int, int]],
    make: Callable[[int, int], Made],
    *,
    method: str,
    execution: Callable[[], Mapping[str, Any]] = dict,
    share: tuple[int, int] | None = None,
) -> bool:
    """Make the missing shards of `thing` with `make(start, stop)` and finish it; True when it is complete.

    With a `share` (i, n) only shards i-1, i-1+n, … are made, and whoever makes the last one finishes the
    thing; without one, shards that other writers hold are waited for, and made here if those writers die.
    """
    thing.begin()
    while missing := thing.missing():
        mine = of_share(missing, share)
        worked = False
        for shard in mine:
            with thing.claim(shard) as free:
                if not free:
                    continue
                worked = True
                _make_one(store, thing, shard, bounds[shard], make, method, execution)
        if share is not None and not any(i in thing.missing() for i in mine):
            break
        if not worked and thing.missing():
            time.sleep(_POLL_S)
    if thing.missing():
        return False
    thing.finish(_summary(thing))
    return True


def _make_one(
    store: Store,
    thing: Thing,
    shard: int,
    bounds: tuple[int, int],
    make: Callable[[int, int], Made],
    method: str,
    execution: Callable[[], Mapping[str, Any]],
) -> None:
    start, stop = bounds
    with booked(store.root, thing.kind, thing.digest, method, shard=shard) as entry:
        made = make(start, stop)
        entry.update(execution())  # asked now: how rows were batched is known once some were
        entry.update(rows=stop - start, tokens=made.tokens, flops=made.flops)
        entry["bytes"] = sum(array.nbytes for array in made.arrays.values())
        thing.write_shard(shard, made.arrays, made.reasons)


def _summary(thing: Thing) -> dict[str, Any]:
    """Counts that follow from the shards: rows, tokens, rows by status."""
    if thing.state == "complete":
        return thing.summary
    codes = thing.joined("status")
    tokens = sum(int(np.maximum(part, 0).sum(dtype=np.int64)) for part in thing.arrays("tokens"))
    return {"rows": len(codes), "tokens": tokens, "status": statuses.counts(codes)}
