"""What the released IFD programs score, token for token, for comparison with published numbers.

Prompt P (ending with its response marker) and response A are joined without a separator and tokenised as one
text, cut at L tokens; the scored tokens begin after the n tokens that the text before the last occurrence of
A has alone (so a token that straddles the boundary moves the slice). Direct: marker + A, cut at L - n_P + c
tokens, n_P = tokens of P cut at L. Cherry: the template's marker, c = 4 (6 with a Vicuna prompt), ratio of
mean losses. Superfiltering: no marker, c = 1, ratio of perplexities. Both leave out the first token of a
text. Rows with nothing to score have no number, in place of several sentinels.

Li et al. 2023, arXiv:2308.12032; Li et al. 2024, arXiv:2402.00530.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tamis.models.losses import LossEngine

Encode = Callable[[str], np.ndarray]
"""Text to all of its token ids (L,), with the BOS that the tokenizer adds."""


@dataclass(frozen=True)
class Slice:
    """A text's ids (L,) int32 after cutting, and the scored tokens from `start` to before `stop`."""

    ids: np.ndarray
    start: int
    stop: int

    @property
    def scored(self) -> int:
        """Number of scored tokens; not positive when there are none."""
        return self.stop - max(self.start, 1)


@dataclass(frozen=True)
class Pair:
    """The two passes of one row."""

    given: Slice
    direct: Slice
    prompt_tokens: int


def pair(encode: Encode, prompt: str, response: str, marker: str, most: int, spare: int) -> Pair:
    """Both passes of a row: `most` = L, `spare` = c, `marker` stands before the response directly."""
    prompt_tokens = min(len(encode(prompt)), most)
    return Pair(
        _slice(encode, prompt + response, response, most),
        _slice(encode, marker + response, response, max(most - prompt_tokens + spare, 0)),
        prompt_tokens,
    )


def _slice(encode: Encode, text: str, response: str, most: int) -> Slice:
    ids = encode(text)[:most]
    return Slice(ids, len(encode(text[: text.rfind(response)])), len(ids))


def mean_losses(engine: LossEngine, slices: Sequence[Slice]) -> np.ndarray:
    """Mean loss (n,) float64 of the scored tokens; NaN where there are none."""
    out = np.full(len(slices), np.nan)
    rows = [i for i, part in enumerate(slices) if part.scored > 0]
    places = [np.arange(len(slices[i].ids)) for i in rows]
    wanted = [
        (at >= max(slices[i].start, 1)) & (at < slices[i].stop) for i, at in zip(rows, places, strict=True)
    ]
    for i, found in zip(rows, engine.losses([slices[i].ids for i in rows], wanted), strict=True):
        out[i] = found.mean(dtype=np.float64)
    return out


def ratios(given: np.ndarray, direct: np.ndarray, perplexity: bool) -> np.ndarray:
    """IFD (n,) float64 from mean losses."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        found: np.ndarray = np.exp(given - direct) if perplexity else given / direct
    return found
