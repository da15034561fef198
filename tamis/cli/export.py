"""`tamis export`."""

from __future__ import annotations

import json
from pathlib import Path

from tamis.core.errors import RequestError


def run(subset: Path, to: str, out: Path, quiet: bool, as_json: bool) -> None:
    """Write the subset in `subset` (a folder that `select` wrote) to `out` as format `to`."""
    from tamis.pools.export import FORMATS, export
    from tamis.study.subset import read_chosen

    if to not in FORMATS:
        raise RequestError(f"--to {to!r}: expected one of {', '.join(FORMATS)}")
    chosen = read_chosen(subset)
    export(chosen.pool, chosen.positions, chosen.columns, to, out)
    result = {"rows": len(chosen.positions), "format": to, "out": str(out)}
    if as_json:
        print(json.dumps(result))
    elif not quiet:
        print(f"{len(chosen.positions):,} rows written to {out} as {to}")
