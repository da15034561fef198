"""A rendered row in colour: what is trained on, what is only read, and what was cut off."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.text import Text

    from tamis.models.render import Rendered

SUPERVISED, PROMPT, CUT = "green", "dim", "red strike"
_BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def show(rendered: Rendered, tokenizer: Any, boundaries: bool = False) -> Text:
    """The row as text: supervised tokens green, the others dim, those cut off red and struck through.

    `boundaries` puts a bar between tokens. Control characters are escaped; a character made of several tokens
    has the colour of its last.
    """
    from rich.text import Text

    ids = np.concatenate([rendered.ids, rendered.tail])
    styles = [SUPERVISED if supervised else PROMPT for supervised in rendered.mask] + [CUT] * len(
        rendered.tail
    )
    shown = Text()
    for i, piece in pieces(ids, tokenizer):
        if boundaries and shown:
            shown.append("|", style="bright_black")
        shown.append(escaped(piece), style=styles[i])
    if rendered.status == "refused":
        shown.append(f"refused: {escaped(rendered.reason)}", style="red")
    return shown


def pieces(ids: np.ndarray, tokenizer: Any) -> Iterator[tuple[int, str]]:
    """(number of the token, its text) in order; the tokens of one character come as their last one."""
    held = 0
    for i in range(len(ids)):
        # Decoded after the token before it, because some tokenizers drop a space at the start of a text.
        first = max(held - 1, 0)
        before = _decoded(ids[first:held], tokenizer)
        text = _decoded(ids[first : i + 1], tokenizer)
        if text.endswith("\ufffd") and i + 1 < len(ids) and i - held < 8:
            continue
        yield i, text[len(before) :]
        held = i + 1


def escaped(text: str) -> str:
    """Control characters and marks that turn the direction of writing as \\x1b, \\u202e; newlines stay."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character in "\n\t":
        return character
    control = unicodedata.category(character) in ("Cc", "Cs")
    if not control and unicodedata.bidirectional(character) not in _BIDIRECTIONAL:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _decoded(ids: np.ndarray, tokenizer: Any) -> str:
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
