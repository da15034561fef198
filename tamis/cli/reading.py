"""What several verbs share: reading pools and queries as the command line names them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tamis.core.errors import RequestError

if TYPE_CHECKING:
    from tamis.pools.pool import Pool


def mapping_of(maps: Sequence[str] | None) -> str | None:
    """`--map` texts → what `read_pool` takes: one mapping file, or `field=column` texts joined."""
    if not maps:
        return None
    if len(maps) > 1 and any("=" not in text for text in maps):
        raise RequestError(f"--map {', '.join(maps)}: give one mapping file, or field=column texts")
    return ",".join(maps)


def read(
    paths: Sequence[str],
    maps: Sequence[str] | None,
    store: Path,
    *,
    skip_bad_rows: bool = False,
    quiet: bool = True,
) -> Pool:
    """Read a pool and say what was left out of it."""
    from tamis.pools.read import read_pool

    pool = read_pool(
        list(paths),
        map=mapping_of(maps),
        skip_bad_rows=skip_bad_rows,
        store=store,
        quiet=quiet,
    )
    if not quiet:
        rows = sum(report.rows for report in pool.files)
        bad = sum(report.bad_rows for report in pool.files)
        merged = rows - bad - len(pool)
        print(
            f"pool: {rows:,} rows in {len(pool.files)} files; {bad:,} bad, {merged:,} exact duplicates "
            f"merged, {len(pool):,} to choose from",
            file=sys.stderr,
        )
    return pool


def named_paths(texts: Sequence[str], flag: str = "--query") -> dict[str, str]:
    """`NAME=PATH` texts → {name: path}; a bare path is named by its stem."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).name.split(".")[0], text
        if not name or not path:
            raise RequestError(f"{flag} {text!r}: expected NAME=PATH")
        if name in found:
            raise RequestError(f"{flag}: the task {name!r} is given twice ({found[name]} and {path})")
        found[name] = path
    return found


def split_names(texts: Sequence[str]) -> list[str]:
    """Repeated and comma-separated names as one list."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]
