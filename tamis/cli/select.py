"""`tamis select`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tamis.cli.reading import mapping_of, named_paths, read, split_names

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.study.select import Request
    from tamis.study.signals import Settings


_LONG_S = 60.0


@dataclass(frozen=True)
class Given:
    """Arguments as given."""

    pool: Sequence[str]
    strategy: Sequence[str]
    budget: Sequence[str]
    out: Path
    query: Sequence[str]
    maps: Sequence[str] | None
    settings: Sequence[str]
    within: str | None
    seed: int
    skip_bad_rows: bool
    allow_underflow: bool
    as_json: bool
    report: bool
    test: Sequence[str] = ()
    dedup: str | None = None
    decontaminate: str | None = None
    allow_leak: bool = False
    exclude: Sequence[Path] = ()


def run(given: Given, options: Settings) -> None:
    """Check everything that can be checked, read, select, write, and show the facts."""
    from tamis.study.budget import parse_budget
    from tamis.study.hygiene import Hygiene, configured
    from tamis.study.select import Request, read_query
    from tamis.study.select import run as select
    from tamis.study.strategies import parse_settings, resolve

    checks, parameters = configured(parse_settings(given.settings))
    strategies = resolve(split_names(given.strategy), parameters)
    budgets = [parse_budget(text) for text in split_names(given.budget)]
    paths, test_paths = named_paths(given.query), named_paths(given.test, "--test")
    Hygiene(given.dedup, given.decontaminate).check_words()
    pool = read(given.pool, given.maps, options.store, skip_bad_rows=given.skip_bad_rows, quiet=options.quiet)
    mapping = mapping_of(given.maps)
    queries = {name: read_query(path, mapping, options.store) for name, path in paths.items()}
    tests = {name: read_query(path, mapping, options.store) for name, path in test_paths.items()}
    hygiene = Hygiene(given.dedup, given.decontaminate, tests, given.allow_leak, **checks)
    request = Request(
        strategies, budgets, queries, given.seed, given.within, given.allow_underflow, options,
        hygiene, given.exclude, given.report,
    )  # fmt: skip
    if not options.quiet:
        _announce(pool, request)
    subsets = select(pool, request, given.out)
    if given.as_json:
        manifest = (given.out / "manifest.json").read_text(encoding="utf-8")
        print(json.dumps(json.loads(manifest), ensure_ascii=False))
    elif not options.quiet:
        from tamis.cli.tables import show_subsets

        show_subsets(subsets, given.out)


def _announce(pool: Pool, request: Request) -> None:
    """Say how long it will take when that is long and can be known at no cost."""
    from tamis.cli.plan import announce
    from tamis.study.plan import expected

    request.check(pool)
    seconds, disk = expected(pool, request)
    if seconds > _LONG_S:
        announce(seconds, disk)
