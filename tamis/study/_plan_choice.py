"""What choosing, the facts about a choice, and writing it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.core.store import Thing
from tamis.representations.represent import shard_arrays
from tamis.study._plan_pool import Known
from tamis.study._plan_rates import numpy_peak, resident_bytes
from tamis.study._plan_signal import ROW_BYTES, Work
from tamis.study._plan_stage import Stage
from tamis.study.budget import Budget
from tamis.study.strategies import Strategy

ROW_COPIES_BYTES, COMPARED_ROW_BYTES = 60, 32
"""Of a chosen row: columns, their copy in the store, the view; of a compared one, its nearest queries too."""
SUBSET_BYTES, COMPARED_BYTES = 13_000, 27_000
"""Of one subset: heads of these files, its part of the manifest; and with its map."""
_ROW_S = 2e-6
_TIMED_S = 0.05
_TIMED_ROWS = 512
_READ_BYTES_S = 3e8
_SUBSET_S = 0.05
_DIAGNOSED_S = 0.25
"""Distances of a subset and of a random draw, and choices under resampled queries, about."""
_BLOCK_BYTES = 64 << 20
_FACTS_BYTES = 60 << 20  # solver, charts and page, beyond what is loaded before
_PAGE_BYTES, _PAGE_SUBSET_BYTES, _PAGE_PLAIN_BYTES, _PAGE_MOST_BYTES = 60_000, 12_000, 400_000, 15e6
_PAGE_S = 1.0
_DIMENSIONS = 1024


@dataclass(frozen=True)
class Pass:
    """One pass that compares all rows with all queries."""

    seconds: float
    flops: float
    how: str


def rows_of(budget: Budget, pool_rows: int, tokens_per_row: float) -> int:
    """Rows that a budget comes to; a budget in tokens by the pool's mean length."""
    if budget.unit == "tokens":
        return min(pool_rows, int(budget.amount / max(tokens_per_row, 1.0)))
    return min(pool_rows, budget.rows_of(pool_rows))


def one_pass(work: Work, pool: Known, queries: int) -> Pass:
    """Comparing `queries` rows with the pool by the representation of `work`."""
    flops = 2.0 * queries * pool.rows * work.width if work.method.compare is None else 0.0
    arrays = _some_arrays(work, pool)
    if arrays is not None:
        each = _timed(work, arrays, queries)
        return Pass(each * pool.rows, flops, "timed on rows of this pool, scaled by rows and queries")
    size = 2.0 if work.machine.lm is None or work.machine.lm.dtype != "float32" else 4.0
    seconds = flops / (numpy_peak() / 2) + pool.rows * work.width * size / (_READ_BYTES_S * 10)
    return Pass(
        seconds, flops, "2 Q N d at half the measured speed of products here, and reading N d numbers"
    )


def _some_arrays(work: Work, pool: Known) -> dict[str, np.ndarray] | None:
    """Arrays of rows encoded in the trial, or of the first stored shard."""
    thing: Thing | None = work.thing(pool, "pool")
    if thing is not None and thing.state == "complete":
        return shard_arrays(thing)[0]
    trial = work.trial if work.rate is None or work.rate.how.startswith("trial") else None
    return trial.arrays if trial is not None and "values" not in trial.arrays else None


def _timed(work: Work, arrays: dict[str, np.ndarray], queries: int) -> float:
    """Seconds a row to compare the rows of `arrays` with `queries` of themselves."""
    if work.method.compare is not None:
        rows = len(arrays["indptr"]) - 1 if "indptr" in arrays else len(next(iter(arrays.values())))
        similarity: Any = work.method.compare([arrays], [arrays], work.config)
    else:
        from tamis.core.similarity import FeatureSimilarity

        vectors = np.asarray(arrays["vectors"][:_TIMED_ROWS])
        rows = len(vectors)
        asked = np.resize(vectors.astype(np.float32), (queries, vectors.shape[1]))
        similarity = FeatureSimilarity(asked, [vectors])
    runs, spent = 0, 0.0
    while spent < _TIMED_S:
        start = time.perf_counter()
        for _, block in similarity.blocks():
            block.max(axis=0)
        spent += time.perf_counter() - start
        runs += 1
    share = queries / similarity.m
    return float(spent / runs / max(rows, 1) * share)


def choice_stage(
    strategy: Strategy,
    budgets: Sequence[Budget],
    work: Work | None,
    known: Known,
    queries: int,
    tokens: float,
) -> Stage:
    """Choosing with one strategy: all budgets are prefixes of one order."""
    method = strategy.methods()[-1]
    config = method.configure(strategy.selection_parameters)
    limits = [rows_of(budget, known.rows, tokens) for budget in budgets]
    listed = ", ".join(budget.folder for budget in budgets)
    seconds, flops, how = known.rows * _ROW_S, 0.0, f"{_ROW_S * 1e6:g} microseconds a row"
    memory = float(resident_bytes() + known.rows * ROW_BYTES)
    orders = len({budget.unit == "tokens" for budget in budgets})
    if work is not None and work.kind == "representation":
        once = one_pass(work, known, queries)
        flops, how = once.flops, f"one pass: {once.how}; sorting {how}"
        # Products of sparse n-grams take as long as those of about a thousand dense dimensions.
        width = work.width if work.method.compare is None else _DIMENSIONS
        extra = own_estimate(method, queries, known.rows, width, config, max(limits))
        if extra:
            flops = extra["flops"]
            seconds += max(flops - once.flops, 0.0) / (numpy_peak() / 2)
            memory += extra.get("bytes", 0.0)
            how += f"; {method.name} says itself what its further products cost at most"
        else:
            memory += queries * min(max(limits), known.rows) * 24
        seconds += once.seconds
        memory += min(_BLOCK_BYTES, known.rows * (work.width + queries) * 4)
    return Stage(
        f"choose {strategy.name} ({listed})", "due", known.rows, 0.0, flops * orders, seconds * orders,
        memory_bytes=memory, how={"seconds": how, "memory": "this process now, and what grows with the pool"},
    )  # fmt: skip


def own_estimate(
    method: Any, queries: int, rows: int, width: int, config: Any, limit: int
) -> dict[str, float] | None:
    """What the method itself says a run costs, where its file has a `cost_estimate`."""
    function = getattr(method.run, "func", method.run)
    estimate = getattr(sys.modules.get(function.__module__), "cost_estimate", None)
    return None if estimate is None else dict(estimate(queries, rows, width, config, limit))


def own_seconds(strategy: Strategy, budgets: Sequence[Budget], rows: int, queries: int) -> float:
    """Seconds of the products of a selection that says itself what it costs, at 1,024 dimensions; else 0."""
    method = strategy.methods()[-1]
    config = method.configure(strategy.selection_parameters)
    limit = max(rows_of(budget, rows, 1.0) for budget in budgets)
    extra = own_estimate(method, queries, rows, _DIMENSIONS, config, limit) if queries else None
    return 0.0 if extra is None else extra["flops"] / (numpy_peak() / 2)


def _page_bytes(rows: int, subsets: int, row_bytes: float) -> float:
    """About what the report comes to: texts as they are, compressed when they are many."""
    texts = rows * (0.9 * row_bytes + 100)
    texts = texts if texts < _PAGE_PLAIN_BYTES else 0.4 * texts
    return min(_PAGE_BYTES + subsets * _PAGE_SUBSET_BYTES + texts, _PAGE_MOST_BYTES)


def writing_stages(
    strategies: Sequence[Strategy], budgets: Sequence[Budget], known: Known, tokens: float, report: bool
) -> list[Stage]:
    """The facts about every subset, then the files of OUT, the report and the subsets in the store."""
    limits = [rows_of(budget, known.rows, tokens) for budget in budgets]
    subsets, rows = len(strategies) * len(budgets), len(strategies) * sum(limits)
    compared = sum(strategy.needs_query for strategy in strategies) * len(budgets)
    facts = Stage(
        "facts about the subsets", "due", rows, seconds=compared * _DIAGNOSED_S,
        memory_bytes=resident_bytes() + _FACTS_BYTES,
        how={"seconds": f"{_DIAGNOSED_S:g} s a subset that was compared with queries, as measured"},
    )  # fmt: skip
    near = sum(strategy.needs_query for strategy in strategies) * sum(limits)
    disk = rows * (known.row_bytes + ROW_COPIES_BYTES) + near * COMPARED_ROW_BYTES
    disk += subsets * SUBSET_BYTES + compared * COMPARED_BYTES
    disk += _page_bytes(rows, subsets, known.row_bytes) if report else 0
    read = (_PAGE_S if report else 0) + min(known.rows, rows * 64) * known.row_bytes / _READ_BYTES_S
    how = {
        "disk": f"original rows of {known.row_bytes:,.0f} bytes on average, columns, views, manifest, report",
        "seconds": f"{_SUBSET_S:g} s a subset, reading rows at 300 MB/s, {_PAGE_S:g} s for the report",
    }
    written = Stage(
        "write OUT", "due", rows, seconds=subsets * _SUBSET_S + read, disk_bytes=disk,
        memory_bytes=resident_bytes() + _FACTS_BYTES, how=how,
    )  # fmt: skip
    return [facts, written]
