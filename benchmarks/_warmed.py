"""For the scripts about gradients: rows, and adapters with moments that a short warm-up has left."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import tamis
from tamis.lab import NANO, write_lab
from tamis.models import preconditioners
from tamis.models.checkpoints import Checkpoint, find_checkpoints, read_checkpoint_moments
from tamis.models.gradients import Precondition
from tamis.models.render import Renderer


def material(shared: Path, work: Path, count: int) -> tuple[str, Path]:
    """A model and a file of `count` rows: the small real model and real rows where `shared` has them, else
    the nano model and the laboratory."""
    work.mkdir(parents=True, exist_ok=True)
    model = shared / "models" / "pool-9m"
    if not model.is_dir():
        write_lab(work / "lab", rows=max(count, 200), seed=0)
        return str(NANO), work / "lab" / "pool.jsonl"
    from rds_encoding import rows

    path = work / f"rows-{count}.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in rows(shared, count)))
    return str(model.resolve()), path


def warmed(
    model: str, rows: Path, work: Path, rank: int, take: int = 128, **changes: Any
) -> list[Checkpoint]:
    """The checkpoints of the recipe less-warmup at `rank` on the first `take` rows, 8 rows a step."""
    pool = tamis.read_pool(rows)
    recipe = {"recipe": "less-warmup", "rank": rank, "alpha": 4 * rank, "batch_rows": 8, **changes}
    part = SimpleNamespace(pool=pool, positions=np.arange(min(take, len(pool))))
    trained = tamis.train(part, model=model, recipe=recipe, store=work / "store", device="cpu")
    return find_checkpoints(trained.path)


def rendered(
    tokenizer: Any, rows: Path | Any, most: int, role: str = "pool"
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids (L,) and targets (L,) of the rows, of a file or a pool, that have a target."""
    renderer = Renderer(tokenizer, "auto", most)
    pool = tamis.read_pool(rows) if isinstance(rows, Path) else rows
    talks = [list(row.messages) for row in pool.iter_rows()]
    found = (renderer.render_queries if role == "query" else renderer.render_many)(talks)
    ids, targets = [], []
    for row in found:
        wanted = row.mask.copy()
        wanted[:1] = False
        if wanted.any():
            ids.append(row.ids)
            targets.append(wanted)
    return ids, targets


def moments_of(checkpoint: Checkpoint, engine: Any) -> dict[str, preconditioners.Moments]:
    """The checkpoint's moments, flat, by parameter."""
    shapes = {slot.name: slot.shape for slot in engine.layout}
    moments = read_checkpoint_moments(checkpoint, shapes)
    return {
        key: preconditioners.Moments(moments.first[key].flatten(), moments.second[key].flatten())
        for key in shapes
    }


def folded(checkpoint: Checkpoint, engine: Any, name: str = "less") -> Precondition:
    """The preconditioner `name` with the checkpoint's moments."""
    flat, constants = moments_of(checkpoint, engine), preconditioners.Constants()
    run = preconditioners.PRECONDITIONERS[name]
    return lambda slot, g: run(g, flat[slot.name], constants)
