"""Selections: from scores and a budget to rows in order of choice.

A selection is one file: its card, its frozen `Config`, and a function `select(request, limit, config)` that
returns the first `limit` rows of its order. What is common to all is here and written once: budgets in rows
or in cost, budgets shared over groups, underflow, and the rows that may not be chosen.
"""

from __future__ import annotations

from dataclasses import fields, replace
from types import ModuleType
from typing import Any

import numpy as np

from tamis.core.errors import RequestError, unknown_name
from tamis.core.method import Family, Method
from tamis.core.similarity import ArraySimilarity, FeatureSimilarity, Similarity, SparseSimilarity
from tamis.selections import (
    cluster_middle,
    cluster_quota,
    coverage,
    diversity_threshold,
    doubly_greedy,
    gumbel_top_k,
    knn_kde,
    knn_uniform,
    random,
    random_balanced,
    random_length_matched,
    random_redrawn,
    round_robin,
    strict_random,
    top_k,
    transport,
)
from tamis.selections._choice import Choice, Request, chosen, prefixes
from tamis.selections._run import (
    check_complement,
    checked_numbers,
    order_of,
    request_for,
    spend_cost,
    spend_rows,
)

SELECTIONS = Family(
    "selection",
    [
        random.METHOD,
        random_balanced.METHOD,
        random_length_matched.METHOD,
        random_redrawn.METHOD,
        strict_random.METHOD,
        top_k.METHOD,
        gumbel_top_k.METHOD,
        doubly_greedy.METHOD,
        round_robin.METHOD,
        knn_uniform.METHOD,
        knn_kde.METHOD,
        transport.METHOD,
        coverage.METHOD,
        cluster_quota.METHOD,
        cluster_middle.METHOD,
        diversity_threshold.METHOD,
    ],
)

_COMMON = {
    "allow_underflow", "cost", "exclude", "ids", "lengths", "reference", "seed", "sources", "task_of",
    "usable", "vectors", "within",
}  # fmt: skip


def choose(name: str | Method | ModuleType, scores: Any, budget: float, **parameters: Any) -> np.ndarray:
    """Positions of the chosen rows, int64 (k,), in order of choice. Takes what `choose_ranked` takes."""
    return choose_ranked(name, scores, budget, **parameters).positions


def choose_ranked(
    name: str | Method | ModuleType,
    scores: Any,
    budget: float,
    *,
    task_of: Any = None,
    sources: Any = None,
    cost: Any = None,
    vectors: Any = None,
    lengths: Any = None,
    reference: Any = None,
    exclude: Any = None,
    ids: Any = None,
    usable: Any = None,
    within: Any = None,
    seed: int = 0,
    allow_underflow: bool = False,
    **parameters: Any,
) -> Choice:
    """Choose rows of a pool and say why each was chosen.

    `name` is a selection's name, a `Method`, or a module that ends in one named METHOD. `scores`: an array
    (m, n), queries by rows; (n,) for a score of the rows alone; a `Similarity`; or None for methods that look
    at no score. Higher is better. Rows that are not `usable` (n,) bool, or have a score that is not finite,
    are never chosen; the notes count them.

    `budget` counts rows, or units of `cost` (n,) when that is given: then rows are taken in order up to the
    first that does not fit. Budgets of one order are prefixes of each other. A budget that cannot be filled
    is an error unless `allow_underflow`.

    `within` (n,) shares the budget over groups in proportion to their usable rows: after h picks every group
    has had floor or ceil of its share of h, and the method runs inside each group on its own (one pass over
    the rows of each group). Those orders are prefixes of each other too, as long as the method's are.

    `task_of` (m,) task of each query; `sources`, `lengths`, `ids` (n,); `vectors` (n, d); `reference`
    positions; `exclude` positions of the rows that strict-random passes over; `seed` for random methods.
    Further `parameters` are the method's own (its `Config`).
    """
    method = _method(name)
    config = _configured(method, parameters)
    # A method that is nested for some of its parameters only says so in its config.
    method = replace(method, nested=getattr(config, "nested", method.nested))
    spent = checked_numbers("cost", cost)
    budget = _checked_budget(budget, spent)
    request = request_for(
        method, scores, task_of=task_of, sources=sources, vectors=vectors, lengths=lengths,
        reference=reference, exclude=exclude, ids=ids, usable=usable, seed=seed,
        also={"cost": spent, "within": within},
    )  # fmt: skip
    order = order_of(method, request, config, within)
    if spent is None:
        if not allow_underflow:
            check_complement(method.name, request, int(budget))
        choice = spend_rows(order, int(budget), int(request.usable.sum()), method.name, allow_underflow)
    else:
        choice = spend_cost(order, budget, spent, request.usable, method, allow_underflow)
    if scores is not None and np.ndim(scores) == 1:
        choice = replace(choice, query=np.full(len(choice), -1, np.int32))
    return replace(choice, notes={**choice.notes, **_counts(request, choice)})


def _method(name: str | Method | ModuleType) -> Method:
    if isinstance(name, str):
        return SELECTIONS[name]
    method = getattr(name, "METHOD", name)
    if not isinstance(method, Method):
        raise RequestError(
            f"a selection is a name ({', '.join(SELECTIONS)}), a Method or a module with METHOD; got {name!r}"
        )
    return method


def _configured(method: Method, parameters: dict[str, Any]) -> Any:
    own = {field.name for field in fields(method.config)}
    for given in parameters:
        if given not in own:
            raise unknown_name(f"parameter of {method.name}", given, own.union(_COMMON))
    return method.configure(parameters)


def _checked_budget(budget: Any, cost: np.ndarray | None) -> float:
    number = isinstance(budget, (int, float, np.integer, np.floating)) and not isinstance(budget, bool)
    if not number or not 0 <= budget < float("inf"):
        raise RequestError(f"budget must be a number, not below 0; got {budget!r}")
    if cost is None and budget != int(budget):
        raise RequestError(
            f"a budget in rows must be whole; got {budget!r} (give cost= for a budget in other units)"
        )
    return float(budget)


def _counts(request: Request, choice: Choice) -> dict[str, int]:
    """Why rows could not be chosen: not usable to begin with, or with a score that is not finite.

    An array's scores are looked at before anything runs, those of a stream while it is read.
    """
    known = getattr(request.similarity, "nan_count", 0)
    found = choice.notes.get("nan_count", 0)
    usable = int(request.usable.sum())
    excluded = 0 if request.exclude is None else len(request.exclude)
    counts = {
        "nan_count": known + found,
        "unusable_count": request.n - usable - excluded - known,
        "usable_rows": usable - found,
    }
    return counts if request.exclude is None else {**counts, "excluded_rows": excluded}


__all__ = [
    "SELECTIONS",
    "ArraySimilarity",
    "Choice",
    "FeatureSimilarity",
    "Request",
    "Similarity",
    "SparseSimilarity",
    "choose",
    "choose_ranked",
    "chosen",
    "prefixes",
]
