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
from tamis.core.shards import Made, make_shards
from tamis.core.signal import StoredSignal, signal_recipe
from tamis.core.store import Store, shard_bounds
from tamis.representations._context import Context, Outside
from tamis.scores._context import OfPool

if TYPE_CHECKING:
    from tamis.pools.pool import Pool


@dataclass(frozen=True)
class Scores(StoredSignal):
    """Stored scores of one pool; higher is better. A row that is not scored has NaN and a status."""

    derive: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None
    warns: Callable[[np.ndarray], list[str]] | None = None

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
    scorer = chosen.run(config, context)
    recipe = signal_recipe(chosen, scorer.recipe, pool.digest, len(pool))
    bounds = shard_bounds(len(pool))
    thing = Store(store).open("scores", recipe, len(bounds))
    by_place = scorer if isinstance(scorer, (Outside, OfPool)) else None
    if thing.state != "complete":
        if isinstance(scorer, Outside):
            scorer.match(pool.ids)
        if isinstance(scorer, OfPool):
            scorer.fit(pool, quiet)
    with progress(len(pool), "rows", f"score {chosen.name}", quiet) as advance:

        def make(start: int, stop: int) -> Made:
            if by_place is not None:
                scored = by_place.rows(start, stop)
            else:
                scored = scorer.score(pool.conversations(start, stop), lambda tokens: None)
            advance(stop - start)
            arrays = {"values": scored.values, "status": scored.status, "tokens": scored.tokens}
            arrays |= scored.columns
            return Made(arrays, scored.reasons, int(np.maximum(scored.tokens, 0).sum(dtype=np.int64)))

        def running() -> dict[str, Any]:
            return dict(getattr(scorer, "execution", {}))

        make_shards(Store(store), thing, bounds, make, method=chosen.name, execution=running, share=share)
    hooks = (getattr(scorer, name, None) for name in ("derive", "warnings_of"))
    found = Scores(chosen, config, thing, pool.ids, running(), *hooks)
    facts = getattr(scorer, "facts", None)  # of what is stored, for the manifest
    if facts is not None and thing.state == "complete":
        found = replace(found, execution={**found.execution, **facts(found.columns)})
    return found
