"""Memory of gradients: does it grow with the rows?

    python benchmarks/gradient_memory.py --out benchmarks/results/gradient_memory.json

Making: a laboratory pool, and one with four times the rows, through `tamis represent less` and then `tamis
select` at the four checkpoints of one warm-up, each command a process of its own; its peak resident memory. A
shard has 512 rows here, so both are several shards; beside it, how many bytes of features were written.

Reading: `--scored` rows x 8,192 in float16 at four checkpoints (one shard of 4,096 rows on the disk, which
stands for all of them), the sum of the cosines and round-robin over it; the peak above what the process held
before, for a quarter of the rows and for all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

DIMENSIONS, SHARD_ROWS, CHECKPOINTS = 8192, 4096, 4


def ran(command: list[str]) -> dict[str, float]:
    """Peak resident bytes and seconds of a command of tamis."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "tamis", *command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"tamis {command[0]} ended with {child.returncode}")
    return {
        "peak_bytes": used.ru_maxrss * 1024,
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
    }


def making(rows: int, checkpoints: Path, work: Path) -> dict[str, Any]:
    from tamis.lab import NANO, write_lab

    folder = work / f"lab-{rows}"
    write_lab(folder, rows=rows, seed=0)
    with tempfile.TemporaryDirectory(dir=work) as store:
        common = [
            "--pool", str(folder / "pool.jsonl"), "--model", str(NANO), "--dtype", "float32",
            "--store", store, "--set", f"less.checkpoints={checkpoints}", "--quiet",
        ]  # fmt: skip
        made = ran(["represent", "less", *common])
        chosen = ran([
            "select", *common, "--query", f"dates={folder / 'queries' / 'dates.jsonl'}",
            "--strategy", "less/round-robin", "--budget", "5%", "--out", f"{store}/chosen", "--no-report",
        ])  # fmt: skip
        files = list(Path(store).glob("representation/*/*vectors*.npy"))
        queries = 12 * DIMENSIONS * 4  # bytes, at most, of a file that is not of the pool
        sizes = [file.stat().st_size for file in files if file.stat().st_size > queries]
        return {
            "rows": rows,
            "represent": made,
            "select": chosen,
            "shards": len(sizes),
            "feature_bytes": sum(sizes),
            "largest_shard_bytes": max(sizes),
        }


def held(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", status).group(1)) * 1024  # type: ignore[union-attr]


def reading(rows: int, shard: Path) -> dict[str, Any]:
    """In a process of its own."""
    from tamis.core.similarity import FeatureSimilarity
    from tamis.core.summed import Part, SummedSimilarity
    from tamis.selections import choose

    queries = np.random.default_rng(1).standard_normal((40, DIMENSIONS)).astype(np.float32)
    shards = [shard] * (rows // SHARD_ROWS)
    parts = [Part(1 / CHECKPOINTS, FeatureSimilarity(queries, shards)) for _ in range(CHECKPOINTS)]
    similarity = SummedSimilarity(parts)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = held("VmRSS"), time.process_time()
    found = choose("round-robin", similarity, budget=min(10_000, similarity.n // 10))
    return {
        "rows": similarity.n,
        "chosen": len(found),
        "peak_bytes": held("VmHWM") - before,
        "cpu_s": round(time.process_time() - start, 1),
        "feature_bytes": similarity.n * DIMENSIONS * 2 * CHECKPOINTS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/tamis-gradient-memory"))
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--scored", type=int, default=1_000_000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    shard = given.work / "shard.npy"
    if given.read:
        print(json.dumps(reading(given.read, shard)))
        return
    from _warmed import warmed

    from tamis.lab import NANO, write_lab

    given.work.mkdir(parents=True, exist_ok=True)
    write_lab(given.work / "lab", rows=given.rows, seed=0)
    lab = given.work / "lab" / "pool.jsonl"
    folder = warmed(str(NANO), lab, given.work, given.rank, take=64, learning_rate=1e-3)[0].folder.parent
    found: dict[str, Any] = {
        "rank": given.rank,
        "dimensions": DIMENSIONS,
        "checkpoints": CHECKPOINTS,
        "making": [making(rows, folder, given.work) for rows in (given.rows, 4 * given.rows)],
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(found["making"], indent=1), file=sys.stderr, flush=True)
    draw = np.random.default_rng(0).standard_normal((SHARD_ROWS, DIMENSIONS), np.float32)
    np.save(shard, (draw / np.linalg.norm(draw, axis=1, keepdims=True)).astype(np.float16))
    found["reading"] = []
    for rows in (given.scored // 4, given.scored):
        command = [sys.executable, __file__, "--work", str(given.work), "--read", str(rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found["reading"].append(json.loads(done.stdout.splitlines()[-1]))
    shard.unlink()
    for kind, key in (("represent", "making"), ("select", "making")):
        small, large = (case[kind]["peak_bytes"] for case in found[key])
        found[f"{kind}_growth"] = round(large / small, 3)
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
