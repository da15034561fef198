"""`tamis demo`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from tamis.cli.tables import console, table

if TYPE_CHECKING:
    from tamis.study.laboratory import Finding

STRATEGIES = (
    "random", "longest", "random-length-matched", "ngrams/top-k", "ngrams/round-robin",
    "rds/top-k", "rds/round-robin", "rds/doubly-greedy",
)  # fmt: skip


def run(out: Path, rows: int, seed: int, store: Path, quiet: bool, as_json: bool) -> None:
    """Write the laboratory, select for each of its skills, and show the share of the truth that was found."""
    # A model this small gains nothing from threads, and waits much for them where cores are shared.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tamis.lab import NANO, write_lab
    from tamis.pools.read import read_pool
    from tamis.study.laboratory import as_rows, shares, survey
    from tamis.study.signals import Settings
    from tamis.study.strategies import resolve

    start = time.monotonic()
    lab = out / "lab"
    write_lab(lab, rows=rows, seed=seed)
    pool = read_pool([lab / "pool.jsonl"], store=store)
    if not quiet:
        print(f"laboratory: {rows:,} rows, {len(pool):,} after merging duplicates, in {lab}", file=sys.stderr)
    settings = Settings(store=store, model=str(NANO), dtype="float32", quiet=quiet)
    findings = survey(pool, lab, resolve(STRATEGIES), settings, seed)
    (out / "found.json").write_text(json.dumps(as_rows(findings), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps({"shares": shares(findings), "findings": as_rows(findings)}))
    else:
        _show(findings, out, time.monotonic() - start)


def _show(findings: list[Finding], out: Path, seconds: float) -> None:
    from tamis.study.laboratory import shares

    screen = console()
    found = shares(findings)
    made = table(
        "Share of each skill's rows found, from 12 examples of the skill (budget = the skill's rows)",
        "skill",
        "rows",
        *STRATEGIES,
    )
    rows = {finding.skill: finding.budget_rows for finding in findings}
    for skill, by_strategy in found.items():
        made.add_row(skill, str(rows[skill]), *(_cell(by_strategy[name]) for name in STRATEGIES))
    means = [sum(row[name] for row in found.values()) / len(found) for name in STRATEGIES]
    made.add_row(Text("mean", style="bold"), "", *(_cell(mean) for mean in means))
    screen.print(made)
    screen.print(
        "\nrandom is what choosing nothing in particular finds; longest and its length-matched control know "
        "nothing of the target.\nNext: tamis select --pool YOUR.jsonl --query NAME=EXAMPLES.jsonl "
        "--strategy ngrams/round-robin --budget 500 --out chosen"
    )
    screen.print(f"{seconds:.0f} s; every number is in {out / 'found.json'}")


def _cell(share: float) -> Text:
    style = "green" if share >= 0.8 else "" if share >= 0.3 else "dim"
    return Text(f"{share:.0%}", style=style)
