"""Pool → stored representation: shards, statuses and resuming around any method of the family."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.progress import progress
from tamis.core.shards import Made, make_shards, of_share
from tamis.core.signal import StoredSignal, signal_recipe
from tamis.core.status import scored
from tamis.core.store import Store, Thing, shard_bounds
from tamis.representations._context import Context, Encoder, Outside
from tamis.representations.less import Gradients

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.pools.view import PoolRows

_SAMPLE_ROWS = 256


@dataclass(frozen=True)
class Representation(StoredSignal):
    """A stored representation of one pool: vectors in shards; a status and a token count for each row.

    `parts`: where it is a weighted sum over checkpoints, the representation at each, and their `weights`;
    `thing`, statuses and tokens are then of the first, and a row that any part lacks has that one's status.
    """

    parts: tuple[Representation, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def codes(self) -> np.ndarray:
        """Status codes (n,) uint8."""
        found = self.thing.joined("status")
        for part in self.parts[1:]:
            theirs = part.thing.joined("status")
            found = np.where(scored(found) & ~scored(theirs), theirs, found)
        return found

    @property
    def digests(self) -> tuple[str, ...]:
        """Names of the stored things."""
        return tuple(part.digest for part in self.parts) or (self.digest,)

    @property
    def state(self) -> str:
        """`complete` when all of it is."""
        return next((p.thing.state for p in self.parts if p.thing.state != "complete"), self.thing.state)

    def array(self) -> Any:
        """All vectors (n, d) in memory: float16 or float32 array, or a sparse matrix for hashed n-grams.

        Rows whose status is not scored are zero. Of a sum, the parts' vectors side by side, each times the
        root of its weight.
        """
        if self.parts:
            pairs = zip(self.weights, self.parts, strict=True)
            return np.concatenate([np.float32(w**0.5) * part.array() for w, part in pairs], axis=1)
        if self.method.compare is None:
            return self.thing.joined("vectors")
        from tamis.representations.ngrams import counts_matrix

        return counts_matrix(shard_arrays(self.thing), self.config)


def shard_arrays(thing: Thing) -> list[dict[str, np.ndarray]]:
    """The arrays of every shard by name, memory-mapped, without status and tokens."""
    names = {name.split(".")[1] for name in thing.meta["files"] if name.endswith(".npy")}
    names -= {"status", "tokens"}
    return [{name: thing.array(shard, name) for name in names} for shard in range(thing.shards)]


def represent(
    pool: Pool,
    method: str | Method,
    *,
    model: str | None = None,
    template: str = "auto",
    max_tokens: int = 2048,
    dtype: str = "auto",
    device: str = "auto",
    role: str = "pool",
    store: str | Path = ".tamis",
    parameters: Mapping[str, Any] | None = None,
    remote_code: bool = False,
    batch_tokens: int | None = None,
    compatible: bool = False,
    share: tuple[int, int] | None = None,
    quiet: bool = True,
) -> Representation:
    """Encode `pool` by a method (a name, or a `Method` of your own) and keep the result in `store`.

    What is stored already is not made again; an interrupted run goes on at its first missing shard. `role`
    "query" renders rows as queries. `share` (i, n): make only every n-th shard, for several workers on one
    store; then the result may still be partial (`.thing.state`).
    """
    from tamis.representations import REPRESENTATIONS

    chosen = REPRESENTATIONS[method] if isinstance(method, str) else method
    config = chosen.configure(parameters or {})
    context = Context(
        model=model,
        template=template,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
        role=role,
        remote_code=remote_code,
        batch_tokens=batch_tokens,
        compatible=compatible,
        store=store,
    )
    encoder = chosen.run(config, context)
    if not isinstance(encoder, Gradients):
        return encoded(pool, chosen, config, encoder, store, share, quiet)
    encoder.need_parts()
    if role == "pool" and (encoder.config.keep != "vectors" or encoder.config.shortlist is not None):
        raise RequestError(
            f"{chosen.name}: a shortlist, and keep=similarity, depend on the queries; use `tamis select`"
        )
    parts = []
    for part in encoder.parts:
        parts.append(encoded(pool, chosen, config, part, store, share, quiet))
        part.release()
    first = parts[0].thing
    return Representation(chosen, config, first, pool.ids, encoder.execution, tuple(parts), encoder.weights)


def encoded(
    pool: Pool | PoolRows,
    method: Method,
    config: Any,
    encoder: Encoder,
    store: str | Path,
    share: tuple[int, int] | None = None,
    quiet: bool = True,
) -> Representation:
    """What `encoder` makes of the rows of `pool`, stored; what is there already is not made again."""
    if not quiet:
        for warning in getattr(encoder, "warnings", ()):
            print(f"tamis: {warning}", file=sys.stderr)
    bounds = shard_bounds(len(pool))
    recipe = signal_recipe(method, encoder.recipe, pool.digest, len(pool))
    thing = Store(store).open("representation", recipe, len(bounds))
    if thing.state != "complete":
        _encode_all(Store(store), thing, pool, method, encoder, share, quiet)
    return Representation(method, config, thing, pool.ids, encoder.execution)


def _encode_all(
    store: Store,
    thing: Thing,
    pool: Pool | PoolRows,
    method: Method,
    encoder: Encoder,
    share: tuple[int, int] | None,
    quiet: bool,
) -> None:
    bounds = shard_bounds(len(pool))
    outside = encoder if isinstance(encoder, Outside) else None
    if outside is not None:
        outside.match(pool.ids)
    counted = not quiet and outside is None
    shares = estimated_tokens(pool, encoder, bounds) if counted else [0] * len(bounds)
    due = of_share(thing.missing(), share)  # what is there already is no work, and tells no speed
    with progress(sum(shares[shard] for shard in due), "tokens", f"encode {method.name}", quiet) as advance:

        def make(start: int, stop: int) -> Made:
            done = 0

            def count(tokens: int) -> None:
                nonlocal done
                done += tokens
                advance(tokens)

            if outside is not None:
                encoded = outside.rows(start, stop)
            else:
                encoded = encoder.encode(pool.conversations(start, stop), count)
            tokens = int(np.maximum(encoded.tokens, 0).sum(dtype=np.int64))
            arrays = {**encoded.arrays, "status": encoded.status, "tokens": encoded.tokens}
            return Made(arrays, encoded.reasons, tokens, tokens * encoder.flops_per_token)

        make_shards(
            store,
            thing,
            bounds,
            make,
            method=method.name,
            execution=lambda: encoder.execution,
            share=share,
        )


def estimated_tokens(pool: Pool | PoolRows, encoder: Encoder, bounds: list[tuple[int, int]]) -> list[int]:
    """Tokens of each shard, estimated for the remaining time: characters by the pool, tokens per character
    from a few rows spread over it when the encoder can count them, else 1 per 4 characters."""
    characters = np.asarray(pool.chars, dtype=np.float64)
    count = getattr(encoder, "count_tokens", None)
    ratio = 0.25
    if count is not None and len(pool):
        rows = np.unique(np.linspace(0, len(pool) - 1, min(_SAMPLE_ROWS, len(pool))).astype(int))
        sample = [pool.row(int(row)).messages for row in rows]
        ratio = float(np.sum(count(sample))) / max(float(characters[rows].sum()), 1.0)
    return [max(1, int(characters[start:stop].sum() * ratio)) for start, stop in bounds]
