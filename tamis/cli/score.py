"""`tamis score`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tamis.cli.reading import mapping_of, named_paths, read

if TYPE_CHECKING:
    from tamis.study.signals import Settings

_BAR = 40


def run(
    method: str,
    paths: Sequence[str],
    maps: Sequence[str] | None,
    skip_bad_rows: bool,
    settings: Sequence[str],
    shard: str | None,
    options: Settings,
    as_json: bool,
    query: Sequence[str] = (),
) -> None:
    """Score a pool and report statuses, distribution, best and worst rows, and what it cost."""
    from tamis.core.cost import totals
    from tamis.core.errors import RequestError
    from tamis.core.shards import parse_share
    from tamis.scores import SCORES
    from tamis.scores.score import score
    from tamis.study.score_facts import score_facts
    from tamis.study.select import read_query
    from tamis.study.strategies import parse_settings

    chosen = SCORES[method]
    if query and "query" not in chosen.needs:
        raise RequestError(f"{method} looks at no target: leave --query out")
    parameters = parse_settings(settings)
    for name in parameters:
        if name != method:
            raise RequestError(f"--set {name}.…: only parameters of {method!r} can be set here")
    share = parse_share(shard)
    pool = read(paths, maps, options.store, skip_bad_rows=skip_bad_rows, quiet=options.quiet)
    named = named_paths(query) if "query" in chosen.needs else {}
    queries = {name: read_query(path, mapping_of(maps), options.store) for name, path in named.items()}
    made = score(
        pool, chosen, parameters=parameters.get(method, {}), queries=queries, share=share, **options.common()
    )
    thing = made.thing
    found: dict[str, Any] = {"digest": made.digest, "state": thing.state}
    if thing.state == "complete":
        found |= score_facts(pool, made)
    else:
        found |= {"rows": len(pool), "shards": thing.shards, "shards_missing": len(thing.missing())}
    spent = totals(options.store, {made.digest, *made.before})
    found["ledger"] = spent.get(made.digest, {})
    found["before"] = {digest: spent.get(digest, {}) for digest in made.before}
    found["execution"] = dict(made.execution)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    elif not options.quiet:
        _show(method, found)


def _show(method: str, found: dict[str, Any]) -> None:
    from rich.text import Text

    from tamis.cli.tables import console, table

    screen = console()
    status = ", ".join(f"{count:,} {word}" for word, count in found.get("status", {}).items())
    screen.print(f"{method}: {found['rows']:,} rows, {status or found['state']}; stored as {found['digest']}")
    if replies := found["execution"].get("replies"):
        screen.print("replies: " + ", ".join(f"{count:,} {word}" for word, count in replies.items()))
    if "histogram" not in found:
        return
    edges, counts = found["histogram"]["edges"], found["histogram"]["rows"]
    shown = table("distribution", "from", "to", "rows", "")
    for low, high, rows in zip(edges, edges[1:], counts, strict=False):
        bar = "█" * round(_BAR * rows / max(counts))
        shown.add_row(f"{low:.4g}", f"{high:.4g}", f"{rows:,}", Text(bar, justify="left"))
    screen.print(shown)
    related = found["length_correlation"]
    screen.print(
        f"{found['different']:,} different values; rank correlation with length in characters "
        f"{'none' if related is None else format(related, '.2f')}"
    )
    for warning in found["warnings"]:
        screen.print(Text(f"warning: {warning}", style="yellow"))
    for end in ("best", "worst"):
        rows = table(end, "id", "source", "score", "text")
        for row in found[end]:
            text = Text(row["text"], justify="left")
            rows.add_row(row["id"][:12], Text(row["source"]), f"{row['score']:.4g}", text)
        screen.print(rows)
