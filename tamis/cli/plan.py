"""`tamis plan`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rich.text import Text

from tamis.cli.reading import mapping_of, named_paths, split_names
from tamis.cli.tables import console, table
from tamis.core.errors import RequestError

if TYPE_CHECKING:
    from tamis.study._plan_stage import Plan, Stage
    from tamis.study.plan import Asked

_PLANNED = {
    "pool", "strategy", "budget", "out", "query", "maps", "settings", "within", "seed", "skip_bad_rows",
    "allow_underflow", "quiet", "as_json", "study", "rows", "tokens_per_row", "query_rows", "device_tflops",
    "price_device_hour", "exclude", "no_report",
}  # fmt: skip
"""Options that a plan takes into account, or that change no estimate; the rest go to `Settings`."""


def run(given: Mapping[str, Any]) -> None:
    """Plan a selection and show what it would take."""
    from tamis.study.plan import plan

    if given["study"]:
        raise RequestError(
            f"{' '.join(given['study'])}: planning a study file is not built yet; "
            "give the flags of `tamis select`"
        )
    made = plan(asked(given))
    unknown = _not_planned(given)
    if given["as_json"]:
        found = made.as_json()
        print(json.dumps({**found, "notes": found["notes"] + unknown}, ensure_ascii=False))
        return
    show(made, unknown, given["quiet"])


def asked(given: Mapping[str, Any]) -> Asked:
    """The options of the command line as a request for a plan."""
    from tamis.study.budget import parse_budget
    from tamis.study.hygiene import configured
    from tamis.study.plan import QUERY_ROWS, Asked
    from tamis.study.signals import Settings
    from tamis.study.strategies import parse_settings, resolve

    names = [field.name for field in fields(Settings)]
    _, parameters = configured(parse_settings(given["settings"] or []))
    return Asked(
        resolve(split_names(given["strategy"] or []), parameters),
        [parse_budget(text) for text in split_names(given["budget"] or [])],
        given["pool"] or [],
        named_paths(given["query"] or []),
        mapping_of(given["maps"]),
        given["rows"],
        given["tokens_per_row"],
        given["query_rows"] or QUERY_ROWS,
        Settings(**{name: given[name] for name in names if name in given}),
        given["device_tflops"],
        given["price_device_hour"],
        report=not given.get("no_report", False),
    )


def _not_planned(given: Mapping[str, Any]) -> list[str]:
    """Options of `select` that were set and that the estimate knows nothing of."""
    from tamis.study.signals import Settings

    known = _PLANNED | {field.name for field in fields(Settings)}
    unknown = [name for name, value in given.items() if name not in known and value not in (None, [], False)]
    return [f"not in the estimate: --{name.replace('_', '-')}" for name in unknown if given[name] != "off"]


# --- tables ----------------------------------------------------------------------------------------------


def show(made: Plan, also: Sequence[str], quiet: bool) -> None:
    """Stages with their totals, how each figure was estimated, and notes."""
    screen = console()
    screen.print(_facts(made))
    columns = [
        "stage",
        "store",
        "rows",
        "tokens",
        "FLOPs",
        "2PTN",
        "time",
        "disk",
        "peak memory",
        "API calls",
    ]
    priced = made.price is not None or any(stage.api_usd for stage in made.stages)
    shown = table("", *columns, *(["USD"] if priced else []))
    for stage in made.stages:
        cells = [
            stage.name, _state(stage), f"{stage.rows:,}" if stage.rows else "", _count(stage.tokens),
            _flops(stage.flops), _flops(stage.published_flops), _time(stage.seconds),
            _bytes(stage.disk_bytes), _bytes(stage.memory_bytes), str(stage.api_calls or ""),
        ]  # fmt: skip
        shown.add_row(*cells, *([f"{made.cost(stage):,.2f}"] if priced else []))
    sums = made.totals
    cells = [
        "in all", "", "", _count(sums["tokens"]), _flops(sums["flops"]),
        _flops(sums["published_flops"]), _time(sums["seconds"]), _bytes(sums["disk_bytes"]),
        _bytes(sums["memory_bytes"]), str(int(sums["api_calls"]) or ""),
    ]  # fmt: skip
    shown.add_row(*cells, *([f"{sum(map(made.cost, made.stages)):,.2f}"] if priced else []))
    screen.print(shown)
    if sums["device_bytes"]:
        screen.print(f"device memory: {_bytes(sums['device_bytes'])} for weights and one batch")
    if not quiet:
        screen.print("\nhow each was estimated")
        for stage in made.stages:
            for what, how in stage.how.items():
                screen.print(Text(f"  {stage.name}, {what}: {how}"))
        screen.print(
            "  FLOPs: the model's body, attention included, without head. 2PTN: all parameters, as published "
            "comparisons count"
        )
    for note in [*made.notes, *also]:
        screen.print(Text(f"note: {note}", style="yellow"))


def _facts(made: Plan) -> str:
    pool, model = made.facts["pool"], made.facts.get("model")
    text = f"pool: {pool['rows']:,} rows ({pool['how']})"
    if model:
        text += (
            f"\nmodel: {model['path']}, {model['parameters']:,} parameters "
            f"({model['body_parameters']:,} in the body), {model['dtype']} on {model['device']}"
        )
    return text


def _state(stage: Stage) -> str:
    if stage.state == "partial":
        return f"partial {stage.shards_done}/{stage.shards}"
    return str(stage.state)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value else ""


def _flops(value: float) -> str:
    return f"{value:.3g}" if value else ""


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.1g} s" if seconds >= 0.05 else "0 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B" if value else ""


def announce(seconds: float, disk: float) -> None:
    """The line that `select` says before long work."""
    print(f"tamis: about {_time(seconds)} of work and {_bytes(disk) or '0 B'} of disk", file=sys.stderr)
