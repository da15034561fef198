"""Conversion of the commonest rows without a look at every possibility.

Each function takes a row whose keys have its shape and either gives exactly what the function of the same
name in `shapes` gives, or raises KeyError or TypeError; the reader then asks the careful one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tamis.pools.shapes import ROLES, Turns


def messages(row: dict[str, Any]) -> Turns:
    """`messages` of two keys each, with text as content."""
    return _listed(row, row["messages"], "role", "content")


def sharegpt(row: dict[str, Any]) -> Turns:
    """`conversations` of two keys each, with text as value."""
    return _listed(row, row["conversations"], "from", "value")


def _listed(row: dict[str, Any], listed: Any, role: str, content: str) -> Turns:
    flat: Turns = []
    if type(listed) is not list or not listed or "system" in row:
        raise TypeError
    for turn in listed:
        text = turn[content]
        if len(turn) != 2 or type(text) is not str:
            raise TypeError
        flat.append(ROLES[turn[role]])
        flat.append(text)
    return flat


def alpaca(row: dict[str, Any]) -> Turns:
    """Exactly `instruction`, `input` and `output`, all text."""
    instruction, context, output = row["instruction"], row["input"], row["output"]
    if len(row) != 3 or type(instruction) is not str or type(context) is not str or type(output) is not str:
        raise TypeError
    if context:
        if not context.strip() or not instruction.strip():
            raise TypeError
        instruction = f"{instruction}\n{context}"
    return ["user", instruction, "assistant", output]


FAST: dict[str, Callable[[dict[str, Any]], Turns]] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
}
