"""Import: signals of others, matched to a pool and kept in the store under a name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.core import status as statuses
from tamis.core.errors import RequestError
from tamis.core.outside import keep_name
from tamis.representations import REPRESENTATIONS, represent
from tamis.representations._context import Context
from tamis.scores import SCORES
from tamis.scores.score import score

if TYPE_CHECKING:
    from tamis.pools.pool import Pool


def import_vectors(
    pool: Pool,
    queries: Mapping[str, Pool],
    parameters: Mapping[str, Any],
    name: str,
    store: str | Path = ".tamis",
) -> dict[str, Any]:
    """Store the vectors of `pool`, and of `queries` where `parameters` names theirs, under `name`.

    `parameters` are those of the representation `import`. Returns counts of the matching, rows by status and
    digests, by side. Everything is matched before anything is stored.
    """
    method = REPRESENTATIONS["import"]
    config = method.configure(parameters)
    if queries and not config.query:
        raise RequestError("the queries have no vectors: give --query-vectors FILE, or leave --query out")
    if config.query and not queries:
        raise RequestError("vectors of queries were given, but no queries: give --query NAME=PATH")
    sides = {"pool": method.run(config, Context(role="pool", store=store))}
    if queries:
        sides["query"] = method.run(config, Context(role="query", store=store))
    facts: dict[str, Any] = {"pool": {"matched": sides["pool"].match(pool.ids)}}
    for task, query in queries.items():
        facts[f"query {task}"] = {"matched": sides["query"].match(query.ids)}
    record = {
        "kind": "representation",
        "made_by": {role: side.recipe for role, side in sides.items()},
        "dimensions": sides["pool"].dimensions,
    }
    common: dict[str, Any] = {"parameters": dict(parameters), "store": store}
    _note(facts["pool"], represent(pool, method, **common))
    for task, query in queries.items():
        _note(facts[f"query {task}"], represent(query, method, role="query", **common))
    keep_name(store, name, record)
    return {"name": name, "kind": "representation", "dimensions": record["dimensions"], **facts}


def import_scores(
    pool: Pool, parameters: Mapping[str, Any], name: str, store: str | Path = ".tamis"
) -> dict[str, Any]:
    """Store the scores of `pool` that `parameters` (of the score `import-score`) name, under `name`."""
    method = SCORES["import-score"]
    scorer = method.run(method.configure(parameters), Context(store=store))
    side: dict[str, Any] = {"matched": scorer.match(pool.ids)}
    made = score(pool, method, parameters=dict(parameters), store=store)
    _note(side, made)
    keep_name(store, name, {"kind": "scores", "made_by": {"pool": scorer.recipe}})
    return {"name": name, "kind": "scores", "pool": side}


def _note(side: dict[str, Any], made: Any) -> None:
    side |= {"rows": len(made), "status": statuses.counts(made.codes), "digest": made.digest}
