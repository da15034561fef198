"""Facts about a subset that one wants to see before training on it, and warnings when it is degenerate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core import status as statuses

if TYPE_CHECKING:
    from tamis.pools.pool import Pool

_ONE_SOURCE = 0.9
_ONE_QUERY = 0.5
_LENGTH_RATIO = 2.0
_TIED = 0.5
_DRAWN = 0.1


_LITTLE_TO_TRAIN = {
    "empty_response": "only their end-of-turn token would be trained on",
    "no_target_tokens": "nothing of them would be trained on",
    "refused": "the template does not take them",
}


@dataclass(frozen=True)
class Rendering:
    """How every pool row is rendered: tokens (n,) int32 after truncation, status codes (n,) uint8."""

    tokens: np.ndarray
    codes: np.ndarray
    digest: str = ""  # of the stored thing


def summarise(
    pool: Pool,
    positions: np.ndarray,
    score: np.ndarray,
    task: np.ndarray,
    query: np.ndarray,
    rendering: Rendering | None,
    queries_per_task: dict[str, int],
    ties: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Counts, shares and lengths of the chosen rows (`positions`, (k,)) against the pool, with warnings.

    `rendering` is None when nothing was rendered. `ties`: of `drawn_by_ties`, where a score alone ranks.
    """
    tokens = None if rendering is None else rendering.tokens
    facts: dict[str, Any] = {
        "rows": len(positions),
        "tokens": None if tokens is None else int(tokens[positions].sum(dtype=np.int64)),
        "sources": _sources(pool, positions),
        "length": {"characters": _length(np.asarray(pool.chars), positions)},
        "queries": _queries(task, query, queries_per_task),
        "merged_duplicates": int((np.asarray(pool.counts)[positions] - 1).sum()),
    }
    if rendering is not None:
        facts["length"]["tokens"] = _length(rendering.tokens, positions)
        facts["rendering"] = statuses.counts(rendering.codes[positions])
    if ties is not None:
        facts["ties"] = ties
    facts["warnings"] = _warnings(facts, score, len(pool))
    return facts


def drawn_by_ties(values: np.ndarray, usable: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
    """How far equal scores left the choice to the order of ties: the chosen `rows` whose score a usable row
    that was left out has too, their `share` of the subset, the rows of the pool that they are `among`, and
    the lowest such `score` (None for none). values (n,) as they are ranked."""
    ranked = np.asarray(values)
    chosen = np.zeros(len(ranked), bool)
    chosen[positions] = True
    left = np.unique(ranked[usable & ~chosen])
    tied = usable & np.isin(ranked, np.intersect1d(left, np.unique(ranked[chosen])))
    drawn = int((tied & chosen).sum())
    return {
        "rows": drawn,
        "share": round(drawn / max(len(positions), 1), 6),
        "among": int(tied.sum()),
        "score": float(ranked[tied].min()) if drawn else None,
    }


def _sources(pool: Pool, positions: np.ndarray) -> list[dict[str, Any]]:
    codes, names = np.asarray(pool.source_codes), pool.source_names
    in_pool = np.bincount(codes, minlength=len(names))
    chosen = np.bincount(codes[positions], minlength=len(names))
    order = np.lexsort((np.arange(len(names)), -chosen))
    return [
        {
            "source": names[i],
            "rows": int(chosen[i]),
            "share": round(float(chosen[i] / max(len(positions), 1)), 6),
            "pool_rows": int(in_pool[i]),
            "pool_share": round(float(in_pool[i] / max(len(pool), 1)), 6),
        }
        for i in order
    ]


def _length(lengths: np.ndarray, positions: np.ndarray) -> dict[str, float]:
    def median(values: np.ndarray) -> float:
        return float(np.median(values)) if len(values) else 0.0

    chosen = lengths[positions]
    return {
        "median": median(chosen),
        "pool_median": median(lengths),
        "mean": round(float(chosen.mean()), 2) if len(chosen) else 0.0,
        "pool_mean": round(float(lengths.mean()), 2) if len(lengths) else 0.0,
    }


def _queries(task: np.ndarray, query: np.ndarray, sizes: dict[str, int]) -> dict[str, Any]:
    """Picks per query row of each task; empty when rows were not chosen by queries."""
    found = {}
    for name, size in sizes.items():
        mine = query[(task == name) & (query >= 0)]
        if len(mine):
            picks = np.bincount(mine, minlength=size)
            found[name] = {
                "queries": size,
                "picks": int(picks.sum()),
                "least": int(picks.min()),
                "median": float(np.median(picks)),
                "most": int(picks.max()),
                "without": int((picks == 0).sum()),
            }
    return found


def _warnings(facts: dict[str, Any], score: np.ndarray, pool_rows: int) -> list[str]:
    found = []
    first = facts["sources"][0] if facts["sources"] else None
    if first and first["share"] > _ONE_SOURCE and first["pool_share"] < _ONE_SOURCE / 2:
        found.append(
            f"{first['share']:.0%} of the rows are from one source, {first['source']!r} "
            f"({first['pool_share']:.0%} of the pool): taking that source may do as well"
        )
    for unit, length in facts["length"].items():
        low, high = length["pool_median"] / _LENGTH_RATIO, length["pool_median"] * _LENGTH_RATIO
        if length["pool_median"] and not low <= length["median"] <= high:
            side = "shorter" if length["median"] < low else "longer"
            found.append(
                f"the chosen rows are much {side} than the pool (median {length['median']:g} {unit} against "
                f"{length['pool_median']:g}): compare with random-length-matched"
            )
            break
    for name, picks in facts["queries"].items():
        if picks["queries"] >= 4 and picks["most"] > _ONE_QUERY * picks["picks"]:
            found.append(f"one query row of {name!r} chose {picks['most']} of its {picks['picks']} rows")
        if picks["without"] > picks["queries"] / 2 and picks["picks"] >= picks["queries"]:
            found.append(f"{picks['without']} of the {picks['queries']} query rows of {name!r} chose nothing")
    for word, trained in _LITTLE_TO_TRAIN.items():
        if rows := facts.get("rendering", {}).get(word):
            found.append(f"{rows} of the chosen rows are {word}: {trained}")
    finite = score[np.isfinite(score)]
    if "ties" in facts:
        ties = facts["ties"]
        if ties["share"] > _DRAWN:
            found.append(
                f"{ties['rows']:,} of the {facts['rows']:,} rows were drawn from {ties['among']:,} of equal "
                f"score (down to {ties['score']:g}), by nothing but the order of ties: compare several tie "
                "seeds (--set top-k.tie_seed=1)"
            )
    elif len(finite) >= 20 and len(np.unique(finite)) < _TIED * len(finite) and len(np.unique(finite)) > 1:
        found.append(
            f"only {len(np.unique(finite))} different scores among {len(finite)} rows: ties decided much"
        )
    if pool_rows and facts["rows"] > pool_rows / 2:
        found.append("more than half of the pool is chosen: a selection can hardly differ from a random draw")
    return found
