"""Pool → stored scores: shards, statuses and resuming around any method of the family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core import status as statuses
from tamis.core.method import Method
from tamis.core.progress import progress
from tamis.core.shards import Made, make_shards, of_share
from tamis.core.signal import StoredSignal, signal_recipe
from tamis.core.store import Store, shard_bounds
from tamis.representations._context import Context, Outside
from tamis.scores._context import Further, OfPool, Scored

if TYPE_CHECKING:
    from tamis.pools.pool import Pool


@dataclass(frozen=True)
class Scores(StoredSignal):
    """Stored scores of one pool; higher is better. A row that is not scored has NaN and a status."""

    derive: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None
    warns: Callable[[np.ndarray], list[str]] | None = None
    before: tuple[str, ...] = ()  # digests of the scores that it goes on from

    @property
    def warnings(self) -> list[str]:
        """What a reader of these values should know."""
        return [] if self.warns is None else self.warns(self.values)

    @cached_property
    def _found(self) -> tuple[np.ndarray, np.ndarray]:
        codes = self.thing.joined("status")
        if self.derive is None:
            return self.thing.joined("values"), codes
        return self.derive(self.columns, codes)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What was stored beside the values, (n,) each by name."""
        names = {name.split(".")[1] for name in self.thing.meta["files"] if name.endswith(".npy")}
        return {name: self.thing.joined(name) for name in sorted(names - {"status", "tokens"})}

    @property
    def codes(self) -> np.ndarray:
        """Status codes (n,) uint8."""
        return self._found[1]

    @property
    def values(self) -> np.ndarray:
        """Scores (n,) float64, NaN where the status is not scored."""
        return np.where(statuses.scored(self.codes), self._found[0], np.nan)


def score(
    pool: Pool,
    method: str | Method,
    *,
    model: str | None = None,
    template: str = "auto",
    max_tokens: int = 2048,
    dtype: str = "auto",
    device: str = "auto",
    store: str | Path = ".tamis",
    parameters: Mapping[str, Any] | None = None,
    queries: Mapping[str, Pool] | None = None,
    remote_code: bool = False,
    batch_tokens: int | None = None,
    share: tuple[int, int] | None = None,
    quiet: bool = True,
) -> Scores:
    """Score `pool` by a method (a name, or a `Method` of your own) and keep the result in `store`.

    What is stored already is not made again; an interrupted run goes on at its first missing shard. With a
    `share` (i, n) only every n-th shard is made and the result may still be partial (`.thing.state`).
    `queries`: the target of a score that compares rows with one (`importance`).
    """
    from tamis.scores import SCORES

    chosen = SCORES[method] if isinstance(method, str) else method
    config = chosen.configure(parameters or {})
    context = Context(
        model=model,
        template=template,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
        remote_code=remote_code,
        batch_tokens=batch_tokens,
        store=store,
        queries=queries or {},
    )
    making = Making(chosen, config, context, pool)
    with progress(making.characters_due(share), "characters", f"score {chosen.name}", quiet) as advance:
        making.run(share, advance, quiet)
    scorer, thing = making.scorer, making.thing
    derive, warns = (getattr(scorer, name, None) for name in ("derive", "warnings_of"))
    found = Scores(chosen, config, thing, pool.ids, making.execution(), derive, warns, making.digests_before)
    facts = getattr(scorer, "facts", None)  # of what is stored, for the manifest
    if facts is not None and thing.state == "complete":
        found = replace(found, execution={**found.execution, **facts(found.columns)})
    return found


class Making:
    """A score of a pool in the store, and the one that it goes on from, if any."""

    def __init__(self, method: Method, config: Any, context: Context, pool: Pool) -> None:
        self.method, self.pool = method, pool
        self.scorer = method.run(config, context)
        recipe = signal_recipe(method, self.scorer.recipe, pool.digest, len(pool))
        self._bounds = shard_bounds(len(pool))
        self._store = Store(context.store)
        self.thing = self._store.open("scores", recipe, len(self._bounds))
        self.before: Making | None = None
        named = method.before(config) if method.before is not None else None
        if named is not None:
            from tamis.scores import SCORES

            other = SCORES[named[0]]
            self.before = Making(other, other.configure(named[1]), context, pool)

    @property
    def digests_before(self) -> tuple[str, ...]:
        """Stored things that it goes on from, nearest first."""
        return () if self.before is None else (self.before.thing.digest, *self.before.digests_before)

    def execution(self) -> dict[str, Any]:
        """How the scorer runs here."""
        return dict(getattr(self.scorer, "execution", {}))

    def characters_due(self, share: tuple[int, int] | None) -> int:
        """Characters of the rows that are to be scored yet, for the remaining time: tokens are not known."""
        return sum(self._characters(*self._bounds[i]) for i in of_share(self.thing.missing(), share))

    def _characters(self, start: int, stop: int) -> int:
        return int(np.sum(self.pool.chars[start:stop], dtype=np.int64)) + stop - start

    def run(self, share: tuple[int, int] | None, advance: Callable[[int], None], quiet: bool) -> None:
        """Make the missing shards, or one worker's share of them."""
        scorer = self.scorer
        if self.thing.state != "complete":
            if isinstance(scorer, Outside):
                scorer.match(self.pool.ids)
            if isinstance(scorer, OfPool):
                scorer.fit(self.pool, quiet)

        def make(start: int, stop: int) -> Made:
            made = self._scored(start, stop)
            advance(self._characters(start, stop))
            arrays = {"values": made.values, "status": made.status, "tokens": made.tokens} | made.columns
            return Made(arrays, made.reasons, made.tokens_read, made.flops)

        make_shards(
            self._store, self.thing, self._bounds, make, method=self.method.name, execution=self.execution,
            share=share,
        )  # fmt: skip

    def _scored(self, start: int, stop: int) -> Scored:
        scorer = self.scorer
        if isinstance(scorer, (Outside, OfPool)):
            made: Scored = scorer.rows(start, stop)
            return made
        conversations = self.pool.conversations(start, stop)
        if self.before is not None and isinstance(scorer, Further):
            return scorer.further(conversations, self.before.stored(start, stop), lambda tokens: None)
        made = scorer.score(conversations, lambda tokens: None)
        return made

    def stored(self, start: int, stop: int) -> Scored:
        """The shard [start, stop), made if it is not there."""
        shard = self._bounds.index((start, stop))
        if shard in self.thing.missing():
            self.run((shard + 1, len(self._bounds)), lambda rows: None, True)
        names = ("values", "status", "tokens", *getattr(self.scorer, "columns", ()))
        arrays = {name: np.array(self.thing.array(shard, name)) for name in names}
        own = [arrays.pop(name) for name in ("values", "status", "tokens")]
        return Scored(own[0], own[1], own[2], self.thing.reasons(shard), arrays)
