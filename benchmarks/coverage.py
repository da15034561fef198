"""Time and memory of `coverage` over a shortlist, against a plain greedy loop.

    python benchmarks/coverage.py --rows 50000 --budget 1000 --out benchmarks/results/coverage.json

The plain loop computes every row's gain at every pick. It is given its kernel for nothing: a slab of columns
that fits into memory is made beforehand, the gains of that slab are timed over `--plain-picks` picks, and
scaled to all columns and all picks. (A float32 kernel of 50,000 rows is 10 GB.) `coverage` runs in a fresh
process from vectors on disk, first gains included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SLAB_COLUMNS = 1000


def write_rows(path: Path, rows: int, d: int, centres: int) -> None:
    """Unit vectors around centres whose sizes differ tenfold and more."""
    rng = np.random.default_rng(0)
    shares = rng.pareto(1.0, centres) + 0.1
    at = rng.choice(centres, rows, p=shares / shares.sum())
    made = rng.standard_normal((centres, d))[at] + 0.7 * rng.standard_normal((rows, d))
    np.save(path, (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16))


def status_bytes(field: str) -> int:
    """A size of this process from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def run_ours(path: Path, budget: int) -> dict[str, Any]:
    from tamis.selections import choose_ranked

    vectors = np.load(path, mmap_mode="r")
    wall, cpu = time.perf_counter(), time.process_time()
    choice = choose_ranked("coverage", None, budget, vectors=vectors, shortlist=len(vectors))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "vmhwm_bytes": status_bytes("VmHWM"),
        "first": choice.positions[:20].tolist(),
        **{name: choice.notes[name] for name in ("columns", "evaluations", "covered")},
    }


def plain_seconds_a_pick(path: Path, picks: list[int]) -> tuple[float, float]:
    """Median wall and CPU seconds of all gains on a ready kernel, scaled from a slab of columns."""
    rows = np.load(path).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    slab = np.maximum(rows[: min(SLAB_COLUMNS, len(rows))] @ rows.T, 0)
    best, walls, cpus = np.zeros(len(rows), np.float32), [], []
    for row in picks:
        wall, cpu = time.perf_counter(), time.process_time()
        gains = np.array([np.maximum(column - best, 0).sum() for column in slab])
        gains.argmax()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        best = np.maximum(best, np.maximum(rows @ rows[row], 0))
    scale = len(rows) / len(slab)
    return statistics.median(walls) * scale, statistics.median(cpus) * scale


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--centres", type=int, default=300)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--plain-picks", type=int, default=5)
    parser.add_argument("--machine", default="2 cores, 24 GiB, shared")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.ours:
        print(json.dumps(run_ours(asked.ours, asked.budget)))
        return
    with tempfile.TemporaryDirectory(prefix="tamis-coverage-") as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path, asked.rows, asked.dimensions, asked.centres)
        command = [sys.executable, __file__, "--budget", str(asked.budget), "--ours", str(path)]
        ours = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        wall, cpu = plain_seconds_a_pick(path, ours["first"][: asked.plain_picks])
    result = {
        "machine": asked.machine,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "rows": asked.rows,
        "dimensions": asked.dimensions,
        "centres": asked.centres,
        "budget": asked.budget,
        "coverage": ours,
        "plain_loop_wall_s": wall * asked.budget,
        "plain_loop_cpu_s": cpu * asked.budget,
        "wall_ratio": wall * asked.budget / ours["wall_s"],
        "cpu_ratio": cpu * asked.budget / ours["cpu_s"],
    }
    text = json.dumps(result, indent=1)
    if asked.out:
        asked.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
