"""Numbers that were made elsewhere, matched to the rows of a pool by row id, or by position when asked.

An import can be kept under a name in the store (`imports/<name>.json`): the recipes of what was stored for
the pool and the queries, so that it can be used again when the files are gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.errors import RequestError, unknown_name
from tamis.core.files import read_json, write_json

_HEX_DIGITS = 32
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Rules:
    """How rows meet: `by_position` instead of by id; whether ids that the pool lacks are left out, and
    whether the first of repeated ids is taken, where either is an error otherwise."""

    by_position: bool = False
    allow_unknown: bool = False
    allow_repeated: bool = False


@dataclass(frozen=True)
class Match:
    """`row` (n,) int64: the file's row for each row of the pool, -1 for none. Counts: `file_rows`, `matched`
    and `missing` rows of the pool, `unknown` ids of the file, `repeated` rows of it beyond the first."""

    row: np.ndarray
    file_rows: int
    matched: int
    missing: int
    unknown: int
    repeated: int

    @property
    def counts(self) -> dict[str, int]:
        names = ("file_rows", "matched", "missing", "unknown", "repeated")
        return {name: getattr(self, name) for name in names}


def matched(pool: np.ndarray, ids: np.ndarray | None, rows: int, rules: Rules, what: str) -> Match:
    """Rows of a file for the pool's ids (n,) '<U32'. `ids` (rows,) are the file's, None by position.

    Raises RequestError, with the counts, for lengths that disagree, ids that are none, that the pool lacks,
    or that are repeated. A row id may stand in the pool more than once (query sets).
    """
    if ids is None:
        return _by_position(len(pool), rows, rules, what)
    if len(ids) != rows:
        raise RequestError(f"{what}: {rows} rows, but {len(ids)} ids")
    own, other = _keys(pool, "the pool"), _keys(ids, what)
    order = np.argsort(other, kind="stable")
    ranked = other[order]
    repeated = int((ranked[1:] == ranked[:-1]).sum())
    at = np.searchsorted(ranked, own, side="left")  # of equal ids the first, for the sort is stable
    found = (at < len(ranked)) & (ranked[np.minimum(at, max(len(ranked) - 1, 0))] == own if rows else False)
    row = np.full(len(own), -1, np.int64)
    row[found] = order[at[found]]
    unknown = rows - int(np.isin(other, own).sum())
    made = Match(row, rows, int(found.sum()), int((~found).sum()), unknown, repeated)
    if not made.matched and len(own):
        raise RequestError(
            f"{what}: none of its {rows} ids is a row of this pool; row ids are hashes of a conversation's "
            "turns, as in `selection.parquet` or `tamis.read_pool(…).ids`"
        )
    for count, allowed, option, words in (
        (unknown, rules.allow_unknown, "allow_unknown", "ids are not in the pool"),
        (repeated, rules.allow_repeated, "allow_repeated", "ids repeat earlier ones"),
    ):
        if count and not allowed:
            raise RequestError(
                f"{what}: {count} of {rows} {words} ({made.counts}); to go on without them: {option}=true, "
                f"or --{option.replace('_', '-')} of `tamis import`"
            )
    return made


def _by_position(pool: int, rows: int, rules: Rules, what: str) -> Match:
    if not rules.by_position:
        raise RequestError(f"{what}: give the ids of its rows, or say that they are in the pool's order")
    if rows != pool:
        raise RequestError(
            f"{what}: {rows} rows, but {pool} rows in the pool or query set, in which exact duplicates of a "
            "pool are merged; only equal numbers can be matched by position, so give the ids of the rows"
        )
    return Match(np.arange(rows), rows, rows, 0, 0, 0)


def _keys(ids: np.ndarray, what: str) -> np.ndarray:
    """Ids as 16 bytes each, which sort and compare fast; raises RequestError for what is no row id."""
    texts = [str(text).strip().lower() for text in ids.tolist()]
    try:
        if any(len(text) != _HEX_DIGITS for text in texts):
            raise ValueError
        packed = bytes.fromhex("".join(texts))
        return np.frombuffer(packed, dtype="S16") if packed else np.zeros(0, "S16")
    except ValueError:
        wrong = next(i for i, text in enumerate(texts) if not re.fullmatch(r"[0-9a-f]{32}", text))
        raise RequestError(
            f"{what}: {texts[wrong][:40]!r} (row {wrong}) is no row id of tamis, which has 32 hex digits"
        ) from None


def read_ids(path: Path) -> np.ndarray:
    """Ids of a file: .npy of texts, .json list, .parquet with a column `id`, else one id a line."""
    if not path.is_file():
        raise RequestError(f"{path}: no such file of ids")
    try:
        if path.suffix == ".npy":
            stored: np.ndarray = np.load(path, allow_pickle=False)
            return stored.astype(str).reshape(-1)
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return np.array(pq.read_table(path, columns=["id"])["id"].to_pylist(), dtype=str)
        text = path.read_text(encoding="utf-8")
        listed = json.loads(text) if path.suffix == ".json" else text.split()
        return np.array(listed, dtype=str).reshape(-1)
    except (ValueError, OSError, KeyError) as error:
        raise RequestError(f"{path}: not a file of ids: {error}") from error


def keep_name(store: str | Path, name: str, record: Mapping[str, Any]) -> Path:
    """Write what `name` stands for; a name that stands for something else already is refused."""
    path = _name_file(store, name)
    if path.exists() and read_json(path) != dict(record):
        raise RequestError(f"--name {name}: taken by another import ({path}); choose another, or remove that")
    write_json(path, dict(record))
    return path


def named(store: str | Path, name: str) -> dict[str, Any]:
    """What `keep_name` wrote; raises RequestError for a name that is not there."""
    path = _name_file(store, name)
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.json"))
        raise unknown_name(f"import in {store}", name, known)
    found: dict[str, Any] = read_json(path)
    return found


class Kept:
    """An import that is kept in the store under a name: its recipe, for the files may be gone.

    `kind`: "representation" or "scores"; `role`: "pool" or "query". In place of an encoder or a scorer: what
    is stored under the recipe is read, and nothing can be made.
    """

    flops_per_token = 0.0
    execution: Mapping[str, Any] = {}

    def __init__(self, store: str | Path, name: str, kind: str, role: str = "pool") -> None:
        record = named(store, name)
        sides = record["made_by"] if record["kind"] == kind else {}
        if role not in sides:
            raise RequestError(
                f"import {name!r} holds no {kind} of the {'queries' if role == 'query' else 'pool'}; it has "
                f"{record['kind']} of: {', '.join(record['made_by'])}"
            )
        self.name = name
        self.recipe: dict[str, Any] = sides[role]
        self.dimensions = int(record.get("dimensions", 0))

    def match(self, ids: np.ndarray) -> dict[str, int]:
        """Called only for what is not stored."""
        raise RequestError(
            f"import {self.name!r}: not made for these rows, or gone from this store; repeat `tamis import` "
            f"for them ({len(ids)} rows)"
        )

    def _nothing(self, *given: Any) -> Any:
        raise RequestError(f"import {self.name!r}: its files are not read again; repeat `tamis import`")

    rows = encode = score = _nothing


def _name_file(store: str | Path, name: str) -> Path:
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise RequestError(f"name {name!r}: letters, digits, '_', '-' and '.' only")
    return Path(store) / "imports" / f"{name}.json"
