"""Trace: every stored thing that one row took part in, and why each selection kept it or did not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tamis.core import status as statuses
from tamis.core.errors import RequestError
from tamis.core.files import read_json
from tamis.core.store import Store, Thing, shard_bounds
from tamis.pools.identity import ID_BYTES
from tamis.pools.pool import Pool
from tamis.study._trace_choice import subset_facts
from tamis.study.stored import stored_subsets

SIGNALS = ("rendering", "representation", "scores")
_NEAR = 3
_LONG = 24  # digests are longer


def trace(prefix: str, store: str | Path) -> dict[str, Any]:
    """What the store knows of the row whose id begins with `prefix`, as JSON.

    `rows`: one entry for each place in each stored pool that holds it, with `signals` and `subsets`. Raises
    RequestError when no row or several different ones fit.
    """
    root = Path(store)
    pools = list(stored_pools(root))
    if not pools:
        raise RequestError(f"{root}: no pool is stored here; give the --store that `select` used")
    places = [(pool, role, int(at)) for pool, role in pools for at in pool.matching(prefix)]
    found = sorted({_id(pool, at) for pool, _, at in places})
    if not found:
        raise RequestError(_unknown(prefix, [pool for pool, _ in pools]))
    if len(found) > 1:
        shown = ", ".join(found[:_NEAR])
        raise RequestError(
            f"the id {prefix!r} begins {len(found)} ids of {root} ({shown}, …); write more digits"
        )
    return {"id": found[0], "rows": [_place(root, pool, role, at) for pool, role, at in places]}


def stored_pools(root: Path) -> Iterator[tuple[Pool, str]]:
    """Every complete pool of a store, with its role: pool, or rows kept apart as queries and tests are."""
    for kind, digest, state in Store(root).things():
        if kind == "pool" and state == "complete":
            recipe = read_json(root / kind / digest / "meta.json")["recipe"]
            apart = not recipe.get("merge_duplicates", True)
            yield Pool(root / kind / digest), "query or test set" if apart else "pool"


def _id(pool: Pool, position: int) -> str:
    return bytes(pool.id_bytes[position]).hex()


def _unknown(prefix: str, pools: Sequence[Pool]) -> str:
    rows = sum(len(pool) for pool in pools)
    near = ""
    for length in range(len(prefix.strip()) - 1, 1, -1):
        ids = sorted(
            {_id(pool, int(at)) for pool in pools for at in pool.matching(prefix.strip()[:length])[:_NEAR]}
        )
        if ids:
            near = f"; ids that begin alike: {', '.join(ids[:_NEAR])}"
            break
    return (
        f"the id {prefix!r} is of no row in this store ({rows:,} rows in {len(pools)} pools){near}. "
        "Ids stand in selection.parquet and in `tamis inspect POOL --row NUMBER`"
    )


# --- one place -------------------------------------------------------------------------------------------


def _place(root: Path, pool: Pool, role: str, position: int) -> dict[str, Any]:
    row = pool.row(position)
    return {
        "pool": pool.path.name,
        "role": role,
        "position": position,
        "source": row.source,
        "file": row.file,
        "line": row.line,
        "occurrences": _occurrences(pool, position) if row.count > 1 else [[row.file, row.line]],
        "messages": [message._asdict() for message in row.messages],
        "signals": [_signal(thing, position) for thing in stored_signals(root, pool)],
        "subsets": [subset_facts(root, pool, position, s) for s in stored_subsets(root, pool.digest)],
    }


def _occurrences(pool: Pool, position: int) -> list[list[Any]]:
    """(file, line) of every row that was merged into the one at `position`, that one first."""
    own = np.asarray(pool.id_bytes[position])
    meta = read_json(pool.path / "meta.json")["summary"]
    found: list[list[Any]] = []
    for number, name in enumerate(meta["shards"]):
        columns = np.load(pool.path / f"{number:05d}.columns.npy", mmap_mode="r")
        local = np.flatnonzero((columns["id"].reshape(-1, ID_BYTES) == own).all(axis=1))
        if len(local):
            table = pq.read_table(pool.path / name, columns=["file", "line"]).take(local)
            found += [
                [pool.files[file].path, line]
                for file, line in zip(table["file"].to_pylist(), table["line"].to_pylist(), strict=True)
            ]
    return found


def stored_signals(root: Path, pool: Pool) -> Iterator[Thing]:
    """Renderings, representations and scores of a pool, also those that are being made."""
    for kind, name, state in Store(root).things():
        if kind not in SIGNALS:
            continue
        complete = state == "complete"
        path = (
            root
            / kind
            / (name if complete else f"{name}.part")
            / ("meta.json" if complete else "recipe.json")
        )
        recipe = read_json(path)["recipe"]
        if recipe.get("pool") == pool.digest:
            shards = len(shard_bounds(recipe["rows"], recipe.get("shard_rows")))
            yield Store(root).open(kind, recipe, shards)


def _signal(thing: Thing, position: int) -> dict[str, Any]:
    recipe = thing.recipe
    made_by = recipe.get("made_by", {})
    found: dict[str, Any] = {
        "kind": thing.kind,
        "method": recipe.get("method"),
        "digest": thing.digest,
        "state": thing.state,
        "role": (made_by.get("renderer") or {}).get("role", "pool"),
        "parameters": {k: v for k, v in made_by.items() if isinstance(v, (str, int)) and len(str(v)) < _LONG},
    }
    bounds = shard_bounds(recipe["rows"], recipe.get("shard_rows"))
    shard = next(i for i, (_, stop) in enumerate(bounds) if position < stop)
    if thing.state != "complete" and shard in thing.missing():
        return {**found, "status": "not yet made"}
    at = position - bounds[shard][0]
    code = int(thing.array(shard, "status")[at])
    found["status"] = statuses.STATUSES[code]
    for name in ("tokens", "full_tokens", "supervised_tokens"):
        try:
            found[name] = int(thing.array(shard, name)[at])
        except FileNotFoundError:  # arrays differ by kind
            continue
    if reason := thing.reasons(shard).get(at):
        found["reason"] = reason
    # What several scores are derived from is no score yet; the subsets below say what it came to.
    if thing.kind == "scores" and "stored_as" not in made_by and statuses.scored(np.array([code]))[0]:
        found["value"] = float(thing.array(shard, "values")[at])
        if thing.state == "complete":
            found |= _rank(thing, position)
    return found


def _rank(thing: Thing, position: int) -> dict[str, int]:
    """Rank from 1 among the scored rows, ties to the smaller position."""
    values, good = thing.joined("values"), statuses.scored(thing.joined("status"))
    own = values[position]
    ahead = int((good & (values > own)).sum() + (good & (values == own))[:position].sum())
    return {"rank": ahead + 1, "of": int(good.sum())}
