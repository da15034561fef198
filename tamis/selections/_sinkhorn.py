"""Scaling of an entropic transport plan by passes over blocks of scores, in logarithms and float64.

The plan is T[q, j] = u[q] exp(S[q, j] / (2 eps)) v[j] with rows that sum to 1 (their common weight 1/m is put
in at the end) and v[j] = s[j]^-f, where s[j] = sum_q u[q] exp(S[q, j] / (2 eps)). Constant factors of v are
absorbed by u, so neither the size of the pool nor the offset of the cost appears.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tamis.core.errors import RequestError, RunError
from tamis.core.similarity import Similarity
from tamis.selections._best import scan

_STEP_ROWS = 256
_COLUMN_ROWS = 4096
_MOST_TURNS = 10_000
_SETTLED = 1e-12
_DECIMALS = 10
_SLACK = 0.01


@dataclass(frozen=True, eq=False)
class Kernel:
    """Cosines of a pool, cut off at -1 and 1, over the temperature 2 eps; of `choosable` (n,) rows only."""

    similarity: Similarity
    eps: float
    choosable: np.ndarray
    clipped: int

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """(rows, m) float64 of scores (rows, m)."""
        table = np.array(scores, np.float64, order="C")
        if self.clipped:
            np.clip(table, -1.0, 1.0, out=table)
        table *= 0.5 / self.eps
        return table

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions, logits) of all choosable rows, a few rows at a time so that they stay in cache."""
        for start, block in self.similarity.blocks():
            good = self.choosable[start : start + block.shape[1]]
            for first in range(0, block.shape[1], _STEP_ROWS):
                here = np.flatnonzero(good[first : first + _STEP_ROWS]) + first
                if len(here):
                    whole = here[-1] - here[0] + 1 == len(here)
                    rows: slice | np.ndarray = slice(here[0], here[-1] + 1) if whole else here
                    yield here + start, self.logits(block.T[rows])

    def columns(self, positions: np.ndarray) -> np.ndarray:
        """Scores (k, m) of rows, as they are."""
        found = None
        for start in range(0, len(positions), _COLUMN_ROWS):
            part = self.similarity.columns(positions[start : start + _COLUMN_ROWS])
            if found is None:
                found = np.empty((len(positions), len(part)), part.dtype)
            found[start : start + _COLUMN_ROWS] = part.T
        return np.empty((0, self.similarity.m), np.float32) if found is None else found


def first_pass(similarity: Similarity, eps: float) -> tuple[Kernel, np.ndarray, int]:
    """The kernel, log u (m,) that gives the rows their sums when v = 1, and the rows with NaN."""
    m = similarity.m
    choosable = np.zeros(similarity.n, bool)
    top, total = np.full(m, -np.inf), np.zeros(m)
    clipped = nan_count = 0
    for start, block, good, not_finite in scan(similarity):
        nan_count += not_finite
        choosable[start : start + block.shape[1]] = good
        for first in range(0, block.shape[1], _STEP_ROWS):
            here = good[first : first + _STEP_ROWS]
            table = np.array(block.T[first : first + _STEP_ROWS], np.float64, order="C")
            if not here.all():
                table = table[here]
            if not len(table):
                continue
            low, peak = table.min(), table.max(axis=0)
            if low < -1.0 or peak.max() > 1.0:
                _refuse_far(float(low), float(peak.max()))
                clipped += int(np.count_nonzero(np.abs(table) > 1.0))
                np.clip(table, -1.0, 1.0, out=table)
                peak = np.minimum(peak, 1.0)
            peak = np.maximum(top, peak)
            table -= peak
            table *= 0.5 / eps
            np.exp(table, out=table)
            with np.errstate(invalid="ignore"):
                total = total * np.exp((top - peak) * (0.5 / eps)) + table.sum(axis=0)
            top = peak
    kernel = Kernel(similarity, eps, choosable, clipped)
    return kernel, -(np.log(total) + top * (0.5 / eps)) if choosable.any() else top, nan_count


def _refuse_far(low: float, high: float) -> None:
    if low < -1.0 - _SLACK or high > 1.0 + _SLACK:
        raise RequestError(
            f"transport takes cosines, from -1 to 1; found scores from {low:g} to {high:g}: "
            "normalise the vectors, or use a selection that takes any scores, such as round-robin"
        )


def scaled(logits: np.ndarray, log_u: np.ndarray, f: float) -> tuple[np.ndarray, np.ndarray]:
    """log s of the rows of `logits` (rows, m), and what they add to each query's sum, (m,); eats `logits`."""
    logits += log_u
    top = logits.max(axis=1)
    logits -= top[:, None]
    np.exp(logits, out=logits)
    log_s = top + np.log(logits.sum(axis=1))
    return log_s, np.exp(top - f * log_s) @ logits


def whole_pass(kernel: Kernel, log_u: np.ndarray, f: float) -> tuple[np.ndarray, np.ndarray]:
    """log s (n,) of all rows, -inf where a row may not be chosen, and the queries' sums (m,)."""
    log_s, sums = np.full(kernel.similarity.n, -np.inf), np.zeros(len(log_u))
    for positions, logits in kernel.parts():
        log_s[positions], added = scaled(logits, log_u, f)
        sums += added
    return log_s, sums


def near_pass(
    kernel: Kernel, scores: np.ndarray, log_u: np.ndarray, f: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same of the rows whose `scores` (k, m) are at hand."""
    log_s, sums = np.empty(len(scores)), np.zeros(len(log_u))
    for first in range(0, len(scores), _STEP_ROWS):
        span = slice(first, first + _STEP_ROWS)
        log_s[span], added = scaled(kernel.logits(scores[span]), log_u, f)
        sums += added
    return log_s, sums


def settle(
    kernel: Kernel, scores: np.ndarray, rest: np.ndarray, log_u: np.ndarray, f: float
) -> tuple[np.ndarray, float]:
    """log u at which all queries' sums are 1, and a bound on the relative error of the masses there.

    The rows of `scores` (k, m) are followed exactly. Of the others `rest` (m,), their part of the sums at
    `log_u`, is known; each of them has v changed by exp(-f x) for some x between the smallest and the largest
    change of log u, and the middle is taken. log u is rounded, so that it does not depend on the order of
    sums.
    """
    found = log_u
    for _ in range(_MOST_TURNS):
        change = found - log_u
        middle = (change.min() + change.max()) / 2
        sums = rest * np.exp(change - f * middle) + near_pass(kernel, scores, found, f)[1]
        found = found - np.log(sums)
        if np.abs(np.log(sums)).max() < _SETTLED:
            break
    else:
        raise RunError(
            f"transport did not settle in {_MOST_TURNS} turns; lower m2 or raise eps (now {kernel.eps:g})"
        )
    found = np.round(found, _DECIMALS)
    share = float((rest * np.exp(found - log_u)).max())
    return found, float(np.expm1(f * np.ptp(found - log_u) / 2) * min(share, 1.0))
