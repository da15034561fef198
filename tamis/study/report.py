"""Reports of selections: one HTML file that needs no network, a short Markdown text, and the tables as CSV.

report.html     everything, with the rows; opens from the disk
report.md       the five answers, warnings and the overlap
tables/*.csv    subsets, sources, lengths, picks, overlap

They are made from what `select` wrote and from the pool in its store; no model runs. Equal selections give
equal bytes, but for the bill, which stands between <!--bill--> and <!--/bill--> in the page.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.files import write_bytes
from tamis.study._report_answers import answers
from tamis.study._report_charts import number, percent
from tamis.study._report_facts import Overlaps, Run, View, overlaps, read_runs, same_size_sources
from tamis.study._report_page import page
from tamis.study._report_text import visible

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Report:
    """Where a report was written and what is in it."""

    path: Path
    subsets: int
    rows: int
    size_bytes: int


def report(path: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Report:
    """Write the report of a selection, or of several side by side.

    `path`: folders that `select` wrote, or folders of single subsets below them. `out`: folder to write to;
    one whole selection is written into its own folder unless given. Raises `RequestError` for a folder that
    holds no finished selection, and when the pool is no longer in its store.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(given) for given in path]
    if not paths:
        raise RequestError("give the folder of at least one selection")
    runs = read_runs(paths)
    if out is None:
        if len(paths) > 1 or not (paths[0] / "manifest.json").exists():
            raise RequestError(
                "a report of several selections, or of a part of one, needs --out FOLDER to be written to"
            )
        out = paths[0]
    return write_report(runs, Path(out))


def write_report(runs: Sequence[Run], out: Path) -> Report:
    """Write the files of a report into `out`."""
    views = [view for run in runs for view in run.views]
    shared = overlaps(views)
    text = page(runs, shared).encode()
    write_bytes(out / "report.html", text)
    write_bytes(out / "report.md", _markdown(views, shared).encode())
    for name, rows in _tables(views, shared).items():
        write_bytes(out / "tables" / f"{name}.csv", _csv(rows).encode())
    return Report(out / "report.html", len(views), sum(map(len, views)), len(text))


def _markdown(views: Sequence[View], found: Overlaps) -> str:
    lines = ["# What was selected", ""]
    for view in views:
        lines += [f"## {_plain(view.label)}", ""]
        lines += [f"- **Warning:** {_plain(warning)}" for warning in view.entry["warnings"]]
        lines += [
            f"- {answer.question} **{_plain(answer.word)}** {_plain(answer.text)}" for answer in answers(view)
        ]
        lines.append("")
    lines += ["## Overlap", "", "Share of the rows also in the other subset; in brackets, by chance.", ""]
    lines += ["| subset | other | rows | share |", "|---|---|---|---|"]
    for i, view in enumerate(views):
        for j, column in enumerate(found.columns):
            if i != j:
                chance = (
                    f" ({percent(float(found.expected[i, j]))})" if np.isfinite(found.expected[i, j]) else ""
                )
                cells = [
                    view.label,
                    column,
                    number(int(found.shared[i, j])),
                    percent(float(found.share[i, j])) + chance,
                ]
                lines.append("| " + " | ".join(map(_plain, cells)) + " |")
    lines += ["", "Costs, digests and versions are in `manifest.json`.", ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", visible(str(text)).replace("\n", " "))


def _tables(views: Sequence[View], shared: Overlaps) -> dict[str, list[list[Any]]]:
    """Tables with their heads, every number unrounded."""
    subset = ["strategy", "budget", "seed", "selection"]
    found: dict[str, list[list[Any]]] = {
        "subsets": [[*subset, "rows", "tokens", "subset_to_query", "random_subset_to_query", "warnings"]],
        "sources": [[*subset, "source", "rows", "share", "pool_rows", "pool_share", "random_share"]],
        "lengths": [[*subset, "of", "unit", "quantile", "length"]],
        "picks": [[*subset, "task", "query", "rows", "chosen_by_it"]],
        "overlap": [[*subset, "other", "rows", "shared", "share", "expected_share"]],
    }
    for i, view in enumerate(views):
        entry = view.entry
        mine = [entry["strategy"], entry["budget"], entry["seed"], view.run.manifest["digest"]]
        near = entry.get("diagnostics") or {}
        draw = (near.get("random") or {}).get("subset_to_query")
        told = [entry["rows"], entry["tokens"], near.get("subset_to_query"), draw, len(entry["warnings"])]
        found["subsets"].append([*mine, *told])
        for row in same_size_sources(view):
            found["sources"].append([*mine, *(row[name] for name in found["sources"][0][4:])])
        found["lengths"] += [[*mine, *row] for row in _lengths(view)]
        if view.by_queries:
            asked = zip(view.run.queries, view.picks.tolist(), strict=True)
            found["picks"] += [[*mine, query.task, query.number, count, view.chose] for query, count in asked]
        for j, column in enumerate(shared.columns):
            if i != j:
                cells = (float(shared.share[i, j]), float(shared.expected[i, j]))
                found["overlap"].append([*mine, column, len(view), int(shared.shared[i, j]), *cells])
    return found


def _lengths(view: View) -> Iterator[list[Any]]:
    chars = np.asarray(view.pool.chars)
    parts = {"subset": chars[view.positions], "pool": chars, "random draw": chars[view.control]}
    for of, values in parts.items():
        if len(values):
            for quantile, value in zip(QUANTILES, np.quantile(values, QUANTILES).tolist(), strict=True):
                yield [of, "characters", quantile, value]


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if cell is None or cell != cell else _cell(cell) for cell in row])
    return file.getvalue()


def _cell(cell: Any) -> Any:
    return visible(cell) if isinstance(cell, str) else cell
