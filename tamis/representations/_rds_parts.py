"""The parts of a row that the RDS family renders: the whole, the prompt alone, the label alone (T§2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tamis.models.render import Rendered, Renderer
from tamis.models.spans import Refused

if TYPE_CHECKING:
    from tamis.pools.pool import Message


def render_part(
    renderer: Renderer, part: str, role: str, conversations: Sequence[Sequence[Message]]
) -> list[Rendered]:
    """Rows as token ids. `part`: whole, prompt, label or before; `role`: pool, or query for the rendering of
    T§1.4.

    Prompt: a leading system turn, the first user turn and EOS; of a query all of its prompt without the
    assistant header, and EOS. Label: assistant header, first answer and end of turn; of a query BOS, last
    answer and end of turn. Before: all before the first answer, with the assistant header; of a query the
    same. A row that has no such part has the status `no_target_tokens`.
    """
    if part == "whole":
        render = renderer.render_queries if role == "query" else renderer.render_many
        return render(conversations)
    if part == "before":
        return renderer.render_prompts(conversations)
    write = _prompt if part == "prompt" else _label
    texts: list[str | Refused | None] = []
    for messages in conversations:
        try:
            texts.append(write(renderer, role, messages))
        except Refused as refused:
            texts.append(refused)
    written = [text for text in texts if isinstance(text, str)]
    ids = iter(renderer.token_ids(written, opening=part == "prompt"))
    return [_rendered(renderer, part, text, next(ids) if isinstance(text, str) else None) for text in texts]


def _rendered(renderer: Renderer, part: str, text: str | Refused | None, ids: np.ndarray | None) -> Rendered:
    nothing = np.zeros(0, np.int32), np.zeros(0, bool), 0, False
    if isinstance(text, Refused):
        return Rendered(*nothing, "refused", str(text))
    if ids is None:
        missing = "user" if part == "prompt" else "assistant"
        return Rendered(*nothing, "no_target_tokens", f"the row has no {missing} turn")
    if part == "label":
        ids = np.concatenate([renderer.bos_ids, ids])
    kept = ids[: renderer.max_tokens]
    truncated = len(ids) > len(kept)
    mask = np.full(len(kept), part == "label")
    return Rendered(kept, mask, len(ids), truncated, "truncated" if truncated else "ok")


def _prompt(renderer: Renderer, role: str, messages: Sequence[Message]) -> str | None:
    if role == "query":
        turns = list(messages[:-1] if messages and messages[-1].role == "assistant" else messages)
    else:
        first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
        leading = [messages[0]] if messages and messages[0].role == "system" else []
        turns = [] if first is None else [*leading, messages[first]]
    return renderer.text(turns) + renderer.eos if turns else None


def _label(renderer: Renderer, role: str, messages: Sequence[Message]) -> str | None:
    if role == "query":
        return renderer.query_texts(messages)[1] or None
    first = next((i for i, message in enumerate(messages) if message.role == "assistant"), None)
    if first is None:
        return None
    turns = messages[: first + 1]
    _, answer = renderer.query_texts(turns)
    before = renderer.text(turns[:-1]) if first else ""
    with_header = renderer.text(turns[:-1], generation=True)
    header = with_header[len(before) :] if with_header.startswith(before) else ""
    return header.lstrip() + answer
