"""Features of gradients against the published way: speed with and without projection, and peak memory.

    python benchmarks/gradients.py --shared ../shared --traker ENV --out benchmarks/results/gradients.json

The published way (LESS): one row at a time through the whole model and back, then, 16 rows at a time, a
product with a dense matrix of signs, which the projector makes anew for each call in blocks of 128 columns.
`loop` is the first half, plain torch; the second half is timed with the projector itself where `--traker`
names a virtual environment that has it (pip install torch==2.13.0 traker), else with the same steps written
out here. It is so slow that `--blocks` of its blocks are timed, and the rest is taken to cost as much.

`alone`: the engine with gradients of every row, their norms, and nothing made of them; `features`: with
Adam's moments folded in and the count sketch to 8,192. All of it on one thread, in turns within one process,
processor time, medians of the repeats. The adapter (q, k, v, o) has had a short warm-up, so that B and the
moments are not zero. Peak memory is above what a process held with the model loaded and one short row done.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DIMENSIONS, BLOCK, BATCH, MAX_TOKENS = 8192, 128, 16, 1024


class Dropped:
    """A projection that makes nothing of a gradient."""

    dimensions = 1

    def add(self, out: torch.Tensor, slot: Any, rows: torch.Tensor) -> None:
        """Nothing."""


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turns(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each, after one run of each that does not count."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(cpu_seconds(work))
    return found


# --- the published projection ----------------------------------------------------------------------------


def dense(grads: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Product (n, columns) with a matrix of signs made here and now, in blocks of `BLOCK` columns."""
    grads = grads.to(dtype)
    out = torch.zeros(len(grads), columns, dtype=dtype)
    signs = torch.empty(grads.shape[1], BLOCK, dtype=dtype)
    generator = torch.Generator()
    for start in range(0, columns, BLOCK):
        generator.manual_seed(start)
        signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        out[:, start : start + BLOCK] = grads @ signs
    return out


def project_once(parameters: int, blocks: int, dtype: str, library: bool) -> dict[str, float]:
    """Processor seconds of all 64 blocks for 16 rows, from `blocks` of them, which come twice."""
    torch.set_num_threads(1)
    kind, columns = getattr(torch, dtype), blocks * BLOCK
    grads = torch.randn(BATCH, parameters).to(torch.float16)
    if library:
        from trak.projectors import BasicProjector, ProjectionType

        made = BasicProjector(
            grad_dim=parameters, proj_dim=columns, seed=0, proj_type=ProjectionType.rademacher,
            device=torch.device("cpu"), block_size=BLOCK, dtype=kind,
        )  # fmt: skip
        run = [cpu_seconds(lambda: made.project(grads, model_id=0)) for _ in range(2)]
    else:
        run = [cpu_seconds(lambda: dense(grads, columns, kind)) for _ in range(2)]
    return {"seconds": min(run) * DIMENSIONS / columns, "runs": len(run)}


def published_projection(parameters: int, blocks: int, dtype: str, python: str | None) -> float:
    """Processor seconds a row."""
    if python is None:
        return project_once(parameters, blocks, dtype, library=False)["seconds"] / BATCH
    command = [python, __file__, "--project", str(parameters), "--blocks", str(blocks), "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"]) / BATCH


# --- ours ------------------------------------------------------------------------------------------------


def held(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", status).group(1)) * 1024  # type: ignore[union-attr]


def peak(adapter: str, rows: str, dtype: str, which: str, count: int) -> int:
    """Bytes at the peak above the model, of the loop or of the engine."""
    torch.set_num_threads(1)
    from _warmed import folded, rendered

    from tamis.models.checkpoints import find_checkpoints
    from tamis.models.gradients import GradientEngine, loop_gradient
    from tamis.models.lm import load_model
    from tamis.models.projections import CountSketch

    lm = load_model(adapter, dtype, "cpu")
    engine = GradientEngine(lm, mode="loop" if which == "loop" else "auto")
    parameters = engine._parameters
    ids, targets = rendered(lm.tokenizer, Path(rows), MAX_TOKENS)
    sketch = CountSketch(DIMENSIONS, 0)
    fold = folded(find_checkpoints(adapter)[0], engine)

    def run(first: int, last: int) -> None:
        if which == "loop":
            for row in range(first, last):
                loop_gradient(lm, parameters, ids[row], targets[row])
        else:
            engine.features(ids[first:last], targets[first:last], sketch, fold)

    shortest = min(range(len(ids)), key=lambda row: len(ids[row]))
    run(shortest, shortest + 1)
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    run(0, count)
    return held("VmHWM") - before


def measure(adapter: Any, rows: Path, rank: int, dtype: str, given: argparse.Namespace) -> dict[str, Any]:
    from _warmed import folded, rendered

    from tamis.models.gradients import GradientEngine, loop_gradient
    from tamis.models.lm import load_model
    from tamis.models.projections import Concatenation, CountSketch

    lm = load_model(str(adapter.folder), dtype, "cpu")
    engine = GradientEngine(lm)
    ids, targets = (part[: given.rows] for part in rendered(lm.tokenizer, rows, MAX_TOKENS))
    fold, sketch = folded(adapter, engine), CountSketch(DIMENSIONS, 0)
    some = torch.from_numpy(
        engine.features(ids[:BATCH], targets[:BATCH], Concatenation(engine.layout)).features
    )
    slots = [(slot, some[:, slot.offset : slot.offset + slot.size].contiguous()) for slot in engine.layout]

    def loop() -> None:
        for row, wanted in zip(ids, targets, strict=True):
            loop_gradient(lm, engine._parameters, row, wanted)

    def sketched() -> None:
        for _ in range(4):
            out = torch.zeros(BATCH, DIMENSIONS)
            for slot, part in slots:
                sketch.add(out, slot, part)

    runs = in_turns(
        {
            "loop": loop,
            "alone": lambda: engine.features(ids, targets, Dropped()),
            "features": lambda: engine.features(ids, targets, sketch, fold),
            "sketch": sketched,
        },
        given.repeats,
    )
    rows_of = {"loop": len(ids), "alone": len(ids), "features": len(ids), "sketch": 4 * BATCH}
    per_row = {name: [1000 * s / rows_of[name] for s in run] for name, run in runs.items()}
    middle = {name: statistics.median(run) for name, run in per_row.items()}
    middle["dense"] = 1000 * published_projection(engine.parameters, given.blocks, dtype, given.traker_python)
    ratio = [a / b for a, b in zip(per_row["loop"], per_row["alone"], strict=True)]
    moved = sum(float((p.float() ** 2).sum()) for n, p in engine._parameters.items() if "lora_B" in n)
    found = {
        "rank": rank,
        "dtype": dtype,
        "parameters": engine.parameters,
        "norm_of_B": round(moved**0.5, 3),
        "mode": engine.mode,
        "rows": len(ids),
        "tokens": sum(map(len, ids)),
        "ms_per_row": {name: round(value, 3) for name, value in middle.items()},
        "gradients_alone": round(statistics.median(ratio), 2),
        "gradients_alone_runs": [round(value, 2) for value in ratio],
        "whole": round((middle["loop"] + middle["dense"]) / middle["features"], 1),
        "projection": round(middle["dense"] / middle["sketch"]),
        "sketch_gb_per_s": round(4e-9 * engine.parameters / (middle["sketch"] / 1000), 1),
        "peak_bytes": {},
        "load": round(os.getloadavg()[0], 1),
    }
    for which in ("loop", "engine"):
        command = [
            sys.executable, __file__, "--peak", which, "--adapter", str(adapter.folder), "--dtype", dtype,
            "--material", str(rows), "--rows", str(given.rows),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found["peak_bytes"][which] = int(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/tamis-gradients"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 128])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--traker", type=Path, help="virtual environment with torch and traker")
    parser.add_argument("--out", type=Path)
    for name in ("--peak", "--adapter", "--material", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--project", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.project:
        print(json.dumps(project_once(given.project, given.blocks, given.dtype, library=True)))
        return
    if given.peak:
        print(peak(given.adapter, given.material, given.dtype, given.peak, given.rows))
        return

    import transformers
    from _warmed import material, warmed

    torch.set_num_threads(1)
    given.traker_python = str(given.traker / "bin" / "python") if given.traker else None
    model, rows = material(given.shared, given.work, max(4 * given.rows, 256))
    cases = []
    for rank in given.ranks:
        adapter = warmed(model, rows, given.work, rank, epochs=1, learning_rate=1e-3)[-1]
        for dtype in given.dtypes:
            cases.append(measure(adapter, rows, rank, dtype, given))
            print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    found = {
        "model": Path(model).name,
        "threads": 1,
        "time": "processor time of one thread, in turns, medians",
        "repeats": given.repeats,
        "dense_projection": f"{'traker BasicProjector' if given.traker else 'written out'}, "
        f"{given.blocks} of {DIMENSIONS // BLOCK} blocks",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "cases": cases,
    }
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
