"""Random rows, the same number from every source as far as the sources reach.

**Paper.** Ivison et al. 2025, arXiv:2503.01807 ("balanced random").
**Definition.** Sources take turns in order of first appearance, each adding its next row in the order of
h(seed, source name, row); an exhausted source is passed over, so that its share spreads over the rest. The
counts are those of water-filling: min(n_s, level) each, and what is left of the last round to the first
sources.
**Needs.** sources (n,), usable (n,), seed; optionally ids (n,).
**Gives.** positions int64 (k,) in visiting order; no gain, no query; nested, and every prefix is balanced.
**Cost.** O(n log n) time, O(n) memory, no pass over features.
**Departs.** The released script takes the first rows of each source in file order and shuffles only the
result; it merges sources named "science", drops "hard_coded", and never ends when more rows are asked for
than there are. Here the draw is random, sources are taken as they are named, and the order is not shuffled
(training shuffles), because a shuffled order would not nest.
**Relations.** random when there is one source, up to the salt of the hash.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamis.core.method import Method
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed


@dataclass(frozen=True)
class Config:
    """No parameters but the seed of the request."""


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` rows of the sources' turns."""
    assert request.sources is not None  # the family checks `needs`
    turn = np.full(request.n, request.n, np.int64)
    for source, name in enumerate(request.source_names):
        rows = np.flatnonzero((request.sources == source) & request.usable)
        ids = None if request.ids is None else request.ids[rows]
        # Without ids a row is known by its number within the source.
        key = hashed(len(rows), request.seed, f"balanced\0{name}", ids)
        turn[rows[np.argsort(key, kind="stable")]] = np.arange(len(rows))
    order = np.lexsort((request.sources, turn))
    return chosen(order[request.usable[order]][:limit])


METHOD = Method("random-balanced", select, Config, __doc__ or "", seeded=True, needs=("sources",))
