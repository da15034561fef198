"""How far a subset is from its queries, how it overlaps with others, and whether other queries would have
chosen it too; each beside a uniform random draw of the same size.

Distances are d(q, j) = 1 - S[q, j] in the representation that the strategy used, so they compare subsets of
one representation, not representations. Definitions: Nayak et al. 2026, arXiv:2602.14696 (subset-query
distances).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.similarity import ArraySimilarity, Similarity
from tamis.selections import choose_ranked
from tamis.selections._order import hashed, ranked
from tamis.study.gradient_facts import gradient_facts

if TYPE_CHECKING:
    from tamis.study.signals import Signal
    from tamis.study.stored import StoredSubset
    from tamis.study.subset import Subset

COLUMNS = 4096  # rows whose similarities are in memory at a time
PLAN_CELLS = 50_000  # largest transport problem that is solved whole, queries x rows: about half a second
SIDE = 1024  # of the sampled problem beyond that
RESAMPLED = 5  # draws of the query set
SAMPLE_CELLS = 4_000_000  # similarities of the pool sample on which draws are compared
SAMPLE_ROWS, SAMPLE_ROWS_WITH_VECTORS = 20_000, 4_000


def distances(similarity: Similarity, positions: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Distances of the rows at `positions` (k,) and all queries (m,): 0 to 2 for cosines, smaller is closer.

    `subset_to_query`: mean over rows of the distance to the nearest query. `query_to_subset`: mean over
    queries of the distance to the nearest chosen row. `wasserstein`: the least mean distance of a plan that
    moves the rows' uniform mass to the queries' (W1), with how it was found.
    """
    nearest_row = np.full(similarity.m, -np.inf)
    nearest_query = np.empty(len(positions))
    for start in range(0, len(positions), COLUMNS):
        span = slice(start, start + COLUMNS)
        block = similarity.columns(positions[span])
        nearest_query[span] = block.max(axis=0)
        nearest_row = np.maximum(nearest_row, block.max(axis=1))
    return {
        "subset_to_query": 1.0 - float(nearest_query.mean()),
        "query_to_subset": 1.0 - float(nearest_row.mean()),
        "wasserstein": wasserstein(similarity, positions, seed),
    }


def wasserstein(similarity: Similarity, positions: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """W1 of the uniform measures on the rows and on the queries under d = 1 - S.

    `kind` "exact": the linear program over all rows and queries. "sampled": more than `PLAN_CELLS` pairs, so
    an exact assignment between at most `SIDE` rows and queries drawn with `seed`; `rows` and `queries` say
    how many. A sample lies somewhat further from the queries than the whole: compare like with like.
    """
    k, m = len(positions), similarity.m
    if k * m <= PLAN_CELLS:
        return {"value": _transport(1.0 - similarity.columns(positions)), **_size("exact", k, m)}
    rows, queries = min(k, SIDE), min(m, SIDE)
    # An assignment needs one side to be a multiple of the other.
    if rows >= queries:
        rows -= rows % queries
    else:
        queries -= queries % rows
    row = np.sort(ranked(-hashed(k, seed, "wasserstein rows").astype(float), np.ones(k, bool), rows))
    query = np.sort(ranked(-hashed(m, seed, "wasserstein queries").astype(float), np.ones(m, bool), queries))
    cost = 1.0 - similarity.columns(positions[row])[query].astype(np.float64)
    side = max(rows, queries)
    cost = np.repeat(np.repeat(cost, side // queries, axis=0), side // rows, axis=1)
    from scipy.optimize import linear_sum_assignment

    i, j = linear_sum_assignment(cost)
    return {"value": float(cost[i, j].mean()), **_size("sampled", rows, queries)}


def _size(kind: str, rows: int, queries: int) -> dict[str, Any]:
    return {"kind": kind, "rows": rows, "queries": queries}


def _transport(cost: np.ndarray) -> float:
    """Least cost of moving uniform mass between the two sides of `cost` (m, k)."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    m, k = cost.shape
    cell = np.arange(m * k)
    side = np.concatenate([np.repeat(np.arange(m), k), m + np.tile(np.arange(k), m)])
    equal = csr_array((np.ones(2 * m * k), (side, np.concatenate([cell, cell]))), shape=(m + k, m * k))
    mass = np.concatenate([np.full(m, 1.0 / m), np.full(k, 1.0 / k)])
    solved = linprog(cost.ravel().astype(np.float64), A_eq=equal, b_eq=mass, method="highs")
    return float(solved.fun)


def overlap(positions: np.ndarray, other: np.ndarray, rows: int) -> dict[str, float]:
    """Rows in common with another subset: `shared`, as `share` of this one, and what chance would give.

    `expected` is the share and `sd` its standard deviation when both are uniform draws from `rows` rows
    (hypergeometric).
    """
    shared = len(np.intersect1d(positions, other))
    k, p = len(positions), len(other) / rows
    spread = p * (1 - p) * (rows - k) / max(rows - 1, 1) / max(k, 1)
    return {
        "shared": shared,
        "share": shared / k if k else 0.0,
        "expected": p,
        "sd": float(np.sqrt(max(spread, 0.0))),
    }


def stability(
    similarity: Similarity,
    method: Any,
    budget: int,
    *,
    task_of: np.ndarray | None = None,
    vectors: Any = None,
    inputs: Mapping[str, Any] | None = None,
    seed: int = 0,
    **parameters: Any,
) -> dict[str, Any] | None:
    """Share of the chosen rows that would still be chosen with the query rows drawn again with replacement.

    Each draw keeps the number of query rows of every task. The choice is repeated on a uniform sample of the
    usable pool rows (`rows`), with the budget in proportion, so that the pool is not read again for every
    draw: `mean`, `least` and `most` share over `draws`. None with a single query row. A random choice would
    keep budget / pool of its rows. `inputs`: arrays (n,) the method needs, by name.
    """
    m, usable = similarity.m, np.flatnonzero(similarity.usable)
    if m < 2 or not len(usable) or budget < 1:
        return None
    most = SAMPLE_ROWS_WITH_VECTORS if vectors is not None else SAMPLE_ROWS
    size = min(len(usable), most, max(SAMPLE_CELLS // m, 100))
    order = np.argsort(hashed(len(usable), seed, "stability rows"), kind="stable")
    rows = np.sort(usable[order[:size]])
    wanted = max(1, round(budget * size / len(usable)))
    table = similarity.columns(rows).astype(np.float32)
    given: dict[str, Any] = {name: np.asarray(values)[rows] for name, values in (inputs or {}).items()}
    if vectors is not None:
        given["vectors"] = _Taken(vectors, rows)

    def pick(queries: np.ndarray) -> np.ndarray:
        tasks = {} if task_of is None else {"task_of": np.asarray(task_of)[queries]}
        scores = ArraySimilarity(table[queries])
        choice = choose_ranked(
            method, scores, wanted, seed=seed, allow_underflow=True, **tasks, **given, **parameters
        )
        return choice.positions

    generator = np.random.default_rng([seed, m])
    base = pick(np.arange(m))
    shares = [len(np.intersect1d(base, pick(_resampled(m, task_of, generator)))) for _ in range(RESAMPLED)]
    kept = np.array(shares) / max(len(base), 1)
    return {
        "draws": RESAMPLED,
        "rows": size,
        "budget": wanted,
        "mean": float(kept.mean()),
        "least": float(kept.min()),
        "most": float(kept.max()),
    }


def _resampled(m: int, task_of: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """Query numbers (m,) drawn with replacement inside each task, ascending."""
    tasks = np.zeros(m, np.int64) if task_of is None else np.asarray(task_of)
    drawn = [generator.choice(np.flatnonzero(tasks == t), int((tasks == t).sum())) for t in np.unique(tasks)]
    return np.sort(np.concatenate(drawn))


class _Taken:
    """Some rows of other vectors, under numbers of their own."""

    def __init__(self, inner: Any, rows: np.ndarray) -> None:
        self.inner, self.rows = inner, rows
        self.n, self.d = len(rows), inner.d

    def take(self, positions: np.ndarray) -> Any:
        return self.inner.take(self.rows[np.asarray(positions, np.int64)])


def add_diagnostics(
    subsets: Sequence[Subset], signals: Mapping[str, Signal], seed: int, within: np.ndarray | None
) -> None:
    """Put `diagnostics` into the facts of every subset: distances and stability where its strategy compared
    rows with queries, and the overlap with every other subset."""
    for subset in subsets:
        found: dict[str, Any] = {}
        signal = signals[subset.strategy.name]
        if isinstance(signal.source, Similarity) and len(subset):
            found = _by_queries(subset, signal, seed, within)
        if signal.gradients is not None:
            norms, tokens = signal.gradients
            numbers = np.where(subset.query >= 0, _task_numbers(subset) * len(subset.pool) + subset.query, -1)
            found["gradients"] = gradient_facts(norms, tokens, signal.usable, subset.positions, numbers)
        found["overlap"] = [
            {**_named(other), **overlap(subset.positions, other.positions, len(subset.pool))}
            for other in subsets
            if other is not subset
        ]
        subset.facts["diagnostics"] = found


def compare_with_store(subsets: Sequence[Subset], others: Sequence[StoredSubset]) -> None:
    """Note in every subset its overlap with what earlier selections chose from the same pool, the largest
    share above chance first. It depends on what the store holds, so it stays outside the facts."""
    for subset in subsets:
        found: list[dict[str, Any]] = [
            {
                "strategy": other.strategy, "budget": other.budget, "seed": other.seed,
                "rows": len(other.positions), "digest": other.digest,
                **overlap(subset.positions, other.positions, len(subset.pool)),
            }
            for other in others
        ]  # fmt: skip
        subset.elsewhere[:] = sorted(found, key=lambda one: (one["expected"] - one["share"], one["digest"]))


def _by_queries(subset: Subset, signal: Signal, seed: int, within: np.ndarray | None) -> dict[str, Any]:
    similarity = signal.source.restrict(signal.usable)
    control = choose_ranked(
        "random", None, len(subset), usable=similarity.usable, ids=subset.pool.ids, seed=seed,
        allow_underflow=True,
    ).positions  # fmt: skip
    found: dict[str, Any] = {
        "representation": subset.strategy.signal,
        **distances(similarity, subset.positions, seed),
        "random": distances(similarity, control, seed),
    }
    method = subset.strategy.methods()[-1]
    if set(method.needs) <= {"similarity", "vectors"}:
        try:
            found["stability"] = stability(
                similarity,
                method,
                len(subset),
                task_of=signal.task_of if len(signal.tasks) > 1 else None,
                vectors=similarity.vectors if "vectors" in method.needs else None,
                inputs={"ids": subset.pool.ids, **({} if within is None else {"within": within})},
                seed=seed,
                **subset.strategy.selection_parameters,
            )
        except RequestError as error:  # the sample may be too small for a method that the pool is not
            found |= {"stability": None, "stability_missing": str(error)}
    return found


def _task_numbers(subset: Subset) -> np.ndarray:
    """A number (k,) for the task of every chosen row, so that queries of two tasks stay apart."""
    return np.unique(subset.task.astype(str), return_inverse=True)[1]


def _named(subset: Subset) -> dict[str, Any]:
    return {
        "strategy": subset.strategy.name,
        "budget": subset.budget.folder,
        "seed": subset.seed,
        "rows": len(subset),
    }
