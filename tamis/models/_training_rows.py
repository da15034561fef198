"""Rows as training sees them: token ids and labels, what was left out, and packing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from tamis.models.recipes import Recipe
from tamis.models.render import Rendered, Renderer

IGNORED = -100
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Prepared:
    """`names`: ids of the rows that are trained on, sorted; `ids`, `labels`: int32 (L,) of every sequence, a
    row each unless packed; `given` rows, of which `dropped` by status; `truncated` of those that are left;
    `targets`: labels that count."""

    names: list[str]
    ids: list[np.ndarray]
    labels: list[np.ndarray]
    given: int
    dropped: dict[str, int]
    truncated: int

    @property
    def targets(self) -> int:
        """Labels that count."""
        return sum(int((labels != IGNORED).sum()) for labels in self.labels)


def prepare(
    renderer: Renderer, recipe: Recipe, names: Sequence[str], conversations: Iterable[Any], seed: int
) -> Prepared:
    """Render rows and leave out those without a target; in order of id, so that ranks play no part."""
    kept: list[tuple[str, int, np.ndarray, np.ndarray]] = []
    dropped: dict[str, int] = {}
    truncated = at = 0
    rows = iter(conversations)
    while block := list(islice(rows, _BLOCK_ROWS)):
        for made in renderer.render_many(block):
            labels = labels_of(made, recipe.loss_on_prompt, follows=recipe.packed)
            if made.status == "refused" or not (labels != IGNORED).any():
                word = made.status if made.status == "refused" else "no_target_tokens"
                dropped[word] = dropped.get(word, 0) + 1
            else:
                truncated += made.truncated
                kept.append((names[at], at, made.ids, labels))
            at += 1
    kept.sort(key=lambda row: row[:2])
    ids, labels_found = [row[2] for row in kept], [row[3] for row in kept]
    if recipe.packed and kept:
        order = np.random.default_rng(seed).permutation(len(kept))
        ids, labels_found = (
            packed([part[i] for i in order], recipe.max_tokens) for part in (ids, labels_found)
        )
        for labels in labels_found:
            labels[0] = IGNORED
    return Prepared([row[0] for row in kept], ids, labels_found, at, dict(sorted(dropped.items())), truncated)


def labels_of(row: Rendered, loss_on_prompt: bool = False, follows: bool = False) -> np.ndarray:
    """Labels (L,) int32: the token ids where the renderer supervises (everywhere with `loss_on_prompt`), -100
    elsewhere, and at the first token unless it `follows` another row."""
    wanted = np.ones(len(row.ids), bool) if loss_on_prompt else row.mask
    labels = np.where(wanted, row.ids, IGNORED).astype(np.int32)
    if not follows:
        labels[:1] = IGNORED
    return labels


def packed(parts: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
    """`parts` one after another, cut into sequences of `length`; the last may be shorter."""
    whole = np.concatenate(parts)
    return [whole[start : start + length].copy() for start in range(0, len(whole), length)]
