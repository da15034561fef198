"""What a report is made of: subsets read back from the folders that `select` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tamis.core.errors import RequestError
from tamis.pools.pool import Pool
from tamis.study._report_views import read_view
from tamis.study.diagnostics import overlap
from tamis.study.subset import read_chosen


@dataclass(frozen=True, eq=False)
class View:
    """One subset as a report shows it; arrays (k,) in order of choice, queries by number in the run."""

    key: str  # of the element on the page
    label: str
    run: Run
    entry: dict[str, Any]  # of the manifest
    pool: Pool
    positions: np.ndarray  # int64
    score: np.ndarray  # float32, NaN for random draws
    chooser: np.ndarray  # int64: number of the query that chose the row, -1 if none
    task: np.ndarray  # object
    tokens: np.ndarray  # int32, -1 where nothing was rendered
    nearest: np.ndarray  # int64 (k, p): numbers of the most similar queries, p = 0 without queries
    similarity: np.ndarray  # float32 (k, p)
    control: np.ndarray  # int64: rows of the random draw
    control_value: np.ndarray  # float32: their similarity to the nearest query, or score
    outside: np.ndarray  # int64: rows that would be next
    outside_score: np.ndarray
    map: tuple[dict[str, np.ndarray], dict[str, Any]] | None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def by_queries(self) -> bool:
        """Whether rows were compared with queries."""
        return bool(self.nearest.shape[1])

    @property
    def scored(self) -> bool:
        """Whether the score means anything: not for random draws."""
        return bool(np.isfinite(self.score).any())

    @property
    def value(self) -> np.ndarray:
        """What compares with `control_value`: similarity to the nearest query, or the score."""
        return self.similarity[:, 0] if self.by_queries else self.score

    @cached_property
    def ranked(self) -> np.ndarray:
        """Ranks by score, best first, ties to the smaller rank; ranks without a score are left out."""
        order = np.argsort(-self.score, kind="stable")
        finite: np.ndarray = order[np.isfinite(self.score[order])]
        return finite

    @cached_property
    def picks(self) -> np.ndarray:
        """(m,) rows that each query chose, or is nearest to where no query chose rows."""
        numbers = self.chooser if self.chose else self.nearest[:, 0] if self.by_queries else np.zeros(0, int)
        return np.bincount(numbers[numbers >= 0], minlength=len(self.run.queries))

    @cached_property
    def chose(self) -> bool:
        """Whether queries chose the rows."""
        return bool((self.chooser >= 0).any())


@dataclass(frozen=True, eq=False)
class Query:
    """One query row."""

    task: str
    number: int
    messages: list[tuple[str, str]]


@dataclass(eq=False)
class Run:
    """One folder that `select` wrote."""

    folder: Path
    manifest: dict[str, Any]
    queries: list[Query]
    views: list[View] = field(default_factory=list)
    pools: dict[str, Pool] = field(default_factory=dict)  # by digest, those of all runs

    @cached_property
    def number(self) -> dict[tuple[str, int], int]:
        """Number of a query by its task and row."""
        return {(query.task, query.number): i for i, query in enumerate(self.queries)}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The selections at `paths`: folders that `select` wrote, or single subsets below them."""
    runs: list[Run] = []
    pools: dict[str, Pool] = {}
    for path in paths:
        folder, only = _top(path)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if not manifest.get("complete"):
            raise RequestError(f"{folder}: its selection was not finished; run the same select again")
        run = Run(folder, manifest, _queries(folder / "queries.jsonl"), pools=pools)
        prefix = f"{folder.name}: " if len(paths) > 1 else ""
        for entry in manifest["subsets"]:
            if only is None or entry["folder"] == only:
                run.views.append(
                    _view(run, entry, prefix, f"s{sum(len(made.views) for made in [*runs, run])}")
                )
        if not run.views:
            raise RequestError(f"{path}: manifest.json of {folder} has no such subset")
        runs.append(run)
    return runs


def _top(path: Path) -> tuple[Path, str | None]:
    """The folder of a selection, and the subset below it that is meant, None for all."""
    if (path / "manifest.json").exists():
        return path, None
    if (path / "selection.parquet").exists():
        whole = path.resolve()
        return whole.parents[2], str(whole.relative_to(whole.parents[2]))
    raise RequestError(
        f"{path}: no selection here (no manifest.json); give a folder that `tamis select --out` wrote, "
        "or the folder of one of its subsets"
    )


def _queries(path: Path) -> list[Query]:
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        row = orjson.loads(line)
        turns = [(turn["role"], turn["content"]) for turn in row["messages"]]
        found.append(Query(row["task"], row["query"], turns))
    return found


def _view(run: Run, entry: dict[str, Any], prefix: str, key: str) -> View:
    folder = run.folder / entry["folder"]
    chosen = read_chosen(folder)
    columns, k = chosen.columns, len(chosen.positions)
    tasks = np.asarray(columns["task"], object)
    numbers = _numbers(run, tasks, columns["query"])
    found = read_view(folder, "nearest")
    near, similarity = np.zeros((k, 0), np.int64), np.zeros((k, 0), np.float32)
    if found is not None and k:
        places = len(found[0]["rank"]) // k
        near = _numbers(run, found[0]["task"], found[0]["query"]).reshape(k, places)
        similarity = found[0]["similarity"].reshape(k, places)
    pool = run.pools.setdefault(chosen.pool.digest, chosen.pool)
    control = read_view(folder, "control")
    drawn = _drawn(pool, k, entry["seed"]) if control is None else _pair(control)
    outside = read_view(folder, "outside")
    beyond = (np.zeros(0, np.int64), np.zeros(0, np.float32)) if outside is None else _pair(outside)
    return View(
        key=key,
        label=f"{prefix}{entry['strategy']} · {budget_words(entry['budget'])} · seed {entry['seed']}",
        run=run,
        entry=entry,
        pool=pool,
        positions=chosen.positions.astype(np.int64),
        score=columns["score"].astype(np.float32),
        chooser=numbers,
        task=tasks,
        tokens=columns["tokens"].astype(np.int32),
        nearest=near,
        similarity=similarity,
        control=drawn[0],
        control_value=drawn[1],
        outside=beyond[0],
        outside_score=beyond[1],
        map=read_view(folder, "map"),
    )


def _pair(read: tuple[dict[str, np.ndarray], dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The two columns of a control or outside file."""
    first, second = read[0].values()
    return first, second


def budget_words(budget: str) -> str:
    """A budget as people say it: `500` is rows, `200000tok` tokens."""
    if budget.endswith("tok"):
        return f"{int(budget[:-3]):,} tokens" if budget[:-3].isdigit() else budget
    return f"{int(budget):,} rows" if budget.isdigit() else budget


def _numbers(run: Run, tasks: np.ndarray, rows: np.ndarray) -> np.ndarray:
    pairs = zip(tasks.tolist(), rows.tolist(), strict=True)
    return np.array([run.number.get(pair, -1) for pair in pairs], np.int64)


def _drawn(pool: Pool, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random draw for a selection that kept none; nothing is known of its rows' scores."""
    from tamis.selections import choose

    rows = choose("random", None, k, ids=pool.ids, seed=seed, allow_underflow=True)
    return rows, np.full(len(rows), np.nan, np.float32)


@dataclass(frozen=True)
class Overlaps:
    """Rows in common: `shared` (v, w) of v subsets with w columns, `expected` as shares by chance."""

    columns: list[str]
    shared: np.ndarray
    share: np.ndarray
    expected: np.ndarray


def overlaps(views: Sequence[View]) -> Overlaps:
    """Every subset with every other and with the random draw of the first size that it has.

    Subsets of different pools are compared by the ids of their rows, and no chance is given for them.
    """
    pools = list(dict.fromkeys(view.pool.digest for view in views))
    v = len(views)
    shared, share = np.zeros((v, v + 1), np.int64), np.full((v, v + 1), np.nan)
    expected = np.full((v, v + 1), np.nan)
    for i, mine in enumerate(views):
        for j in set(range(v + 1)) - {i}:
            other = views[j] if j < v else mine
            rows = mine.control if j == v else other.positions
            if len(pools) == 1 or other.pool.digest == mine.pool.digest:
                found = overlap(mine.positions, rows, len(mine.pool))
                shared[i, j], share[i, j], expected[i, j] = (
                    found["shared"],
                    found["share"],
                    found["expected"],
                )
            else:
                both = np.intersect1d(mine.pool.ids[mine.positions], other.pool.ids[rows])
                shared[i, j], share[i, j] = len(both), len(both) / max(len(mine), 1)
    return Overlaps(
        [*(view.label for view in views), "random draw of the same size"], shared, share, expected
    )


def nesting(views: Sequence[View]) -> list[dict[str, Any]]:
    """Subsets of one strategy and seed by size: how many rows of each are in the next larger one."""
    families: dict[tuple[int, str, int], list[View]] = {}
    for view in views:
        families.setdefault((id(view.run), view.entry["strategy"], view.entry["seed"]), []).append(view)
    found = []
    for members in families.values():
        members.sort(key=len)
        for small, large in pairwise(members):
            inside = len(np.intersect1d(small.positions, large.positions))
            prefix = np.array_equal(small.positions, large.positions[: len(small)])
            found.append(
                {"small": small, "large": large, "inside": inside, "prefix": prefix, "rows": len(small)}
            )
    return found


def same_size_sources(view: View) -> list[dict[str, Any]]:
    """The manifest's sources of a subset, with the rows of the random draw beside: `random_share`."""
    drawn = np.bincount(view.pool.source_codes[view.control], minlength=len(view.pool.source_names))
    share = dict(zip(view.pool.source_names, drawn / max(len(view.control), 1), strict=True))
    return [{**row, "random_share": float(share[row["source"]])} for row in view.entry["sources"]]
