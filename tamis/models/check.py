"""Whether batching changes the vectors of a given model."""

from __future__ import annotations

from typing import Any

from tamis.models.lm import load_model
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
    return found
