"""How much more likely a row's words are among the queries' words than among the pool's (DSIR).

**Paper.** Xie, Santurkar, Ma, Liang 2023, Data Selection for Language Models via Importance Resampling, arXiv
2302.03169.
**Definition.** c_jb = hashed n-gram counts of row j (`ngrams` with tokens="dsir", `n` and `buckets`); p_b and
t_b = the counts of all pool rows and of all query rows, those of the queries with `pseudo_count` added to
every bucket, each divided by its sum; s_j = sum_b c_jb (ln(t_b + 1e-8) - ln(p_b + 1e-8)).
**Needs.** Rows with text and a query set; no model.
**Gives.** float64 (n,), natural logarithm of an importance weight, higher is more like the target. Not
scored: `no_target_tokens`, a row without an n-gram; `refused`, a row of fewer than `min_words` words.
**Cost.** The stored counts, which `ngrams` shares, and one pass over them; memory of one shard and 2 D
numbers.
**Departs.** (1) p is counted over the whole pool; released, over some of it (100,000 n-grams a bucket).
(2) `min_words` is 10; released, 100, which suits web pages and leaves out most instructions. (3) Queries of
several targets are one target, in proportion to their n-grams; released, each target has a quota of rows.
(4) As released, nothing is divided by the length: each n-gram that no query has costs about 17 when
`pseudo_count` is 0, so that short rows come first. A little of it makes up for few queries: in the laboratory
(16 targets of 12 queries, 100 of 2,910 rows) the target's share of the chosen rows is 0.84 with 0, 0.96 with
0.03 and 0.42 with 1; on 67,955 real rows (6 targets of 16 queries, 500 rows) 0.47, 0.83 and 0.83.
**Relations.** Strategy `dsir` draws rows by it (selection `gumbel-top-k`) with `pseudo_count` 0.03. `ngrams`
compares rows with single queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from tamis.core.digest import digest
from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.status import code
from tamis.core.store import shard_bounds
from tamis.representations import ngrams
from tamis.representations._context import Context
from tamis.representations.represent import Representation, represent, shard_arrays
from tamis.scores._context import Scored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tamis.pools.pool import Message, Pool

SMALLEST = 1e-8  # added to every probability, as released


@dataclass(frozen=True)
class Config:
    """`n` and `buckets` of the n-grams; `pseudo_count` added to the queries' counts; `min_words` of a row."""

    n: int = 2
    buckets: int = 10_000
    pseudo_count: float = 0.0
    min_words: int = 10

    def __post_init__(self) -> None:
        ngrams.Config(**self.counts)
        if not 0 <= self.pseudo_count < float("inf"):
            raise ValueError(f"pseudo_count={self.pseudo_count!r}: expected a number, 0 or more")
        if self.min_words < 0:
            raise ValueError(f"min_words={self.min_words!r}: expected 0 or more")

    @property
    def counts(self) -> dict[str, Any]:
        """Parameters of `ngrams` for the counts."""
        return {"n": self.n, "buckets": self.buckets, "tokens": "dsir"}


def log_ratios(target: np.ndarray, pool: np.ndarray, pseudo_count: float = 0.0) -> np.ndarray:
    """ln(t + 1e-8) - ln(p + 1e-8) (D,) float64 of bucket counts (D,); neither may be empty."""
    smoothed = target + pseudo_count
    found: np.ndarray = np.log(smoothed / smoothed.sum() + SMALLEST) - np.log(pool / pool.sum() + SMALLEST)
    return found


class ImportanceScorer:
    """Scores the rows of a pool from its stored n-gram counts (`fit`, `rows`), or other rows (`score`)."""

    def __init__(self, config: Config, context: Context) -> None:
        if not context.queries:
            raise RequestError(
                "importance compares the pool with a target: give --query NAME=PATH, or queries={name: Pool}"
            )
        self.config, self.queries, self._store = config, context.queries, context.store
        self._encoder = ngrams.NgramEncoder(ngrams.Config(**config.counts))
        self.execution: dict[str, Any] = {}
        self.made_from = (ngrams.METHOD.name, config.counts)  # representations that are stored on the way
        self.recipe: dict[str, Any] = {
            "counts": self._encoder.recipe,
            "pseudo_count": float(config.pseudo_count),
            "min_words": config.min_words,
            # One digest, whatever the targets are called and in whatever order they come.
            "queries": digest(sorted(query.digest for query in context.queries.values())),
        }
        self._counted: Representation | None = None
        self._ratios: np.ndarray | None = None

    def fit(self, pool: Pool, quiet: bool = True) -> None:
        """Count the n-grams of the queries and of `pool`, or read them from the store."""
        self._counted = self._counts(pool, quiet)
        self._ratios = self._ratios_of(_totals(shard_arrays(self._counted.thing), self.config.buckets), quiet)

    def rows(self, start: int, stop: int) -> Scored:
        """The rows [start, stop) of the pool that was fitted; they are one of its shards."""
        assert self._counted is not None and self._ratios is not None  # `fit` came before
        thing = self._counted.thing
        shard = shard_bounds(len(self._counted)).index((start, stop))
        arrays = {name: thing.array(shard, name) for name in ("indptr", "indices", "counts")}
        return self._weighed(arrays, thing.array(shard, "tokens"), thing.array(shard, "status"), self._ratios)

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Rows that are in no fitted pool; before `fit` they are their own."""
        made = self._encoder.encode(conversations, advance)
        ratios = self._ratios
        if ratios is None:
            ratios = self._ratios_of(_totals([made.arrays], self.config.buckets), True)
        return self._weighed(made.arrays, made.tokens, made.status, ratios)

    def _counts(self, pool: Pool, quiet: bool, role: str = "pool") -> Representation:
        return represent(
            pool, ngrams.METHOD, parameters=self.config.counts, store=self._store, role=role, quiet=quiet
        )

    def _ratios_of(self, pool: np.ndarray, quiet: bool) -> np.ndarray:
        target = np.zeros(self.config.buckets)
        for query in self.queries.values():
            counted = self._counts(query, quiet, "query")
            target += _totals(shard_arrays(counted.thing), self.config.buckets)
        if not target.any():
            raise RequestError("importance: no query row has a word, so there is no target to compare with")
        return log_ratios(target, pool, self.config.pseudo_count) if pool.any() else np.zeros_like(target)

    def _weighed(
        self, arrays: Mapping[str, np.ndarray], words: np.ndarray, status: np.ndarray, ratios: np.ndarray
    ) -> Scored:
        shape = (len(words), len(ratios))
        counts = csr_array(
            (arrays["counts"].astype(np.float64), arrays["indices"].astype(np.int32), arrays["indptr"]), shape
        )
        short = (status == code("ok")) & (words < self.config.min_words)
        status = np.where(short, code("refused"), status).astype(np.uint8)
        least = self.config.min_words
        reasons = {int(i): f"{words[i]} words, fewer than min_words={least}" for i in np.flatnonzero(short)}
        values = np.where(status == code("ok"), counts @ ratios, np.nan)
        return Scored(values, status, words.astype(np.int32), reasons)


def _totals(shards: Sequence[Mapping[str, np.ndarray]], buckets: int) -> np.ndarray:
    """Occurrences of every bucket, (D,) float64, one shard in memory at a time; whole numbers, so exact."""
    total = np.zeros(buckets)
    for shard in shards:
        total += np.bincount(shard["indices"], weights=shard["counts"], minlength=buckets)
    return total


def importance_slow(counts: np.ndarray, target: np.ndarray, pseudo_count: float = 0.0) -> list[float]:
    """The definition from pool counts (n, D) and target counts (D,), number by number. For tests."""
    from math import fsum, log

    smoothed = [float(x) + pseudo_count for x in target]
    pool = [float(sum(row[b] for row in counts)) for b in range(len(target))]
    ratio = [
        log(t / fsum(smoothed) + SMALLEST) - log(p / fsum(pool) + SMALLEST)
        for t, p in zip(smoothed, pool, strict=True)
    ]
    return [fsum(float(c) * r for c, r in zip(row, ratio, strict=True)) for row in counts]


def prepare(config: Config, context: Context) -> ImportanceScorer:
    """The scorer for `config`; raises RequestError without a query set."""
    return ImportanceScorer(config, context)


METHOD = Method("importance", prepare, Config, __doc__ or "", needs=("query",))
