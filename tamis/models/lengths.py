"""How many tokens each row has when it is rendered: stored, because token budgets and tables need it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.progress import progress
from tamis.core.shards import Made, make_shards
from tamis.core.status import code
from tamis.core.store import Store, Thing, shard_bounds, shard_rows_of
from tamis.models.lm import load_model
from tamis.models.render import Renderer

if TYPE_CHECKING:
    from tamis.pools.pool import Pool


def rendering_recipe(renderer: Renderer, pool: str, rows: int) -> dict[str, Any]:
    """Everything that determines the rendered lengths of the pool with digest `pool`."""
    return {
        "method": "lengths",
        "version": 1,
        "renderer": renderer.recipe,
        "pool": pool,
        "rows": rows,
        "shard_rows": shard_rows_of(rows),
    }


def rendered_lengths(
    pool: Pool,
    model: str,
    template: str = "auto",
    max_tokens: int = 2048,
    store: str | Path = ".tamis",
    remote_code: bool = False,
    quiet: bool = True,
) -> Thing:
    """The stored rendering of a pool: `tokens` (n,) int32 after truncation, `full_tokens` before it,
    `supervised_tokens`, and a status: ok, truncated, no_target_tokens, empty_response or refused.

    Only the tokenizer of `model` is read.
    """
    lm = load_model(model, device="cpu", remote_code=remote_code, tokenizer_only=True)
    renderer = Renderer(lm.tokenizer, template, max_tokens)
    recipe = rendering_recipe(renderer, pool.digest, len(pool))
    bounds = shard_bounds(len(pool))
    thing = Store(store).open("rendering", recipe, len(bounds))
    with progress(len(pool), "rows", "render", quiet) as advance:

        def make(start: int, stop: int) -> Made:
            rows = renderer.render_many(pool.conversations(start, stop))
            words = ["empty_response" if row.empty_response else row.status for row in rows]
            arrays: dict[str, np.ndarray] = {
                "tokens": np.array([len(row.ids) for row in rows], np.int32),
                "full_tokens": np.array([row.tokens_full for row in rows], np.int32),
                "supervised_tokens": np.array([row.mask.sum() for row in rows], np.int32),
                "status": np.array([code(word) for word in words], np.uint8),
            }
            advance(stop - start)
            reasons = {i: row.reason for i, row in enumerate(rows) if row.reason}
            return Made(arrays, reasons, int(arrays["tokens"].sum(dtype=np.int64)))

        make_shards(Store(store), thing, bounds, make, method="lengths")
    return thing
