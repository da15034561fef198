"""What is wrong with rows before any selection: near duplicates, and text of tests or queries in the pool.

Checks run when they are asked for; rows are dropped only when that is asked for, and counted. Test rows among
the query rows are an error unless it is allowed, for then the target was picked with its test in sight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.files import replacing
from tamis.pools import contamination, near_duplicates
from tamis.pools.contamination import PARTS, Matches
from tamis.pools.near_duplicates import NearDuplicates

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.study.signals import Settings, Signal
    from tamis.study.subset import Subset

METHODS = ("near-duplicates", "contamination")
"""Names that `--set` and `parameters` know besides those of strategies."""
NEAR_FILE, MATCH_FILE = "near_duplicates.jsonl", "contamination.jsonl"
_SHOWN = 3
_TEXT = 200


@dataclass(frozen=True)
class Hygiene:
    """What to check and what to do about it; `tests` are {name: rows that must not be trained on}."""

    dedup: str | None = None
    decontaminate: str | None = None
    tests: Mapping[str, Pool] = field(default_factory=dict)
    allow_leak: bool = False
    near: near_duplicates.Config = field(default_factory=near_duplicates.Config)
    match: contamination.Config = field(default_factory=contamination.Config)

    @property
    def mode(self) -> str | None:
        """`flag`, `drop` or None: tests that are given are looked for even if nothing else is asked."""
        return self.decontaminate or ("flag" if self.tests else None)

    def check_words(self) -> None:
        """Raise RequestError for values that are none of the known ones."""
        if self.dedup not in (None, "near"):
            raise RequestError(
                f"--dedup {self.dedup!r}: expected 'near' (exact duplicates are merged always)"
            )
        if self.decontaminate not in (None, "flag", "drop"):
            raise RequestError(f"--decontaminate {self.decontaminate!r}: expected 'flag' or 'drop'")

    def check(self, queries: Mapping[str, Pool]) -> None:
        """Raise RequestError for what cannot be."""
        self.check_words()
        if self.decontaminate and not self.tests and not queries:
            raise RequestError(
                f"--decontaminate {self.decontaminate} compares the pool with tests and queries: "
                "give --test NAME=PATH"
            )
        for name, test in self.tests.items():
            if not len(test):
                raise RequestError(f"test {name!r} has no rows")

    def recipe(self) -> dict[str, Any]:
        """What of it can change a subset or its facts; empty when nothing is asked."""
        found: dict[str, Any] = {}
        if self.dedup:
            found["dedup"] = {"kind": self.dedup, **asdict(self.near)}
        if self.mode:
            found["decontaminate"] = {"mode": self.mode, **asdict(self.match)}
            found["tests"] = {name: test.digest for name, test in self.tests.items()}
            found["allow_leak"] = self.allow_leak
        return found


def configured(
    parameters: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """(`near` and `match` of `Hygiene`, the parameters of all other methods)."""
    found: dict[str, Any] = {}
    kinds: tuple[type, ...] = (near_duplicates.Config, contamination.Config)
    for name, key, kind in zip(METHODS, ("near", "match"), kinds, strict=True):
        given = parameters.get(name, {})
        known = [parameter.name for parameter in fields(kind)]
        if unknown := set(given) - set(known):
            raise RequestError(f"{name} has no parameter {min(unknown)!r}; it has: {', '.join(known)}")
        try:
            found[key] = kind(**given)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{name}: {error}") from error
    return found, {name: given for name, given in parameters.items() if name not in METHODS}


@dataclass(frozen=True)
class Found:
    """What was found: rows to `keep` (n,), rows `marked` by the kind of text they hold, facts as JSON."""

    keep: np.ndarray
    marked: Mapping[str, np.ndarray]
    facts: dict[str, Any]
    digests: tuple[str, ...] = ()

    def masked(self, signal: Signal) -> Signal:
        """The signal without the dropped rows."""
        return signal if self.keep.all() else replace(signal, usable=signal.usable & self.keep)

    def tell(self, subsets: Sequence[Subset]) -> None:
        """Add what was found to the facts of subsets."""
        for subset in subsets:
            found = self.of(subset.positions)
            subset.facts["warnings"] += found.pop("warnings")
            subset.facts.update(found)

    def of(self, positions: np.ndarray) -> dict[str, Any]:
        """Facts of one subset: rows dropped from the pool, chosen rows that hold text of tests or queries."""
        held = {kind: int(rows[positions].sum()) for kind, rows in self.marked.items()}
        warnings = [
            f"{count} of the chosen rows hold text of a {kind} row (see {MATCH_FILE}): "
            + (
                "what is measured on it will be too good"
                if kind == "test"
                else "query rows found copies of themselves"
            )
            for kind, count in held.items()
            if count
        ]
        return {"dropped": self.facts["dropped"], "contaminated": held, "warnings": warnings}


def leaks(
    queries: Mapping[str, Pool], hygiene: Hygiene, settings: Settings, out: Path | None
) -> dict[str, Any]:
    """Test rows among the query rows: counts by query. Raises RequestError with their text unless allowed."""
    found: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    if hygiene.tests:
        for name, query in queries.items():
            tests = {f"test {test}": rows for test, rows in hygiene.tests.items()}
            matches = contamination.contamination(query, tests, settings.store, hygiene.match)
            if len(matches):
                found[name] = {"query_rows": len(np.unique(matches.row)), "of": len(query)}
                lines += matched_lines(query, tests, matches, hygiene, f"query {name}", set())
    if lines and not hygiene.allow_leak:
        if out is not None:
            _write(out / MATCH_FILE, iter(lines))
        raise RequestError(_leak_text(found, lines, out))
    return {"counts": found, "lines": lines}


def _leak_text(found: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], out: Path | None) -> str:
    counts = "; ".join(f"{n['query_rows']} of {n['of']} rows of query {name!r}" for name, n in found.items())
    shown = "\n".join(
        f"  {line['where']} row {line['row']}, {line['task']} row {line['target_row']}, {line['part']}, "
        f"{line['share']:.0%}: {line['text'][:_TEXT]!r}"
        for line in lines[:_SHOWN]
    )
    where = f" (all of them in {out / MATCH_FILE})" if out is not None else ""
    return (
        f"text of test rows is among the queries: {counts}\n{shown}\n"
        f"a subset chosen with them is measured on what it was chosen by; remove these rows, "
        f"or go on with --allow-leak{where}"
    )


def examine(
    pool: Pool,
    queries: Mapping[str, Pool],
    hygiene: Hygiene,
    settings: Settings,
    out: Path | None,
    leaked: Mapping[str, Any] | None = None,
) -> Found | None:
    """Run the checks that are asked for, write what they found below `out`; None when nothing is asked."""
    if not hygiene.recipe():
        return None
    keep = np.ones(len(pool), bool)
    facts: dict[str, Any] = {"dropped": {}}
    marked: dict[str, np.ndarray] = {}
    digests: list[str] = []
    if hygiene.mode:
        targets = {("test", name): test for name, test in hygiene.tests.items()}
        targets |= {("query", name): query for name, query in queries.items()}
        named = {f"{kind} {name}": target for (kind, name), target in targets.items()}
        matches = contamination.contamination(
            pool, named, settings.store, hygiene.match, quiet=settings.quiet
        )
        digests.append(matches.digest)
        facts["contamination"] = {"mode": hygiene.mode, "targets": target_facts(matches)}
        facts["contamination"]["leak"] = (leaked or {}).get("counts", {})
        for kind in ("test", "query"):
            mine = [i for i, name in enumerate(matches.targets) if name.startswith(f"{kind} ")]
            if mine:
                marked[kind] = np.zeros(len(pool), bool)
                marked[kind][matches.row[np.isin(matches.target, mine)]] = True
        if hygiene.mode == "drop":
            for kind, rows in marked.items():
                facts["dropped"][f"{kind}_text"] = int((rows & keep).sum())
                keep &= ~rows
        if out is not None:
            gone = set(np.flatnonzero(~keep).tolist())
            lines = matched_lines(pool, named, matches, hygiene, "pool", gone)
            _write(out / MATCH_FILE, chain((leaked or {}).get("lines", ()), lines))
    if hygiene.dedup:
        near = near_duplicates.near_duplicates(pool, settings.store, hygiene.near, settings.quiet)
        digests.append(near.digest)
        drop = dropped_near(near, keep)
        keep[drop] = False
        facts["dropped"]["near_duplicate"] = len(drop)
        facts["near_duplicates"] = dict(near.summary)
        if out is not None:
            _write(out / NEAR_FILE, near_lines(pool, near, set(drop.tolist())))
    facts["rows_left"] = int(keep.sum())
    return Found(keep, marked, facts, tuple(digests))


def dropped_near(near: NearDuplicates, keep: np.ndarray) -> np.ndarray:
    """Near duplicates to drop among the rows that are still kept: where the first row of a group is gone,
    the next one takes its place."""
    rows, of = near.rows[keep[near.rows]], near.of[keep[near.rows]]
    orphans = np.flatnonzero(~keep[of])
    _, first = np.unique(of[orphans], return_index=True)  # rows are in pool order
    spared = np.zeros(len(rows), bool)
    spared[orphans[first]] = True
    found: np.ndarray = rows[~spared]
    return found


def target_facts(matches: Matches) -> dict[str, Any]:
    """Of each target: its rows, those found in the pool, and the pool rows that hold them."""
    found = {}
    for i, name in enumerate(matches.targets):
        mine = matches.target == i
        found[name] = {
            **matches.summary[name],
            "rows_found": len(np.unique(matches.target_row[mine])),
            "pool_rows": len(np.unique(matches.row[mine])),
        }
    return found


def matched_lines(
    pool: Pool, targets: Mapping[str, Pool], matches: Matches, hygiene: Hygiene, where: str, gone: set[int]
) -> Iterator[dict[str, Any]]:
    """One line a match, with the text that they share."""
    sides = []
    for i, target in enumerate(targets.values()):
        rows = np.unique(matches.target_row[matches.target == i])
        sides.append(dict(zip(rows.tolist(), target.messages_at(rows), strict=True)))
    names = list(targets)
    held, turns = -1, []
    rows_in_order = pool.messages_at(np.unique(matches.row))
    for i in range(len(matches)):
        row, target_row, part = int(matches.row[i]), int(matches.target_row[i]), int(matches.part[i])
        if row != held:
            held, turns = row, next(rows_in_order)
        theirs = sides[matches.target[i]][target_row]
        yield {
            "where": where, "row": row, "id": str(pool.ids[row]), "source": str(pool.sources[row]),
            "task": names[matches.target[i]], "target_row": target_row, "part": PARTS[part],
            "share": round(float(matches.share[i]), 4), "dropped": row in gone,
            "text": contamination.excerpt(turns, theirs, part, hygiene.match),
        }  # fmt: skip


def near_lines(pool: Pool, near: NearDuplicates, gone: set[int]) -> Iterator[dict[str, Any]]:
    """One line a group, in pool order of the kept rows: the kept row, and each row that repeats it."""
    order = np.lexsort((near.rows, near.of))
    rows, of, similarity = near.rows[order], near.of[order], near.similarity[order]
    texts = pool.messages_at(rows)
    begins = np.flatnonzero(np.append(True, of[1:] != of[:-1])) if len(of) else of
    heads = pool.messages_at(of[begins])
    for first, last in zip(begins.tolist(), [*begins[1:].tolist(), len(of)], strict=True):
        line: dict[str, Any] = {"kept": _line(pool, int(of[first]), next(heads))}
        line["repeats"] = [
            {
                **_line(pool, int(rows[i]), next(texts)),
                "similarity": round(float(similarity[i]), 4),
                "dropped": int(rows[i]) in gone,
            }
            for i in range(first, last)
        ]
        yield line


def _line(pool: Pool, row: int, turns: Sequence[Any]) -> dict[str, Any]:
    text = " | ".join(turn.content for turn in turns)
    shown = text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
    return {"row": row, "id": str(pool.ids[row]), "source": str(pool.sources[row]), "text": shown}


def _write(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogatepass") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
