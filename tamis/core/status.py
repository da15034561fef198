"""The status of a row for a signal: a word with a fixed code. A row has a number only when it is scored."""

from __future__ import annotations

import numpy as np

STATUSES = (
    "ok",
    "truncated",
    "empty_response",
    "no_target_tokens",
    "too_long",
    "non_finite",
    "parse_error",
    "refused",
    "failed",
)
"""Words in the order of their codes (uint8 on disk). The first two are scored, the others are not."""

_SCORED = 2
_BROKEN = ("non_finite", "failed")


def code(word: str) -> int:
    """Code of a status word."""
    return STATUSES.index(word)


def words(codes: np.ndarray) -> np.ndarray:
    """Status words (n,) of codes (n,) uint8."""
    named: np.ndarray = np.array(STATUSES, dtype=object)[codes]
    return named


def scored(codes: np.ndarray) -> np.ndarray:
    """Mask (n,) bool of the rows that have a number (`ok` or `truncated`)."""
    mask: np.ndarray = codes < _SCORED
    return mask


def broken(codes: np.ndarray) -> np.ndarray:
    """Mask (n,) bool of the rows counted by `--max-unscored`: failures and non-finite numbers only."""
    return np.isin(codes, [code(word) for word in _BROKEN])


def counts(codes: np.ndarray) -> dict[str, int]:
    """Rows by status word, zero counts left out, in the order of `STATUSES`."""
    found = np.bincount(codes, minlength=len(STATUSES))
    return {word: int(found[i]) for i, word in enumerate(STATUSES) if found[i]}
