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
    from tamis.core.cost import FIELDS, totals
    from tamis.core.errors import RequestError
    from tamis.core.shards import parse_share
    from tamis.representations import REPRESENTATIONS, represent
    from tamis.study.pre_experience import warmed
    from tamis.study.strategies import WARMED, parse_settings

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
    if method in WARMED:
        given = parameters.get(method, {})
        parameters[method], options = warmed(method, pool, given, options, role)
    made = represent(
        pool,
        chosen,
        role=role,
        parameters=parameters.get(method, {}),
        share=share,
        **options.common(),
    )
    things = [part.thing for part in made.parts] or [made.thing]
    booked = totals(options.store, set(made.digests))
    spent = {name: sum(one[name] for one in booked.values()) for name in FIELDS} if booked else {}
    if made.state == "complete":
        tokens = sum(thing.summary["tokens"] for thing in things)
        facts = {"rows": len(pool), "status": statuses.counts(made.codes), "tokens": tokens}
    else:
        missing = sum(len(thing.missing()) for thing in things)
        facts = {"rows": len(pool), "shards": sum(t.shards for t in things), "shards_missing": missing}
    digests = {"digest": made.digest} if len(things) == 1 else {"digests": list(made.digests)}
    found = {**digests, "state": made.state, **facts, "ledger": spent}
    found["execution"] = dict(made.execution)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    elif not options.quiet:
        for key, value in found.items():
            print(f"{key}: {value}")
