"""Loss masks by prefix lengths, as the published encoder of the Tulu text computes them (T§1.3).

Kept for comparisons: a prefix tokenised alone may end inside a token of the whole text, every prefix is
tokenised again, and the newline after each assistant turn but the last stays a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tamis.models.render import Rendered, Renderer
    from tamis.models.spans import Turn


def reference_masks(
    renderer: Renderer, conversations: Sequence[Sequence[Turn]], rows: Sequence[Rendered]
) -> list[np.ndarray]:
    """Mask (L,) bool of every row, True where the published labels are targets."""
    prefixes = [_prefixes(turns, renderer.eos) for turns in conversations]
    lengths = iter(renderer.token_ids([text for texts in prefixes for text in texts]))
    masks = []
    for turns, texts, row in zip(conversations, prefixes, rows, strict=True):
        ends = [min(len(next(lengths)), renderer.max_tokens) for _ in texts]
        mask = np.ones(len(row.ids), dtype=bool)
        for i, (role, _) in enumerate(turns):
            if role != "assistant":
                mask[(ends[2 * i] if i else 0) : ends[2 * i + 1]] = False
        masks.append(mask)
    return masks


def _prefixes(turns: Sequence[Turn], eos: str) -> list[str]:
    """For every turn the text before it and after it, the latter with the header of a following answer."""
    texts, text = [], ""
    for i, (role, content) in enumerate(turns):
        texts.append(text)
        text += f"<|{role}|>\n{content.strip()}{eos if role == 'assistant' else ''}\n"
        answered = role != "assistant" and i + 1 < len(turns) and turns[i + 1][0] == "assistant"
        texts.append(text + "<|assistant|>\n" if answered else text)
    return texts
