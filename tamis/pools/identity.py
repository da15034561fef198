"""The id of a row: a hash of its turns, so that equal conversations have one name in every file and format.

    id = BLAKE2b-128 of the UTF-8 bytes of the JSON list [role, content, role, content, …]

with every content stripped of white space at both ends (`str.strip`), no spaces between the elements and
only `"`, `\\` and control characters escaped. Roles are the four of tamis. The list is injective where
"role: content" lines are not: a content may itself hold a line that looks like a turn. Unicode is not
normalised: two spellings of a letter are two rows. Source, file and everything else of the row take no
part.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import orjson

ID_BYTES = 16


def row_id(turns: list[str]) -> bytes:
    """16 bytes that name the conversation `[role, content, …]`; contents are stripped first."""
    return text_id([text.strip() for text in turns])


def text_id(turns: list[str]) -> bytes:
    """16 bytes of the turns as they are; raises TypeError for text that UTF-8 cannot hold."""
    return blake2b(orjson.dumps(turns), digest_size=ID_BYTES).digest()


def hex_ids(ids: np.ndarray) -> np.ndarray:
    """Ids (n, 16) uint8 as text (n,) '<U32' of hex digits."""
    text = np.ascontiguousarray(ids).tobytes().hex()
    return np.frombuffer(text.encode("utf-32-le"), dtype="<U32") if text else np.empty(0, "<U32")


def first_occurrences(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (k,) int64 of the first of equal ids, in order, and how many there are of each (k,) int32.

    `ids` is (n, 16) uint8. Memory beside the result is about 24 bytes a row: only rows whose first 8 bytes
    meet are compared whole.
    """
    halves = np.ascontiguousarray(ids).view("<u8").reshape(len(ids), 2)
    high = halves[:, 0]
    order = np.argsort(high, kind="stable")
    ranked = high[order]
    meets = ranked[1:] == ranked[:-1]
    del ranked
    shared = np.zeros(len(ids), bool)
    shared[1:] = meets
    shared[:-1] |= meets
    rows = order[shared]
    del order, shared, meets
    rows = rows[np.lexsort((rows, halves[rows, 1], halves[rows, 0]))]
    begins = np.ones(len(rows), bool)
    begins[1:] = (halves[rows[1:]] != halves[rows[:-1]]).any(1)
    starts = np.flatnonzero(begins)
    counts = np.ones(len(ids), np.int32)
    counts[rows] = 0
    counts[rows[starts]] = np.diff(np.append(starts, len(rows)))
    kept = np.flatnonzero(counts).astype(np.int64)
    return kept, counts[kept]
