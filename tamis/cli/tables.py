"""Short tables about subsets, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tamis.study.subset import Subset

_SOURCES = 8
_OTHERS = 3


def console() -> Console:
    """Console for results (stdout)."""
    return Console(highlight=False)


def table(title: str, *columns: str) -> Table:
    """A plain table; columns but the first are right-aligned."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return made


def show_subsets(subsets: Sequence[Subset], out: Path) -> None:
    """One overview of all subsets, then sources and warnings of each."""
    screen = console()
    screen.print(_overview(subsets))
    if subsets and (dropped := subsets[0].facts.get("dropped")):
        counts = ", ".join(f"{rows:,} {reason.replace('_', ' ')}" for reason, rows in dropped.items())
        screen.print(f"\nrows of the pool dropped before any choice: {counts}")
    for subset in subsets:
        screen.print()
        screen.print(_sources(subset))
        for line in _diagnostics(subset):
            screen.print(Text(f"  {line}"))
        if line := _elsewhere(subset):
            screen.print(Text(f"  {line}"))
        for warning in subset.facts["warnings"]:
            screen.print(Text(f"  warning: {warning}", style="yellow"))
    screen.print(f"\nwritten to {out}")


def _overview(subsets: Sequence[Subset]) -> Table:
    made = table(
        "subsets", "strategy", "budget", "rows", "tokens", "median length", "(pool)", "picks per query",
        "merged", "pool rows by status",
    )  # fmt: skip
    for subset in subsets:
        facts = subset.facts
        unit, length = next(reversed(facts["length"].items()))
        made.add_row(
            subset.strategy.name,
            subset.budget.folder,
            f"{facts['rows']:,}",
            "" if facts["tokens"] is None else f"{facts['tokens']:,}",
            f"{length['median']:g} {unit}",
            f"{length['pool_median']:g}",
            _picks(facts["queries"]),
            str(facts["merged_duplicates"]),
            ", ".join(f"{count:,} {word}" for word, count in facts["status"].items()),
        )
    return made


def _diagnostics(subset: Subset) -> list[str]:
    """Distances beside those of a random draw, and stability, as sentences."""
    found = subset.facts.get("diagnostics", {})
    if "subset_to_query" not in found:
        return []
    control = found["random"]
    lines = [
        f"distance in {found['representation']} (random draw): row to nearest query "
        f"{found['subset_to_query']:.3f} ({control['subset_to_query']:.3f}), query to nearest row "
        f"{found['query_to_subset']:.3f} ({control['query_to_subset']:.3f}), Wasserstein "
        f"{found['wasserstein']['value']:.3f} ({control['wasserstein']['value']:.3f})"
    ]
    if settled := found.get("stability"):
        lines.append(
            f"with other draws of the query rows {settled['mean']:.0%} of the rows would be chosen again "
            f"({settled['least']:.0%} to {settled['most']:.0%})"
        )
    return lines


def _elsewhere(subset: Subset) -> str:
    """Overlap with earlier selections of the store, those furthest above chance."""
    shown = [
        f"{one['strategy']} {one['budget']} seed {one['seed']} {one['share']:.0%} "
        f"({one['expected']:.0%} by chance)"
        for one in subset.elsewhere[:_OTHERS]
    ]
    more = len(subset.elsewhere) - len(shown)
    rest = f"; {more} more in the manifest" if more else ""
    return f"rows in common with earlier selections: {', '.join(shown)}{rest}" if shown else ""


def _picks(queries: dict[str, Any]) -> str:
    """least–median–most picks of a query row, by task."""
    parts = [f"{name} {p['least']}–{p['median']:g}–{p['most']}" for name, p in queries.items()]
    return "; ".join(parts) or "-"


def _sources(subset: Subset) -> Table:
    made = table(
        f"{subset.strategy.name} {subset.budget.folder}: sources", "source", "rows", "share", "in pool"
    )
    sources = [entry for entry in subset.facts["sources"] if entry["rows"]]
    for entry in sources[:_SOURCES]:
        made.add_row(
            Text(entry["source"]), f"{entry['rows']:,}", f"{entry['share']:.1%}", f"{entry['pool_share']:.1%}"
        )
    rest = sources[_SOURCES:]
    if rest:
        rows = sum(entry["rows"] for entry in rest)
        made.add_row(f"{len(rest)} more", f"{rows:,}", f"{sum(e['share'] for e in rest):.1%}", "")
    absent = sum(not entry["rows"] for entry in subset.facts["sources"])
    if absent:
        share = sum(entry["pool_share"] for entry in subset.facts["sources"] if not entry["rows"])
        made.add_row(f"{absent} with none chosen", "0", "0.0%", f"{share:.1%}")
    return made
