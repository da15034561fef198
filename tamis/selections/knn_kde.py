"""Rows get mass from the queries they are near to, less where the pool is crowded; largest mass first.

**Paper.** Liu, Karbasi, Rekatsinas 2024, TSDS: Data Selection for Task-Specific Model Finetuning,
arXiv:2410.11303; constants alpha = 0.01, cosine distance and the choice of the largest masses from
arXiv:2602.14696.
**Definition.** Each query's M nearest rows by d = 1 - S; U their union; density rho_j = sum over the
`kde_neighbours` nearest i of j in U, itself included, of max(0, 1 - |v_i - v_j|^2 / sigma^2) for unit vectors
v. Counts grow from the smallest: query q has used its rank k when the count passes sum_{k' <= k} 1 / rho, and
all stop at the first count s where alpha / c times the total cost d_{k+1} s - sum_{k' <= k} d_{k'} / rho_{k'}
reaches (1 - alpha) m. A used row gets 1 / (m s rho), the next one the rest of the query's 1 / m. p sums these
over queries; larger p first (rounded to 1e-12), then larger mean S, then the smaller row.
**Needs.** similarity S (m, n), a cosine; vectors (n, d); usable (n,).
**Gives.** positions int64 (k,); gain = p; query = the one that gave the row most (then the most similar, then
the first), -1 for rows without mass, which follow by mean S and are counted (`beyond_neighbours`).
**Cost.** One pass of O(n m d) for lists of M; |U|^2 d for the densities (each pair once), in blocks; m M
log(m M) for the counts; O(m M + |U| d) memory. M by default is max(64, 4 k / m) for a budget of k, which is
the published 5000 at 8 queries and 10,000 rows; it doubles, with another pass, while U has fewer than k rows.
At the published 5000 U has up to 5000 m rows: `cost_estimate` says what that is before anything runs.
**Departs.** Two guards, off with compatible=True: a query that runs out of ranks spreads its mass over those
it used (published: all that is left lands on its farthest neighbour, which then comes first), and one that is
never reached gives its 1 / m to its nearest row and no more. compatible=True also takes M = 5000 if none is
given, caps it and `kde_neighbours` at n / 10, and breaks ties by row alone. Not nested by default, because M
follows the budget (budgets of one request share the largest one's order); nested, and open to budgets in
tokens, when `neighbours` is given. Densities are float32, counts float64; tasks are not looked at.
distance="euclidean" is |v - q| in the cost, as in the first paper's code.
**Relations.** knn-uniform's masses when sigma = 0, at the same alpha and c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tamis.core.method import Method
from tamis.core.similarity import Similarity
from tamis.core.vectors import Vectors, products
from tamis.selections._best import Lists, best, column_means, reduce_rows
from tamis.selections._choice import Choice, Request, chosen
from tamis.selections._pairs import HELD_BYTES, STEP_ROWS, UnitRows, pair_blocks
from tamis.selections._tsds import MASS_DECIMALS, masses, reach

PUBLISHED_NEIGHBOURS = 5000
NEIGHBOUR_SHARES = 4
FEWEST_NEIGHBOURS = 64
CROWDED_ENTRIES = 1 << 24
_COLUMNS = 4096


@dataclass(frozen=True)
class Config:
    """`neighbours` M of each query (None: sized from budget and queries); `kde_neighbours` rows that count
    in a density; `sigma` radius of its kernel; `alpha`, `c` weights of cost and deviation."""

    alpha: float = 0.01
    c: float = 5.0
    neighbours: int | None = None
    sigma: float = 0.75
    kde_neighbours: int = 1000
    distance: Literal["cosine", "euclidean"] = "cosine"
    compatible: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha must lie between 0 and 1; got {self.alpha!r}")
        if not 0.0 < self.c < float("inf"):
            raise ValueError(f"c must be a number above 0; got {self.c!r}")
        if not 0.0 <= self.sigma < float("inf"):
            raise ValueError(f"sigma must be a number, not below 0; got {self.sigma!r}")
        if self.neighbours is not None and self.neighbours < 2:
            raise ValueError(f"neighbours must be 2 or more; got {self.neighbours!r}")
        if self.kde_neighbours < 1:
            raise ValueError(f"kde_neighbours must be 1 or more; got {self.kde_neighbours!r}")
        if self.distance not in ("cosine", "euclidean"):
            raise ValueError(f"distance must be 'cosine' or 'euclidean', not {self.distance!r}")

    @property
    def nested(self) -> bool:
        """Whether a smaller budget is a prefix of a larger one: not when M follows the budget."""
        return self.neighbours is not None or self.compatible

    def depth(self, limit: int, m: int, rows: int) -> int:
        """M, and in compatible mode its cap; at least 2 as far as there are `rows`."""
        wanted = self.neighbours or max(FEWEST_NEIGHBOURS, -(-NEIGHBOUR_SHARES * limit // m))
        if self.compatible:
            wanted = min(self.neighbours or PUBLISHED_NEIGHBOURS, rows // 10)
        return min(rows, max(2, wanted))

    def kernel_rows(self, rows: int) -> int:
        """Rows that count in a density, and in compatible mode their cap."""
        return min(self.kde_neighbours, max(1, rows // 10)) if self.compatible else self.kde_neighbours


def select(request: Request, limit: int, config: Config) -> Choice:
    """The first `limit` rows by mass, then those without mass by mean similarity."""
    similarity, vectors = request.similarity, request.vectors
    assert similarity is not None and vectors is not None  # the family checks `needs`
    lists, passes = _lists(similarity, limit, config)
    notes: dict[str, Any] = {"passes": passes, "nan_count": lists.nan_count}
    if lists.rows.shape[1] == 0:
        return chosen([], **notes)
    found, facts = weigh(lists, vectors, config, int(similarity.usable.sum()))
    notes |= facts
    rows, mass, query = found
    if config.compatible:
        order = np.argsort(-mass, kind="stable")
    else:
        order = np.lexsort((rows, -_means(similarity, rows), -np.round(mass, MASS_DECIMALS)))
    order = order[mass[order] > 0][:limit]
    positions, gain, who = rows[order], mass[order], query[order]
    if len(positions) < limit:
        rest = reduce_rows(similarity, "mean")
        rest.choosable[positions] = False
        left = np.flatnonzero(rest.choosable)
        if not config.compatible:
            left = left[np.argsort(-rest.key[left], kind="stable")]
        left = left[: limit - len(positions)]
        notes["passes"] += 1
        notes["beyond_neighbours"] = len(left)
        positions = np.concatenate([positions, left])
        gain = np.concatenate([gain, np.zeros(len(left))])
        who = np.concatenate([who, np.full(len(left), -1, who.dtype)])
    return chosen(positions, gain, who, None, **notes)


def _lists(similarity: Similarity, limit: int, config: Config) -> tuple[Lists, int]:
    """The nearest rows of each query, cut to what all have, and the passes that took."""
    depth, passes = config.depth(limit, similarity.m, int(similarity.usable.sum())), 0
    while True:
        lists, passes = best(similarity, depth), passes + 1
        kept = int(lists.length.min())
        lists = Lists(
            lists.rows[:, :kept], lists.scores[:, :kept], lists.length, lists.complete, lists.nan_count
        )
        if config.nested or kept < depth or depth >= limit or len(np.unique(lists.rows)) >= limit:
            return lists, passes
        depth = min(2 * depth, limit)


def weigh(
    lists: Lists, vectors: Vectors, config: Config, pool_rows: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], dict[str, int]]:
    """(rows of U ascending, their mass p float64, the query that gave most int32), and counts for the notes.

    `lists` all of one length; `pool_rows`: how many rows the lists were drawn from.
    """
    m, depth = lists.rows.shape
    rows, at = np.unique(lists.rows, return_inverse=True)
    at = at.reshape(m, depth)
    density, crowded = np.ones(len(rows)), 0
    most = config.kernel_rows(pool_rows)
    if config.sigma > 0 and config.compatible:
        density = published_densities(UnitRows(vectors, rows), config.sigma, most)
    elif config.sigma > 0:
        density, crowded = densities(UnitRows(vectors, rows), config.sigma, most)
    distance = np.maximum((1.0 - lists.scores).astype(np.float64), 0.0)
    if config.distance == "euclidean":
        distance = np.sqrt(2.0 * distance)
    facts = {"neighbours": depth, "candidates": len(rows), "crowded": crowded}
    if depth == 1:  # one row in all
        return (rows, np.ones(1), np.zeros(1, np.int32)), facts
    found = reach(distance, density[at], config.alpha, config.c)
    facts |= {"stopped": int(found.stopped), "exhausted": int((found.used == depth - 1).sum())}
    mass = masses(density[at], found, config.compatible)
    total = np.bincount(at.ravel(), weights=mass.ravel(), minlength=len(rows))
    return (rows, total, _givers(at, mass, lists.scores, len(rows))), facts


def _givers(at: np.ndarray, mass: np.ndarray, scores: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) int32: the query that gave each row most, then the most similar, then the first; -1 if none."""
    query = np.repeat(np.arange(len(at)), at.shape[1])
    order = np.lexsort((query, -scores.ravel(), -mass.ravel(), at.ravel()))
    order = order[mass.ravel()[order] > 0]
    row, first = np.unique(at.ravel()[order], return_index=True)
    givers = np.full(rows, -1, np.int32)
    givers[row] = query[order[first]]
    return givers


def densities(rows: UnitRows, sigma: float, most: int) -> tuple[np.ndarray, int]:
    """(u,) float64 kernel densities of unit rows, each over its `most` nearest, and how many rows had more.

    A sum over all rows is the sum over the nearest ones where no more than those are inside the kernel, which
    is what blocks of pairs can sum; the other rows are done again, one whole line of products at a time.
    """
    slope = np.float32(2.0 / sigma**2)
    density, inside = np.ones(len(rows)), np.ones(len(rows), np.int64)
    for left, right, kernel in pair_blocks(rows):
        if left == right:
            np.fill_diagonal(kernel, -np.inf)  # itself counts 1 exactly, and was counted above
        _kernel(kernel, slope)
        if not kernel.any():
            continue
        density[left] += kernel.sum(axis=1, dtype=np.float64)
        inside[left] += np.count_nonzero(kernel, axis=1)
        if left != right:
            density[right] += kernel.sum(axis=0, dtype=np.float64)
            inside[right] += np.count_nonzero(kernel, axis=0)
    crowded = np.flatnonzero(inside > most)
    for which, line in _lines(rows, crowded):
        _kernel(line, slope)
        line[np.arange(len(which)), which] = 1.0
        line.partition(len(rows) - most, axis=1)
        density[which] = line[:, len(rows) - most :].sum(axis=1, dtype=np.float64)
    return density, len(crowded)


def published_densities(rows: UnitRows, sigma: float, most: int) -> np.ndarray:
    """The same numbers in the published code's float32 steps, so that near ties fall as they do there."""
    density = np.empty(len(rows))
    for which, line in _lines(rows, np.arange(len(rows))):
        line.sort(axis=1)
        distance = np.maximum(np.float32(1.0) - line[:, ::-1][:, :most], np.float32(0.0))
        kernel = np.float32(1.0) - np.float32(2.0) * distance / np.float32(sigma**2)
        density[which] = (kernel * (kernel > 0)).sum(axis=1)
    density[density <= 0] = 1.0  # a row of zeros is not even near to itself
    return density


def _lines(rows: UnitRows, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(some of the `wanted` rows, their products with all rows), as many at once as stay small."""
    step = max(1, CROWDED_ENTRIES // len(rows))
    for first in range(0, len(wanted), step):
        which = wanted[first : first + step]
        line, left = np.empty((len(which), len(rows)), np.float32), rows[which]
        for start in range(0, len(rows), STEP_ROWS):
            span = slice(start, min(start + STEP_ROWS, len(rows)))
            line[:, span] = products(left, rows[span])
        yield which, line


def _kernel(products: np.ndarray, slope: np.float32) -> None:
    """In place: max(0, 1 - 2 (1 - x) / sigma^2), where `slope` is 2 / sigma^2."""
    products -= np.float32(1.0)
    products *= slope
    products += np.float32(1.0)
    np.maximum(products, np.float32(0.0), out=products)


def _means(similarity: Similarity, rows: np.ndarray) -> np.ndarray:
    """Mean similarity of `rows` over the queries."""
    parts = [
        column_means(similarity.columns(rows[start : start + _COLUMNS]))
        for start in range(0, len(rows), _COLUMNS)
    ]
    return np.concatenate(parts)


def cost_estimate(m: int, n: int, d: int, config: Config, limit: int) -> dict[str, float]:
    """What a run would cost at most: `neighbours`, `candidates`, `flops` (`pass_flops` of them for the
    lists, `density_flops` for the densities) and `bytes` of memory.

    `m` queries, `n` rows that may be chosen, `d` dimensions of dense vectors. The union is taken to be as
    large as it can be; lists that overlap make it smaller, and its densities cost the square of that.
    """
    depth = config.depth(limit, m, n)
    candidates = min(n, m * depth)
    lists, density = 2.0 * m * n * d, 1.0 * candidates**2 * d * (config.sigma > 0)
    held = min(4.0 * candidates * d, HELD_BYTES)
    return {
        "neighbours": depth,
        "candidates": candidates,
        "pass_flops": lists,
        "density_flops": density,
        "flops": lists + density,
        "bytes": held
        + 8.0 * m * (2 * depth + 256)
        + 80.0 * m * depth
        + 4.0 * (STEP_ROWS**2 + CROWDED_ENTRIES),
    }


def densities_slow(vectors: np.ndarray, sigma: float, most: int) -> np.ndarray:
    """The definition, in float64: (u,) densities of unit rows (u, d). For tests."""
    square = ((vectors[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=2)
    kernel = np.maximum(0.0, 1.0 - square / sigma**2)
    return np.asarray(np.sort(kernel, axis=1)[:, -most:].sum(axis=1))


METHOD = Method("knn-kde", select, Config, __doc__ or "", needs=("similarity", "vectors"), nested=False)
