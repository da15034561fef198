"""From inputs to an order: checks, budgets in rows or in cost, and budgets shared over groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.similarity import ArraySimilarity, Similarity, usable_mask
from tamis.core.vectors import vectors_of
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._order import codes, proportional_turns

Order = Callable[[int], Choice]


def request_for(
    method: Method,
    scores: Any,
    *,
    task_of: Any,
    sources: Any,
    vectors: Any,
    lengths: Any,
    reference: Any,
    exclude: Any,
    ids: Any,
    usable: Any,
    seed: int,
    also: dict[str, Any],
) -> Request:
    """The checked request. `also` names further (n,) inputs, which must have as many entries as the pool."""
    similarity = _similarity(scores, usable)
    rows = vectors_of(getattr(similarity, "vectors", None) if vectors is None else vectors)
    given = {"sources": sources, "lengths": lengths, "ids": ids, "usable": usable, **also}
    if rows is not None:
        given["vectors"] = range(rows.n)
    n = similarity.n if similarity is not None else _common_length(method, given)
    for name, value in given.items():
        if value is not None and len(value) != n:
            raise RequestError(f"{name} has {len(value)} entries, but the pool has {n} rows")
    mask = similarity.usable if similarity is not None else usable_mask(usable, n)
    numbers, names = (None, []) if sources is None else codes(np.asarray(sources))
    request = Request(
        n=n,
        usable=mask,
        similarity=similarity,
        task_of=_task_numbers(task_of, similarity),
        sources=numbers,
        source_names=names,
        lengths=checked_numbers("lengths", lengths),
        reference=_positions("reference", reference, n),
        exclude=_positions("exclude", exclude, n),
        vectors=rows,
        ids=None if ids is None else np.asarray(ids),
        seed=seed,
    )
    if also.get("within") is not None and "reference" in method.needs:
        raise RequestError(
            f"{method.name} follows its reference row by row and cannot share a budget over groups; "
            "match_sources=True keeps the reference's sources"
        )
    for need in method.needs:
        if getattr(request, need, None) is None:
            raise RequestError(
                f"{method.name} needs {'scores' if need == 'similarity' else need + '='}; none were given"
            )
    return request if exclude is None else _without_excluded(method, request)


def _without_excluded(method: Method, request: Request) -> Request:
    if "exclude" not in method.needs:
        raise RequestError(f"{method.name} does not look at exclude=; keep rows out of it with usable=")
    mask = np.zeros(request.n, bool)
    mask[request.exclude] = True
    return replace(request.among(~mask), exclude=np.flatnonzero(mask & request.usable))


def check_complement(name: str, request: Request, budget: int) -> None:
    """Raise RequestError when fewer rows are left than asked for after rows were excluded."""
    left = int(request.usable.sum())
    if request.exclude is not None and left < budget:
        raise RequestError(
            f"{name} is infeasible: of {request.n} rows in the pool {left + len(request.exclude)} are "
            f"usable, {len(request.exclude)} of them excluded, {left} left, and {budget} were asked for; "
            "lower the budget, exclude smaller subsets, or allow underflow"
        )


def _similarity(scores: Any, usable: Any) -> Similarity | None:
    if scores is None:
        return None
    if not isinstance(scores, Similarity):
        return _with_queries(ArraySimilarity(scores, usable))
    _with_queries(scores)
    return scores if usable is None else scores.restrict(usable_mask(usable, scores.n))


def _with_queries(similarity: Similarity) -> Similarity:
    if similarity.m == 0:
        raise RequestError("scores have no query (shape (0, n)); give at least one query row")
    return similarity


def _common_length(method: Method, given: dict[str, Any]) -> int:
    for value in given.values():
        if value is not None:
            return len(value)
    raise RequestError(
        f"{method.name} cannot tell how many rows there are: give scores, {', '.join(given)} or cost"
    )


def _task_numbers(task_of: Any, similarity: Similarity | None) -> np.ndarray | None:
    if task_of is None or similarity is None:
        return None
    if len(task_of) != similarity.m:
        raise RequestError(f"task_of has {len(task_of)} entries, but there are {similarity.m} queries")
    return codes(np.asarray(task_of))[0]


def checked_numbers(name: str, values: Any) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all() or (array < 0).any():
        raise RequestError(
            f"{name} must be (n,) finite numbers, none below 0; got {array.shape} {array.dtype}"
        )
    return array


def _positions(name: str, given: Any, n: int) -> np.ndarray | None:
    if given is None:
        return None
    array = np.asarray(given) if np.size(given) else np.empty(0, np.int64)
    if (
        array.ndim != 1
        or array.dtype.kind not in "iu"
        or (array.size and not 0 <= array.min() <= array.max() < n)
    ):
        raise RequestError(f"{name} must be positions from 0 to {n - 1}; got {array.shape} {array.dtype}")
    return array.astype(np.int64)


def order_of(method: Method, request: Request, config: Any, within: Any) -> Order:
    """k -> the first k rows of the method, or of its runs inside the groups of `within` (n,)."""
    if within is None:
        return lambda limit: method.run(request, limit, config)
    numbers, names = codes(np.asarray(within))

    def grouped(limit: int) -> Choice:
        sizes = np.bincount(numbers[request.usable], minlength=len(names))
        turns = proportional_turns(sizes, min(limit, int(sizes.sum())))
        parts, order = [], np.empty(len(turns), np.int64)
        offset = 0
        for group in range(len(names)):
            slots = np.flatnonzero(turns == group)
            part = (
                method.run(request.among(numbers == group), len(slots), config) if len(slots) else chosen([])
            )
            if len(part) < len(slots):
                raise RequestError(
                    f"{method.name} found {len(part)} rows to choose in group {names[group]!r}, whose share "
                    f"is {len(slots)}; mark rows without a score as not usable, or lower the budget"
                )
            order[slots] = offset + np.arange(len(slots))
            offset += len(slots)
            parts.append(part)
        return _joined(parts).take(order)

    return grouped


def _joined(parts: list[Choice]) -> Choice:
    notes: dict[str, Any] = {}
    for part in parts:
        for name, value in part.notes.items():
            # Counts are added up; a list has one entry for each group.
            notes[name] = notes[name] + value if name in notes else value
    return Choice(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.gain for part in parts]),
        np.concatenate([part.query for part in parts]),
        np.concatenate([part.task for part in parts]),
        notes,
    )


def spend_rows(order: Order, budget: int, usable_rows: int, name: str, allow_underflow: bool) -> Choice:
    """The first `budget` rows of the order; fewer is an error unless `allow_underflow`."""
    limit = min(budget, usable_rows)
    choice = order(limit) if limit else chosen([])
    if len(choice) < budget and not allow_underflow:
        raise RequestError(
            f"{name} can choose {len(choice)} of the {budget} rows asked for ({usable_rows} rows of the pool "
            "are usable); lower the budget or allow underflow"
        )
    return choice


def spend_cost(
    order: Order, budget: float, cost: np.ndarray, usable: np.ndarray, method: Method, allow_underflow: bool
) -> Choice:
    """The longest prefix of the order whose cost is within `budget`: it ends before the first row that does
    not fit.

    The order is asked for in growing lengths, so a small budget does not sort the whole pool.
    """
    if not method.nested:
        raise RequestError(
            f"{method.name} gives another order for every budget, so it takes budgets in rows only"
        )
    usable_rows = int(usable.sum())
    typical = float(cost[usable].mean()) if usable_rows else 1.0
    limit = min(usable_rows, int(1.25 * budget / max(typical, 1e-9)) + 16) if budget > 0 else 0
    passes = 0
    while True:
        choice = order(limit) if limit else chosen([])
        passes += choice.notes.get("passes", 0)
        spent = np.cumsum(cost[choice.positions])
        fits = int(np.searchsorted(spent, budget, side="right"))
        if fits < len(choice) or limit == usable_rows or len(choice) < limit or budget == 0:
            break
        limit = min(usable_rows, 2 * limit)
    if fits == len(choice) and budget > 0 and (fits == 0 or spent[-1] < budget) and not allow_underflow:
        raise RequestError(
            f"{method.name}: all {len(choice)} rows that can be chosen cost {spent[-1] if fits else 0:g}, "
            f"less than the budget of {budget:g}; lower the budget or allow underflow"
        )
    notes = {**choice.notes, "cost": float(spent[fits - 1]) if fits else 0.0}
    if "passes" in notes:
        notes["passes"] = passes
    return replace(choice.take(slice(fits)), notes=notes)
