"""`tamis report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def run(selections: Sequence[Path], out: Path | None, quiet: bool, as_json: bool) -> None:
    """Write the report of the selections in these folders and name it."""
    from tamis.study.report import report

    made = report(list(selections), out)
    if as_json:
        found = {
            "report": str(made.path),
            "subsets": made.subsets,
            "rows": made.rows,
            "bytes": made.size_bytes,
        }
        print(json.dumps(found))
    elif not quiet:
        print(f"report of {made.subsets} subsets, {made.rows:,} rows: {made.path}")
