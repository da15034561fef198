"""`tamis represent`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tamis.cli.reading import read

if TYPE_CHECKING:
    from tamis.study.signals import Settings


def run(
    method: str,
    paths: Sequence[str],
    maps: Sequence[str] | None,
    skip_bad_rows: bool,
    settings: Sequence[str],
    role: str,
    shard: str | None,
    options: Settings,
    as_json: bool,
) -> None:
    """Encode a pool and report the stored thing, its statuses and what it cost."""
    from tamis.core import status as statuses
    from tamis.core.cost import totals
    from tamis.core.errors import RequestError
    from tamis.core.shards import parse_share
    from tamis.representations import REPRESENTATIONS, represent
    from tamis.study.strategies import parse_settings

    chosen = REPRESENTATIONS[method]
    if "model" in chosen.needs and options.model is None:
        raise RequestError(f"{method} needs --model PATH_OR_ID")
    if role not in ("pool", "query"):
        raise RequestError(f"--role {role!r}: expected 'pool' or 'query'")
    parameters = parse_settings(settings)
    for name in parameters:
        if name != method:
            raise RequestError(f"--set {name}.…: only parameters of {method!r} can be set here")
    share = parse_share(shard)
    pool = read(paths, maps, options.store, skip_bad_rows=skip_bad_rows, quiet=options.quiet)
    made = represent(
        pool,
        chosen,
        role=role,
        parameters=parameters.get(method, {}),
        share=share,
        **options.common(),
    )
    thing = made.thing
    spent = totals(options.store, {made.digest}).get(made.digest, {})
    if thing.state == "complete":
        facts = {"rows": len(pool), "status": statuses.counts(made.codes), "tokens": thing.summary["tokens"]}
    else:
        facts = {"rows": len(pool), "shards": thing.shards, "shards_missing": len(thing.missing())}
    found = {"digest": made.digest, "state": thing.state, **facts, "ledger": spent}
    found["execution"] = dict(made.execution)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    elif not options.quiet:
        for key, value in found.items():
            print(f"{key}: {value}")
