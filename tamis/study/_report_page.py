"""The page: a panel for every subset, the comparison of all, data for the browser, and the template."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tamis.study import _report_charts as charts
from tamis.study._report_answers import answers, distances, groups
from tamis.study._report_charts import Chart, Curve, number, percent
from tamis.study._report_facts import Overlaps, Run, View, nesting, same_size_sources
from tamis.study._report_text import TEXT_CHARACTERS, embedded, queries_of, rounded, rows_of, visible

SOURCES = 12  # in the chart; the table has all
TASKS = 6  # with a curve of their own
CONTENT_POLICY = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; script-src '{}'; style-src '{}'"
)


def page(runs: Sequence[Run], shared: Overlaps) -> str:
    """The whole HTML; `shared` is the overlap of all views."""
    views = [view for run in runs for view in run.views]
    data, texts = _data(runs, views)
    style, script = _template("report.css"), _template("report.js")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "percent": percent, "visible": lambda text: visible(str(text))}
    return environment.from_string(_template("report.html.j2")).render(
        title=f"{views[0].label if len(views) == 1 else f'{len(views)} subsets'} · tamis",
        policy=CONTENT_POLICY.format(_hash(script), _hash(style)),
        style=Markup(style),
        script=Markup(script),
        panels=[panel(view) for view in views],
        overview=[_overview(view) for view in views],
        overlap=_overlap(views, shared),
        nesting=nesting(views),
        orders=_orders(views),
        runs=[{"run": run, "bill": bill(run), "recipe": recipe(run)} for run in runs],
        data=data,
        texts=texts,
    )


def _template(name: str) -> str:
    return files("tamis.study").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content policy calls an element by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def panel(view: View) -> dict[str, Any]:
    """Everything about one subset."""
    entry = view.entry
    diagnostics = entry.get("diagnostics") or {}
    return {
        "key": view.key,
        "label": view.label,
        "view": view,
        "answers": answers(view),
        "charts": [chart for chart in (*_charts(view), _map(view)) if chart],
        "sources": same_size_sources(view),
        "groups": groups(view),
        "distances": distances(view),
        "stability": diagnostics.get("stability"),
        "gradients": diagnostics.get("gradients"),
        "representation": diagnostics.get("representation"),
        "warnings": [visible(text) for text in entry["warnings"]],
        "status": entry["status"],
        "rendering": entry.get("rendering"),
        "notes": {key: value for key, value in sorted(entry.get("notes", {}).items()) if value},
        "picks": entry["queries"],
    }


def _charts(view: View) -> list[Chart]:
    rows = same_size_sources(view)
    shown = sorted(rows, key=lambda row: -max(row["share"], row["pool_share"]))[:SOURCES]
    top = rows[0]
    left = f" {len(rows) - SOURCES} more are in the table." if len(rows) > SOURCES else ""
    found = [
        charts.sources(
            f"{percent(top['share'])} of the rows are from {visible(top['source'])}, "
            f"which is {percent(top['pool_share'])} of the pool",
            [{**row, "source": visible(row["source"])} for row in shown],
            f"Bar: subset; line: pool; ring: random draw.{left}",
        ),
        _lengths(view),
    ]
    if view.scored:
        low, high = (number(float(view.score[view.ranked[i]])) for i in (-1, 0))
        found.append(
            charts.curves(
                f"The score at the moment of choice runs from {high} down to {low}",
                "rank (order of choice)", "score", _by_task(view), note=_tasks_said(view),
            )
        )  # fmt: skip
    found += _over_the_pool(view) + _beside(view)
    if view.by_queries:
        found.append(_picks(view))
    return found


def _over_the_pool(view: View) -> list[Chart]:
    """The pool's rows by their own score, where it is one, and how much of it is length."""
    signals = view.run.manifest["execution"]["signals"]
    told = signals.get(view.entry["strategy"], {}).get("distribution")
    if not told:
        return []
    related = told["length_correlation"]
    title = "The score of every row of the pool"
    if related is not None:
        title += f": its rank correlation with length is {number(related, 2)}"
    bins = told["histogram"]
    return [
        charts.histogram(
            title, np.array(bins["edges"]), np.array(bins["rows"]), "score",
            f"{number(told['different'])} different values. Length in characters.",
        )
    ]  # fmt: skip


def _by_task(view: View) -> list[Curve]:
    """Scores by rank, a curve for each of several tasks: they take turns, and their scores differ."""
    tasks = list(dict.fromkeys(view.task))
    if not 1 < len(tasks) <= TASKS:
        return [Curve("mine", view.score)]
    ranks = {task: np.flatnonzero(view.task == task) for task in tasks}
    return [Curve("mine", view.score[at], at, visible(task)[:24]) for task, at in ranks.items()]


def _tasks_said(view: View) -> str:
    tasks = len(set(view.task))
    return (
        "One curve for each task."
        if 1 < tasks <= TASKS
        else "All tasks in one curve."
        if tasks > TASKS
        else ""
    )


def _lengths(view: View) -> Chart:
    chars = np.asarray(view.pool.chars)
    facts = view.entry["length"]["characters"]
    title = (
        f"Half of the chosen rows are longer than {number(facts['median'])} characters; "
        f"in the pool, {number(facts['pool_median'])}"
    )
    mine, draw = chars[view.positions], chars[view.control]
    return charts.lengths(
        title, mine, chars, draw, "characters", "Filled: subset; grey line: pool; dashed: random draw."
    )


def _beside(view: View) -> list[Chart]:
    """Similarities (or scores) of the chosen rows beside those of the random draw, both in falling order."""
    if not view.scored or not np.isfinite(view.control_value).any():
        return []
    mine, draw = (np.sort(values[np.isfinite(values)])[::-1] for values in (view.value, view.control_value))
    what = "similarity to the nearest query" if view.by_queries else "score"
    title = (
        f"Median {what}: {number(float(np.median(mine)))} of the chosen rows, "
        f"{number(float(np.median(draw)))} of a random draw"
    )
    note = "Solid: subset; dashed: random draw. Each in falling order."
    return [
        charts.curves(
            title, "rows, from the best", what, [Curve("mine", mine), Curve("draw", draw)], note=note
        )
    ]


def _picks(view: View) -> Chart:
    picks = np.sort(view.picks)[::-1]
    none = int((picks == 0).sum())
    verb, other = ("chose", "chose nothing") if view.chose else ("is nearest to", "are nearest to no row")
    title = f"The most active query {verb} {number(int(picks[0]))} rows; {none:,} of {len(picks):,} {other}"
    even = float(picks.sum() / len(picks))
    note = f"Dashed: {number(even)}, if every query had as many."
    return charts.bars(title, "queries, from the most active", "rows", picks, even, note)


def _map(view: View) -> Chart | None:
    if view.map is None:
        return None
    columns, told = view.map
    points = [
        (name, np.stack([columns["x"], columns["y"]], axis=1)[columns["kind"] == kind].astype(float))
        for kind, name in (("pool", "pool"), ("subset", "mine"), ("query", "query"))
    ]
    first, second = told["share"]
    sizes = {kind: len(xy) for kind, xy in points}
    return charts.scatter(
        f"Pool, subset and queries on two axes that hold {percent(first + second)} of the variance",
        points,
        (f"first axis, {percent(first)}", f"second axis, {percent(second)}"),
        f"Grey dots: {sizes['pool']:,} of {told['of_rows']:,} pool rows, drawn at random; filled dots: "
        f"{sizes['mine']:,} of {told['of_subset']:,} chosen rows; large dots: {sizes['query']:,} of "
        f"{told['of_queries']:,} queries. Principal components of the sampled pool rows; what is near here "
        f"can be far in the other {percent(1 - first - second)}.",
    )


def _overview(view: View) -> dict[str, Any]:
    entry = view.entry
    found = entry.get("diagnostics") or {}
    top = entry["sources"][0]
    unit, length = next(reversed(entry["length"].items()))
    draw = (found.get("random") or {}).get("subset_to_query")
    return {
        "key": view.key,
        "label": view.label,
        "rows": entry["rows"],
        "tokens": entry["tokens"],
        "length": f"{number(length['median'])} {unit} ({number(length['pool_median'])})",
        "top": f"{visible(top['source'])} {percent(top['share'])} ({percent(top['pool_share'])})",
        "distance": f"{number(found['subset_to_query'])} ({number(draw)})"
        if "subset_to_query" in found
        else "–",
        "stability": percent((found.get("stability") or {}).get("mean")),
        "warnings": len(entry["warnings"]),
    }


def _overlap(views: Sequence[View], found: Overlaps) -> dict[str, Any]:
    """Cells of the matrix of shared rows, with a class by share for its shade."""
    rows = []
    for i, view in enumerate(views):
        cells = []
        for j in range(len(found.columns)):
            share, chance = float(found.share[i, j]), float(found.expected[i, j])
            cells.append(
                {
                    "self": i == j,
                    "share": share,
                    "shared": int(found.shared[i, j]),
                    "expected": chance if np.isfinite(chance) else None,
                    "shade": f"q{min(5, int(6 * share))}" if i != j else "q0",
                }
            )
        rows.append({"label": view.label, "rows": len(view), "cells": cells})
    return {"columns": found.columns, "rows": rows}


def _orders(views: Sequence[View]) -> list[Chart]:
    """Score by rank of each strategy's largest subset, with its smaller budgets marked."""
    families: dict[tuple[int, str, int], list[View]] = {}
    for view in views:
        if view.scored:
            families.setdefault((id(view.run), view.entry["strategy"], view.entry["seed"]), []).append(view)
    found = []
    for members in families.values():
        members.sort(key=len)
        largest = members[-1]
        marks = sorted({len(view) for view in members[:-1]})
        said = f"; lines at {', '.join(f'{mark:,}' for mark in marks)} rows" if marks else ""
        title = f"{largest.label}: score by rank{said}"
        found.append(
            charts.curves(
                title, "rank (order of choice)", "score", _by_task(largest), marks, _tasks_said(largest)
            )
        )
    return found


def recipe(run: Run) -> dict[str, Any]:
    """The recipe in short."""
    manifest = run.manifest
    asked = manifest["recipe"]
    model = (asked.get("model") or {}).get("fingerprint") or {}
    return {
        "digest": manifest["digest"],
        "pool_rows": manifest["pool"]["rows"],
        "files": [{**file, "path": visible(file["path"])} for file in manifest["pool"]["files"]],
        "queries": {visible(task): found["rows"] for task, found in manifest["queries"].items()},
        "seed": asked["seed"],
        "within": asked.get("within"),
        "budgets": asked["budgets"],
        "model": ", ".join(f"{key} {value}" for key, value in sorted(model.items())),
        "strategies": [
            {"name": strategy["name"], "parts": visible(_parts(strategy))} for strategy in asked["strategies"]
        ],
        "checks": _checks(manifest.get("hygiene")),
        "versions": manifest["versions"],
    }


def _checks(hygiene: dict[str, Any] | None) -> list[str]:
    """What was looked for in the pool and what was found, as sentences."""
    if hygiene is None:
        return []
    found = []
    if near := hygiene.get("near_duplicates"):
        found.append(f"{number(near['near_duplicates'])} near duplicates in {number(near['groups'])} groups")
    if contamination := hygiene.get("contamination"):
        for target, facts in contamination["targets"].items():
            rows, held = number(facts["rows_found"]), number(facts["pool_rows"])
            found.append(f"{rows} rows of {visible(target)} in {held} pool rows")
    found += [f"dropped: {number(rows)} as {reason}" for reason, rows in hygiene["dropped"].items()]
    return found


def _parts(strategy: dict[str, Any]) -> str:
    import json

    return json.dumps({key: value for key, value in strategy.items() if key != "name"}, sort_keys=True)


def bill(run: Run) -> list[dict[str, Any]]:
    """What the ledger says of every stored thing that the selection paid for, named by what it was for."""
    manifest = run.manifest
    names = {manifest["digest"]: "choosing, diagnostics"}
    names[manifest["execution"]["pool"].replace("\\", "/").rsplit("/", 1)[-1]] = "reading the pool"
    for entry in manifest["subsets"]:
        for i, digest in enumerate(entry["signals"]):
            names.setdefault(digest, f"{entry['strategy']}: " + ("pool rows" if not i else "query rows"))
    rows = [
        {"what": names.get(digest, "reading queries, rendering"), "digest": digest, **sums}
        for digest, sums in sorted(manifest["ledger"].items())
    ]
    return sorted(rows, key=lambda row: (-row["seconds"], row["digest"]))


def _data(runs: Sequence[Run], views: Sequence[View]) -> tuple[Markup, dict[str, Any]]:
    """The script element with rows, queries and subsets, and what is said about its texts."""
    names: dict[str, int] = {}
    for view in views:
        for name in view.pool.source_names:
            names.setdefault(name, len(names))
    rows = rows_of(views, names)
    asked: list[dict[str, Any]] = []
    first: dict[int, int] = {}
    for run in runs:
        first[id(run)] = len(asked)
        asked += queries_of(run.queries)
    value = {
        "sources": [visible(name) for name in names],
        "queries": asked,
        "rows": rows.columns,
        "views": [_of_view(view, rows.number[view.key], first[id(view.run)]) for view in views],
    }
    told = {"rows": len(rows.columns["id"]), "cut": rows.cut, "most": rows.most, "budget": TEXT_CHARACTERS}
    return embedded("data", value), told


def _of_view(view: View, number_of: np.ndarray, first: int) -> dict[str, Any]:
    def queries(numbers: np.ndarray) -> list[int]:
        found: list[int] = np.where(numbers >= 0, numbers + first, -1).astype(int).tolist()
        return found

    return {
        "key": view.key,
        "rows": number_of.tolist(),
        "score": rounded(view.score) if view.scored else None,
        "tokens": view.tokens.tolist() if (view.tokens >= 0).any() else None,
        "chooser": queries(view.chooser) if view.chose else None,
        "task": None if view.chose or not any(view.task) else [visible(str(task)) for task in view.task],
        "places": view.nearest.shape[1],
        "nearest": queries(view.nearest.ravel()),
        "similarity": rounded(np.round(view.similarity.ravel().astype(float), 4)),
        "picks": view.picks.tolist() if view.by_queries else [],
        "first": first,
    }
