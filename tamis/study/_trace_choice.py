"""Why a stored selection kept a row or did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core import status as statuses
from tamis.core.files import read_json
from tamis.core.similarity import Similarity
from tamis.core.store import Store, Thing
from tamis.pools.pool import Pool
from tamis.representations import REPRESENTATIONS, Representation
from tamis.scores import SCORES
from tamis.scores.score import Scores
from tamis.selections import SELECTIONS, choose_ranked
from tamis.study.signals import compared
from tamis.study.stored import StoredSubset
from tamis.study.strategies import WARMED

RANKED = ("top-k", "gumbel-top-k", "doubly-greedy", "round-robin", "random", "random-balanced")
"""Selections whose whole order is quick to repeat, so that the rank of a row that was not chosen is exact."""
RANKED_CELLS = 20_000_000
"""Most similarities that are looked at again for it."""
_TEXT = 400


def subset_facts(root: Path, pool: Pool, position: int, subset: StoredSubset) -> dict[str, Any]:
    """Whether and how the row at `position` was chosen in a stored subset, or why not, as JSON."""
    found: dict[str, Any] = {
        "digest": subset.digest, "strategy": subset.strategy, "budget": subset.budget, "seed": subset.seed,
        "rows": len(subset.positions),
    }  # fmt: skip
    at = np.flatnonzero(subset.positions == position)
    if len(at):
        rank = int(at[0])
        found |= {"chosen": True, "rank": rank, "score": _number(subset.score[rank])}
        query = int(subset.query[rank])
        if subset.task[rank]:
            found["task"] = subset.task[rank]
        if query >= 0:
            found["query"] = {"row": query, **_query_text(root, subset, subset.task[rank], query)}
        return found
    return {**found, "chosen": False, **_why_not(root, pool, position, subset)}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _why_not(root: Path, pool: Pool, position: int, subset: StoredSubset) -> dict[str, Any]:
    last = _number(subset.score[-1]) if len(subset.score) else None
    if dropped := _dropped(root, pool, position, subset):
        return {"reason": "dropped before the selection", "detail": dropped}
    rows = _rows_signal(root, pool, subset)
    if rows is not None:
        code = int(rows.codes[position])
        if not statuses.scored(np.array([code]))[0]:
            shown = {"reason": "not usable", "detail": statuses.STATUSES[code]}
            return {**shown, "signal": rows.digest}
    vectors = subset.recipe["strategy"].get("vectors")
    beside = _thing(root, "representation", subset.signals[1]) if vectors else None
    if beside is not None:
        code = int(beside.joined("status")[position])
        if not statuses.scored(np.array([code]))[0]:
            return {
                "reason": "not usable",
                "detail": f"no {vectors['method']} vector: {statuses.STATUSES[code]}",
                "signal": beside.digest,
            }
    found: dict[str, Any] = {"reason": "below the budget", "last_chosen_score": last}
    if subset.budget.isdecimal() and len(subset.positions) < int(subset.budget):
        found = {"reason": f"the selection ended at {len(subset.positions)} rows without it"}
    if _shortlisted(root, pool, subset):
        found["reason"] += ", or is not on the shortlist that the first checkpoint makes"
    source = _source(root, pool, subset, rows)
    if isinstance(source, Similarity):
        similar = source.columns(np.array([position]))[:, 0]
        best = int(np.argmax(similar))
        task, row = _query_of(root, subset, best)
        found |= {"best_similarity": _number(similar[best]), "mean_similarity": _number(similar.mean())}
        found["query"] = {"task": task, "row": row, **_query_text(root, subset, task, row)}
    elif source is not None:
        found["score"] = _number(source[position])
    return found | _rank(root, pool, position, subset, source, rows)


# --- the signal it was chosen by -------------------------------------------------------------------------


def _thing(root: Path, kind: str, digest: str) -> Thing | None:
    path = root / kind / digest / "meta.json"
    if not path.exists():
        return None
    recipe = read_json(path)["recipe"]
    from tamis.core.store import shard_bounds

    return Store(root).open(kind, recipe, len(shard_bounds(recipe["rows"], recipe.get("shard_rows"))))


def _rows_signal(root: Path, pool: Pool, subset: StoredSubset) -> Representation | Scores | None:
    """The pool's stored signal of a subset; None for random draws and for what is gone."""
    described = subset.recipe["strategy"].get("signal")
    if described is None or not subset.signals:
        return None
    name, parameters = described["method"], described["parameters"]
    for kind, family in (("representation", REPRESENTATIONS), ("scores", SCORES)):
        thing = _thing(root, kind, subset.signals[0]) if name in family else None
        if thing is not None:
            method, config = family[name], family[name].configure(parameters)
            if kind == "scores":
                derive = None if method.derive is None else partial(method.derive, config)
                return Scores(method, config, thing, pool.ids, {}, derive)
            whole = Representation(method, config, thing, pool.ids, {})
            others = [one for one in _pool_parts(root, subset) if one.recipe["pool"] == pool.digest]
            parts = [Representation(method, config, one, pool.ids, {}) for one in others]
            return replace(whole, parts=tuple(parts)) if parts else whole
    return None


def _pool_parts(root: Path, subset: StoredSubset) -> list[Thing]:
    """Where a signal is a sum over checkpoints, the pool's side at each; empty for all others."""
    described = subset.recipe["strategy"].get("signal")
    if described is None or described["method"] not in WARMED:
        return []
    found = [_thing(root, "representation", digest) for digest in subset.signals]
    return [one for one in found if one is not None and one.recipe["made_by"]["renderer"]["role"] == "pool"]


def _shortlisted(root: Path, pool: Pool, subset: StoredSubset) -> bool:
    """Whether some of the pool's rows only were looked at."""
    return any(part.recipe["pool"] != pool.digest for part in _pool_parts(root, subset))


def _source(root: Path, pool: Pool, subset: StoredSubset, rows: Representation | Scores | None) -> Any:
    """What the selection looked at: a similarity, scores (n,), or None."""
    if rows is None or isinstance(rows, Scores):
        return None if rows is None else rows.values
    if rows.parts:
        return None  # the weights of the checkpoints and the groups of queries are not in the store
    asked = [_thing(root, "representation", digest) for digest in subset.signals[1:]]
    if not asked or None in asked:
        return None
    ids = np.zeros(0, "<U32")
    queries = [
        Representation(rows.method, rows.config, thing, ids, {}) for thing in asked if thing is not None
    ]
    return compared(queries, rows)


def _query_sizes(root: Path, subset: StoredSubset) -> list[tuple[str, int]]:
    """Tasks with the number of their query rows, in the order of the signals."""
    sizes = []
    for task, digest in zip(subset.recipe["queries"], subset.signals[1:], strict=False):
        thing = _thing(root, "representation", digest)
        sizes.append((str(task), 0 if thing is None else int(thing.recipe["rows"])))
    return sizes


def _query_of(root: Path, subset: StoredSubset, number: int) -> tuple[str, int]:
    """Task and row of the `number`-th query row of all."""
    for task, size in _query_sizes(root, subset):
        if number < size:
            return task, number
        number -= size
    return "", number


def _query_text(root: Path, subset: StoredSubset, task: str, row: int) -> dict[str, Any]:
    """Id and text of a query row, while its set is in the store."""
    pool = _pool_named(root, subset.recipe["queries"].get(task, ""))
    if pool is None or not 0 <= row < len(pool):
        return {}
    found = pool.row(row)
    text = " | ".join(message.content for message in found.messages)
    return {"id": found.id, "text": text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"}


def _pool_named(root: Path, digest: str) -> Pool | None:
    """The stored pool with this name of its content."""
    for kind, name, state in Store(root).things():
        if kind == "pool" and state == "complete":
            pool = _opened(root / kind / name)
            if pool.digest == digest:
                return pool
    return None


@lru_cache(maxsize=64)
def _opened(folder: Path) -> Pool:
    return Pool(folder)


# --- dropped, or ranked ----------------------------------------------------------------------------------


def _dropped(root: Path, pool: Pool, position: int, subset: StoredSubset) -> str | None:
    """What hygiene dropped the row for, None when it did not."""
    asked = subset.recipe.get("hygiene")
    if not asked:
        return None
    found = _examined(root, pool, subset, asked)
    if found is None or found.keep[position]:
        return None
    for kind, marked in found.marked.items():
        if marked[position]:
            return f"it holds text of a {kind} row"
    return "it is a near duplicate of an earlier row"


def _examined(root: Path, pool: Pool, subset: StoredSubset, asked: Mapping[str, Any]) -> Any:
    """The checks of a selection as they are stored; None when a test or query set is gone from the store."""
    from tamis.study.hygiene import Hygiene, configured, examine
    from tamis.study.signals import Settings

    near = {key: value for key, value in asked.get("dedup", {}).items() if key != "kind"}
    match = {key: value for key, value in asked.get("decontaminate", {}).items() if key != "mode"}
    checks, _ = configured({"near-duplicates": near, "contamination": match})
    tests = {name: _pool_named(root, digest) for name, digest in asked.get("tests", {}).items()}
    queries = {name: _pool_named(root, digest) for name, digest in subset.recipe["queries"].items()}
    if None in tests.values() or None in queries.values():
        return None
    hygiene = Hygiene(
        asked.get("dedup", {}).get("kind"),
        asked.get("decontaminate", {}).get("mode"),
        {name: test for name, test in tests.items() if test is not None},
        True,
        **checks,
    )
    given = {name: query for name, query in queries.items() if query is not None}
    return examine(pool, given, hygiene, Settings(store=root), None)


def _rank(
    root: Path,
    pool: Pool,
    position: int,
    subset: StoredSubset,
    source: Any,
    rows: Representation | Scores | None,
) -> dict[str, Any]:
    """Rank, from 0, and gain that the row would have in a larger budget: the selection is run to its end.

    Empty where that is not quick, or does not begin with the rows that are stored.
    """
    described = subset.recipe["strategy"]["selection"]
    name = described["method"]
    cells = (source.m if isinstance(source, Similarity) else 1) * len(pool)
    if name not in RANKED or cells > RANKED_CELLS or described["version"] != SELECTIONS[name].version:
        return {}
    if source is None and subset.recipe["strategy"].get("signal") is not None:
        return {}
    usable = np.ones(len(pool), bool) if rows is None else statuses.scored(rows.codes)
    if asked := subset.recipe.get("hygiene"):
        checked = _examined(root, pool, subset, asked)
        if checked is None:
            return {}
        usable &= checked.keep
    given: dict[str, Any] = {"ids": pool.ids, "usable": usable, "seed": subset.seed, "allow_underflow": True}
    sizes = _query_sizes(root, subset)
    if isinstance(source, Similarity) and len(sizes) > 1:
        given["task_of"] = np.repeat(np.arange(len(sizes)), [size for _, size in sizes])
    if "sources" in SELECTIONS[name].needs:
        given["sources"] = pool.sources
    if subset.recipe.get("within"):
        given["within"] = np.asarray(pool.source_codes)
    order = choose_ranked(name, source, int(usable.sum()), **given, **described["parameters"])
    if not np.array_equal(order.positions[: len(subset.positions)], subset.positions):
        return {}
    at = np.flatnonzero(order.positions == position)
    if not len(at):
        return {}
    gain = _number(order.gain[at[0]])
    return {"rank": int(at[0]), **({} if gain is None else {"score": gain})}
