"""What gradients of a pool look like beside the length of its rows, and which lengths and queries got picks.

Gradients of short responses are longer and point more in one direction, and a cosine does not take that away:
LESS prefers short rows (Xia et al. 2024, arXiv:2402.04333). These numbers show how far it does here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

PARTS = 5


def gradient_facts(
    norms: np.ndarray, tokens: np.ndarray, usable: np.ndarray, positions: np.ndarray, query: np.ndarray
) -> dict[str, Any]:
    """Facts about the chosen rows `positions` (k,), which the queries numbered `query` (k,) chose (-1: none).

    `norms` (n,) of the plain gradients at the first checkpoint, `tokens` (n,) rendered; both of the `usable`
    rows (n,) count. `spearman`: rank correlation of norm and length. `fifths`: of the usable rows by rising
    length, each with its range of `tokens`, its median `norm`, and how many `chosen` rows it holds (a draw
    would have as many in each). `queries`: the `effective` number that chose, exp of the entropy of their
    picks, of those that chose `any`; None where no query chose.
    """
    from scipy.stats import spearmanr

    there = usable & np.isfinite(norms)
    rows = np.flatnonzero(there)
    order = rows[np.argsort(tokens[rows], kind="stable")]
    chosen = np.zeros(len(norms), bool)
    chosen[positions] = True
    fifths = [
        {
            "tokens": [int(tokens[part[0]]), int(tokens[part[-1]])],
            "rows": len(part),
            "norm": float(np.median(norms[part])),
            "chosen": int(chosen[part].sum()),
        }
        for part in np.array_split(order, PARTS)
        if len(part)
    ]
    varied = len(rows) > 1 and np.ptp(tokens[rows]) > 0 and np.ptp(norms[rows]) > 0
    return {
        "rows": len(rows),
        "spearman": float(spearmanr(norms[rows], tokens[rows]).statistic) if varied else None,
        "fifths": fifths,
        "queries": _concentration(query[query >= 0]),
    }


def _concentration(query: np.ndarray) -> dict[str, float] | None:
    if not len(query):
        return None
    picks = np.unique(query, return_counts=True)[1]
    share = picks / picks.sum()
    return {"effective": float(np.exp(-(share * np.log(share)).sum())), "any": len(picks)}
