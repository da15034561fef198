"""What a score looks like over a pool: its distribution, its ends, and how much of it is length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core import status as statuses

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.scores.score import Scores

BINS, ENDS, EXCERPT = 20, 3, 160


def score_facts(pool: Pool, scores: Scores) -> dict[str, Any]:
    """Counts by status (they add up to the rows), quantiles, histogram, ties, rank correlation with length in
    characters, and the `ENDS` best and worst rows with an excerpt."""
    values, codes = scores.values, scores.codes
    rows = np.flatnonzero(np.isfinite(values))
    found: dict[str, Any] = {"rows": len(pool), "status": statuses.counts(codes), "scored": len(rows)}
    if not len(rows):
        return found
    order = rows[np.argsort(-values[rows], kind="stable")]
    found |= distribution(values, np.asarray(pool.chars))
    found |= {
        "warnings": scores.warnings,
        "best": [_row(pool, int(row), values) for row in order[:ENDS]],
        "worst": [_row(pool, int(row), values) for row in order[::-1][:ENDS]],
    }
    return found


def distribution(values: np.ndarray, characters: np.ndarray) -> dict[str, Any]:
    """Quantiles, histogram, number of different values and rank correlation with the rows' characters (n,),
    of the values (n,) that are numbers; nothing when none is."""
    rows = np.flatnonzero(np.isfinite(values))
    if not len(rows):
        return {}
    scored = values[rows]
    counts, edges = np.histogram(scored, bins=BINS)
    return {
        "quantiles": {f"{q:g}": float(np.quantile(scored, q)) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)},
        "histogram": {"edges": edges.tolist(), "rows": counts.tolist()},
        "different": len(np.unique(scored)),
        "length_correlation": _rank_correlation(scored, characters[rows].astype(float)),
    }


def _row(pool: Pool, row: int, values: np.ndarray) -> dict[str, Any]:
    text = " | ".join(f"{message.role}: {message.content}" for message in pool.row(row).messages)
    shown = " ".join(text.split())
    cut = shown if len(shown) <= EXCERPT else f"{shown[:EXCERPT]} … ({len(text):,} characters)"
    return {
        "id": str(pool.ids[row]),
        "row": row,
        "source": str(pool.sources[row]),
        "score": float(values[row]),
        "text": cut,
    }


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's coefficient; None where one of them is constant."""
    from scipy.stats import spearmanr

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)
