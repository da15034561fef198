"""Texts for a page: cut to what it can hold, what a browser would not show made visible, and data escaped."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from tamis.pools.identity import hex_ids
from tamis.study._report_facts import Query, View

PART_CHARACTERS = 2000  # of a prompt or a response that are shown at most
TEXT_CHARACTERS = 6_000_000  # of all rows together
TEXT_BYTES = 8_000_000  # the same in UTF-8, where characters take several
QUERY_CHARACTERS = 400_000
PLAIN_BYTES = 262_144  # data beyond this is compressed
WHOLE_IDS = 20_000  # rows beyond this are shown with half of their id

# Everything that has no mark of its own or moves the marks of others: controls but tab and line feed, halves
# of surrogate pairs, directions of writing, spaces of no width, non-characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\uffff\ud800-\udfff]"
)
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def visible(text: str) -> str:
    """`text` with what a page would hide, refuse or obey written out: NUL as ␀, others as \\uXXXX."""
    return _UNSEEN.sub(_written, text.replace("\r\n", "\n"))


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 32:
        return chr(0x2400 + code)
    # Joiners build the marks of several scripts and most emoji.
    if found[0] in "\u200c\u200d\ufffd\ufffc":
        return found[0]
    return f"\\u{code:04x}"


@dataclass(frozen=True)
class Excerpt:
    """Prompt and response as shown, and how many characters each has in full."""

    prompt: str
    response: str
    prompt_chars: int
    response_chars: int


def excerpt(turns: Sequence[tuple[str, str]], most: int) -> Excerpt:
    """The last assistant turn is the response, all before it the prompt; `most` characters of both."""
    answer = turns[-1][1] if turns and turns[-1][0] == "assistant" else ""
    before = turns[:-1] if turns and turns[-1][0] == "assistant" else turns
    # Only what can be shown is joined: a row may hold megabytes.
    total = sum(len(content) for _, content in before)
    pieces = [(role, content[: PART_CHARACTERS + 1]) for role, content in before]
    if [role for role, _ in pieces] == ["user"]:
        prompt = pieces[0][1]
    else:
        prompt = "\n\n".join(f"{role}: {content}" for role, content in pieces)
        total += len(prompt) - sum(len(content) for _, content in pieces)
    return shortened(Excerpt(prompt, answer, total, len(answer)), most)


def shortened(text: Excerpt, most: int) -> Excerpt:
    """An excerpt within `most` characters: half for each part, more for one where the other is shorter."""
    room = min(PART_CHARACTERS, max(most // 2, most - len(text.response)))
    prompt = visible(text.prompt[:room])
    response = visible(text.response[: min(PART_CHARACTERS, max(0, most - min(room, len(text.prompt))))])
    return Excerpt(prompt, response, text.prompt_chars, text.response_chars)


def allowance(lengths: np.ndarray, total: int) -> int:
    """The greatest c for which min(length, c) over all rows adds up to at most `total`; 2 parts at most."""
    ceiling = 2 * PART_CHARACTERS
    order = np.sort(np.minimum(np.asarray(lengths, np.int64), ceiling))
    if int(order.sum()) <= total:
        return ceiling
    before = np.concatenate([[0], np.cumsum(order)[:-1]])
    room = (total - before) // np.arange(len(order), 0, -1)
    return max(16, int(room[np.flatnonzero(room < order)[0]]))


@dataclass(frozen=True)
class Rows:
    """Every row that some subset holds, once. `number`: those of each view; `most`: characters shown."""

    columns: dict[str, list[Any]]
    number: dict[str, np.ndarray]
    most: int
    cut: int  # rows of which less than all is shown


def rows_of(views: Sequence[View], names: dict[str, int]) -> Rows:
    """Rows of all views with their texts; `names` numbers the sources."""
    pools = {view.pool.digest: view.pool for view in views}
    positions = {
        name: np.unique(np.concatenate([view.positions for view in views if view.pool is pool]))
        for name, pool in pools.items()
    }
    lengths = np.concatenate([np.asarray(pools[name].chars)[at] for name, at in positions.items()])
    most = allowance(lengths, TEXT_CHARACTERS)
    texts = [excerpt(turns, most) for name, at in positions.items() for turns in pools[name].messages_at(at)]
    size = sum(len(text.prompt.encode()) + len(text.response.encode()) for text in texts)
    if size > TEXT_BYTES:
        most = max(16, int(most * TEXT_BYTES / size))
        texts = [shortened(text, most) for text in texts]
    digits = 32 if len(texts) <= WHOLE_IDS else 16
    columns: dict[str, list[Any]] = {
        "id": [
            digest[:digits]
            for name, at in positions.items()
            for digest in hex_ids(pools[name].id_bytes[at]).tolist()
        ],
        "source": [
            names[pools[name].source_names[code]]
            for name, at in positions.items()
            for code in np.asarray(pools[name].source_codes[at]).tolist()
        ],
        "prompt": [text.prompt for text in texts],
        "response": [text.response for text in texts],
        "prompt_chars": [text.prompt_chars for text in texts],
        "response_chars": [text.response_chars for text in texts],
    }
    first, number = 0, {}
    for name, at in positions.items():
        for view in views:
            if view.pool is pools[name]:
                number[view.key] = first + np.searchsorted(at, view.positions)
        first += len(at)
    cut = sum(text.prompt_chars + text.response_chars > most or _long(text) for text in texts)
    return Rows(columns, number, most, cut)


def _long(text: Excerpt) -> bool:
    return max(text.prompt_chars, text.response_chars) > PART_CHARACTERS


def queries_of(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Query rows as the page shows them."""
    sizes = np.array([sum(len(content) for _, content in query.messages) for query in queries], np.int64)
    most = allowance(sizes, QUERY_CHARACTERS)
    return [
        {"task": visible(query.task), "row": query.number, **vars(excerpt(query.messages, most))}
        for query in queries
    ]


def rounded(values: np.ndarray) -> list[float | None]:
    """Numbers with six significant digits, null where they are not finite."""
    return [
        float(f"{value:.6g}") if finite else None
        for value, finite in zip(values.tolist(), np.isfinite(values).tolist(), strict=True)
    ]


def embedded(name: str, value: Any) -> Markup:
    """A script element that holds `value` as JSON; gzip in base64 where it is large."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if len(text) <= PLAIN_BYTES:
        safe = text.translate(_ESCAPED)
        return Markup(f'<script type="application/json" id="{name}">{safe}</script>')
    packed = base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
    return Markup(f'<script type="application/json" id="{name}" data-packed="gzip">{packed}</script>')
