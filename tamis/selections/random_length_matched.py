"""Random rows with the lengths of another selection: a control for "it only chose longer rows".

**Paper.** none: a matched control.
**Definition.** The usable rows are cut into `bins` classes of equal count by length (rows of equal length are
never separated). For each row of `reference`, in order, add a row drawn uniformly from the not yet drawn rows
of its class; with `match_sources` also of its source. When nothing is left there, the class with rows left
that is nearest in length is used (of its source first; ties to the shorter one), and that is counted.
**Needs.** lengths (n,), reference positions (r,), usable (n,), seed; optionally ids (n,), and sources (n,).
**Gives.** positions int64 (k,), k <= r, the i-th matched to reference[i]; no gain, no query; nested.
**Cost.** O(n log n + k) time, O(n) memory, no pass over features.
**Departs.** none known.
**Relations.** random when bins = 1. Reference rows may be drawn too: excluding them would make the control a
sample of what the reference rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import hashed


@dataclass(frozen=True)
class Config:
    """`bins`: number of length classes; `match_sources`: draw from the same source as well."""

    bins: int = 50
    match_sources: bool = False

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, not {self.bins}")


def select(request: Request, limit: int, config: Config) -> Choice:
    """One random row for each of the first `limit` reference rows."""
    lengths, reference = request.lengths, request.reference
    assert lengths is not None and reference is not None  # the family checks `needs`
    if config.match_sources and request.sources is None:
        raise RequestError("random-length-matched match_sources=True needs sources (n,)")
    if limit > len(reference):
        raise RequestError(
            f"random-length-matched: budget {limit} exceeds the {len(reference)} reference rows to match; "
            "pass a longer reference or a smaller budget"
        )
    usable = np.flatnonzero(request.usable)
    edges = np.unique(np.quantile(lengths[usable], np.arange(1, config.bins) / config.bins, method="lower"))
    length_class = np.searchsorted(edges, lengths, side="left")
    source = (
        request.sources if config.match_sources and request.sources is not None else np.zeros(request.n, int)
    )
    key = hashed(request.n, request.seed, "length-matched", request.ids)
    left: dict[tuple[int, int], list[int]] = {}
    for row in usable[np.argsort(key[usable], kind="stable")[::-1]].tolist():
        left.setdefault((int(source[row]), int(length_class[row])), []).append(row)
    picks, moved, foreign = [], 0, 0
    for row in reference[:limit].tolist():
        cell = (int(source[row]), int(length_class[row]))
        if cell not in left:
            near = min(left, key=lambda c: (c[0] != cell[0], abs(c[1] - cell[1]), c))
            moved, foreign, cell = moved + 1, foreign + (near[0] != cell[0]), near
        picks.append(left[cell].pop())
        if not left[cell]:
            del left[cell]
    return chosen(np.array(picks, np.int64), length_fallbacks=moved, source_fallbacks=foreign)


METHOD = Method(
    "random-length-matched", select, Config, __doc__ or "", seeded=True, needs=("lengths", "reference")
)
