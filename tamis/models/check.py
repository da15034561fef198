"""Whether batching changes the vectors of a given model."""

from __future__ import annotations

from typing import Any

import numpy as np

from tamis.models.lm import LanguageModel, load_model
from tamis.models.packing import Executor


def batch_invariance(
    path: str, device: str = "auto", dtype: str = "auto", remote_code: bool = False
) -> dict[str, Any]:
    """Hidden states of made-up rows, packed and padded, against each row alone, with this model on this
    device.

    `mode` is the one that would be used, `why` the reason; `invariant` says that it agrees with rows alone.
    """
    lm = load_model(path, dtype=dtype, device=device, remote_code=remote_code)
    executor = Executor(lm)
    found: dict[str, Any] = {"path": path, "device": lm.device, "dtype": lm.dtype}
    for mode in ("packed", "padded"):
        found[mode] = executor.disagreement(mode) or "agrees with rows alone"
    found.update(mode=executor.mode, why=executor.why)
    found["invariant"] = executor.mode == "single" or executor.disagreement(executor.mode) is None
    if lm.adapter:
        found["gradients"] = gradient_stability(lm)
        found["invariant"] = found["invariant"] and found["gradients"]["invariant"]
    return found


def gradient_stability(lm: LanguageModel) -> dict[str, Any]:
    """Gradients of made-up rows of unlike length by the adapter of `lm`: each row alone and in a batch.

    `cosine`: the least cosine of the two; `norm`: the largest relative difference of their norms; both of
    projected gradients, by the mode that would be used. `invariant`: within 1e-4 in float32, 5e-2 below.
    """
    from tamis.models.gradients import GradientEngine
    from tamis.models.projections import CountSketch

    engine = GradientEngine(lm)
    rng = np.random.default_rng(0)
    words = lm.config.get_text_config().vocab_size
    rows = [rng.integers(0, words, length).astype(np.int32) for length in (5, 90, 17, 240, 41)]
    targets = [np.arange(len(row)) >= len(row) // 2 for row in rows]
    project = CountSketch(4096, 0, lm.device)
    together = engine.features(rows, targets, project).features
    alone = np.concatenate(
        [engine.features([row], [mask], project).features for row, mask in zip(rows, targets, strict=True)]
    )
    norms = np.linalg.norm(together, axis=1), np.linalg.norm(alone, axis=1)
    cosine = float(((together * alone).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-30)).min())
    off = float((np.abs(norms[0] - norms[1]) / np.maximum(norms[1], 1e-30)).max())
    limit = 1e-4 if lm.dtype == "float32" else 5e-2
    return {
        "mode": "loop" if engine.looped else engine.mode,
        "why": engine.why,
        "cosine": cosine,
        "norm": off,
        "invariant": 1 - cosine <= limit and off <= limit,
    }
