"""Rows of an imported file for conversations that are given by their text, as a plan tries them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tamis.core.outside import Rules, matched
from tamis.pools.identity import row_id

if TYPE_CHECKING:
    from tamis.pools.pool import Message


def places(conversations: Sequence[Sequence[Message]], ids: np.ndarray | None, rows: int) -> np.ndarray:
    """The file's row (b,) int64 of each conversation, -1 for none: by its id, or, without `ids`, by position,
    where these are the first conversations of the pool."""
    if ids is None:
        at = np.arange(len(conversations))
        return np.where(at < rows, at, -1)
    own = [
        row_id([text for m in messages for text in (m.role, m.content)]).hex() for messages in conversations
    ]
    return matched(np.array(own, dtype=str), ids, rows, Rules(False, True, True), "the imported file").row
