"""Random rows, drawn again while they share too many with given subsets: a study's overlap rule.

**Paper.** Diddee and Ippolito 2024, Chasing Random, arXiv:2410.15225: a random subset that shares more than
30 % with any strategy's subset of the same budget is drawn again.
**Definition.** Draw j = 0, 1, … is the order of h(seed, j, row) over the usable rows. The first draw counts
in which, for every given subset of b rows, the first b rows share at most `max_overlap` b rows with it.
**Needs.** usable (n,), seed; optionally ids (n,); `subsets`: positions of each subset.
**Gives.** positions int64 (k,) in a random order; no gain, no query; nested. Notes: draws that were made, and
the largest overlap. An error that says "infeasible" where the rows outside a subset are too few for any draw,
or where none of `draws` draws keeps the rule.
**Cost.** O(draws n log n) time, O(n) memory, no pass over features.
**Departs.** The paper's redrawing has no end: on 15,011 rows at 10,000 every draw shares 49.9 % or more.
**Relations.** random where the rule never fires (the first draw is its draw). Where it fires the rows are
selected against the strategies, and no uniform baseline: `random` with its overlaps reported is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed


@dataclass(frozen=True)
class Config:
    """`max_overlap`: share of a subset's rows that may be shared; `draws`: most draws; `subsets`: positions
    of each."""

    max_overlap: float = 0.3
    draws: int = 100
    subsets: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.max_overlap <= 1:
            raise ValueError(f"max_overlap={self.max_overlap!r}: expected a share from 0 to 1")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws!r}: expected 1 or more")


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first draw of at most `config.draws` that keeps the rule."""
    masks = [_mask(request, subset, limit) for subset in config.subsets]
    usable = int(request.usable.sum())
    for mask in masks:
        size = int(mask.sum())
        least = max(0, size - (usable - int((mask & request.usable).sum())))
        if least > config.max_overlap * size:
            raise RequestError(
                f"random-redrawn is infeasible: of {usable} usable rows every draw of {size} shares at least "
                f"{least} ({least / size:.1%}) with a subset of {size}, more than {config.max_overlap:.1%}"
            )
    worst = 0.0
    for draw in range(config.draws):
        salt = "random" if draw == 0 else f"random\0{draw}"
        order = np.argsort(hashed(request.n, request.seed, salt, request.ids), kind="stable")
        order = order[request.usable[order]]
        shares = [float(mask[order[: mask.sum()]].sum() / max(mask.sum(), 1)) for mask in masks]
        worst = max(shares, default=0.0)
        if worst <= config.max_overlap:
            return chosen(order[:limit], draws=draw + 1, largest_overlap=worst)
    raise RequestError(
        f"random-redrawn is infeasible: none of {config.draws} draws shares at most {config.max_overlap:.1%} "
        f"with each of {len(masks)} subsets (the last one {worst:.1%}); two random subsets of these sizes "
        f"share {max(mask.sum() for mask in masks) / max(usable, 1):.1%} on average"
    )


def _mask(request: Request, subset: Any, limit: int) -> np.ndarray:
    rows = np.asarray(subset, np.int64)
    if rows.ndim != 1 or (rows.size and not 0 <= rows.min() <= rows.max() < request.n):
        raise RequestError(f"subsets must be positions from 0 to {request.n - 1}")
    mask = np.zeros(request.n, bool)
    mask[rows] = True
    if mask.sum() > limit:
        raise RequestError(
            f"random-redrawn compares at equal budget: a subset has {mask.sum()} rows, and {limit} are drawn"
        )
    return mask


METHOD = Method("random-redrawn", select, Config, __doc__ or "", seeded=True)
