"""Time and memory of selections over a pool on disk, against the bare pass that no selection can avoid.

    python benchmarks/selection_scale.py --out benchmarks/results/selection_scale.json

Writes random unit vectors as float16 .npy shards, then runs each case in a fresh process: "bare" reads every
block, widens it and multiplies it by the queries, and drops the product. Cases are interleaved, so that a
slow minute of the machine hits all of them; medians are reported. Memory is the peak resident size (VmHWM)
and the peak of its anonymous part (RssAnon, sampled; the rest is mapped file pages, which are let go block by
block).
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
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARD_ROWS = 50_000
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bare": ("", {}),
    "round-robin": ("round-robin", {}),
    "doubly-greedy": ("doubly-greedy", {}),
    "top-k mean": ("top-k", {"aggregate": "mean"}),
    "knn-uniform": ("knn-uniform", {}),
    "transport": ("transport", {}),
    "knn-kde": ("knn-kde", {}),
    "cluster-quota": ("cluster-quota", {}),
}


def write_pool(folder: Path, rows: int, d: int, queries: int) -> None:
    """Unit vectors around a few centres, so that queries agree on some rows as real targets do."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, d)).astype(np.float32)

    def unit(count: int) -> np.ndarray:
        vectors = rng.standard_normal((count, d), np.float32) + centres[rng.integers(0, 20, count)]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    np.save(folder / "queries.npy", unit(queries))
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        np.save(folder / f"part-{number:04d}.npy", unit(min(SHARD_ROWS, rows - start)).astype(np.float16))


def status_bytes(field: str) -> int:
    """A size of this process from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def run_case(folder: Path, rows: int, budget: int, case: str) -> dict[str, Any]:
    """One case in this process."""
    sys.path.insert(0, str(ROOT))
    from tamis.selections import FeatureSimilarity, choose_ranked

    parts = sorted(folder.glob("part-*.npy"))[: -(-rows // SHARD_ROWS)]
    similarity = FeatureSimilarity(
        np.load(folder / "queries.npy"), [np.load(p, mmap_mode="r") for p in parts]
    )
    assert similarity.n == rows
    anonymous, done = [status_bytes("RssAnon")], threading.Event()
    before = anonymous[0]

    def watch() -> None:
        while not done.wait(0.02):
            anonymous.append(status_bytes("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    name, parameters = CASES[case]
    wall, cpu = time.perf_counter(), time.process_time()
    notes: dict[str, Any] = {}
    if case == "bare":
        for _ in similarity.blocks():
            pass
    else:
        choice = choose_ranked(name, similarity, budget, **parameters)
        assert len(np.unique(choice.positions)) == budget
        notes = dict(choice.notes)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done.set()
    watcher.join()
    return {
        "case": case,
        "rows": rows,
        "wall_s": wall,
        "cpu_s": cpu,
        "vmhwm_bytes": status_bytes("VmHWM"),
        "anonymous_peak_bytes": max(anonymous),
        "anonymous_at_start_bytes": before,
        "passes": notes.get("passes", 1),
        "notes": notes,
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians by case and rows; ratios are to the bare pass of the same repetition.

    On a machine that others use, the ratio of CPU seconds says more than that of wall seconds.
    """
    bare = {(run["rows"], run["repetition"]): run for run in runs if run["case"] == "bare"}
    table = []
    for rows in sorted({run["rows"] for run in runs}):
        for case in CASES:
            mine = [run for run in runs if run["rows"] == rows and run["case"] == case]
            if not mine:
                continue
            line: dict[str, Any] = {"case": case, "rows": rows, "passes": mine[0]["passes"]}
            for clock in ("wall", "cpu"):
                seconds = [run[f"{clock}_s"] for run in mine]
                ratios = [run[f"{clock}_s"] / bare[rows, run["repetition"]][f"{clock}_s"] for run in mine]
                line[f"{clock}_s"] = round(statistics.median(seconds), 2)
                line[f"{clock}_ratio"] = round(statistics.median(ratios), 2)
            line["vmhwm_mib"] = round(max(run["vmhwm_bytes"] for run in mine) / 2**20)
            line["anonymous_peak_mib"] = round(max(run["anonymous_peak_bytes"] for run in mine) / 2**20)
            table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--budget", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="beside bare")
    parser.add_argument("--machine", default="2 cores, 24 GiB, shared")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=3, metavar=("FOLDER", "ROWS", "CASE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        folder, rows, case = asked.case
        print(json.dumps(run_case(Path(folder), int(rows), asked.budget, case)))
        return
    runs = []
    with tempfile.TemporaryDirectory(prefix="tamis-scale-") as folder:
        write_pool(Path(folder), max(asked.rows), asked.dimensions, asked.queries)
        for repetition in range(asked.repetitions):
            for rows in asked.rows:
                for case in (case for case in CASES if case == "bare" or case in asked.only):
                    command = [sys.executable, __file__, "--budget", str(asked.budget)]
                    command += ["--case", folder, str(rows), case]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs.append({**json.loads(done.stdout), "repetition": repetition})
                    print({k: runs[-1][k] for k in ("case", "rows", "wall_s", "cpu_s")}, file=sys.stderr)
    result = {
        "machine": asked.machine,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "dimensions": asked.dimensions,
        "queries": asked.queries,
        "budget": asked.budget,
        "repetitions": asked.repetitions,
        "feature_dtype": "float16",
        "summary": summary(runs),
        "runs": runs,
    }
    text = json.dumps(result, indent=1)
    if asked.out:
        asked.out.write_text(text + "\n")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
