"""`tamis plan` against the run that it plans: time, disk and peak memory, on the laboratory and on real rows.

    OMP_NUM_THREADS=1 python benchmarks/plan.py --shared ../shared [--rows 4000] [--real-rows 1500]

Each case is planned by the command line, run by the command line in a process of its own on an empty store,
and compared: wall clock; bytes of the files in the store and in OUT (without the ledger); largest resident
size of the process; tokens and operations of representations and scores, by the ledger. Cases: the laboratory
with the nano model (several strategies), the same with scores (both passes of IFD, perplexity), real rows (
the first of GSM8K's training set) with a small real model in float32, and again with new budgets, where
all but choosing is stored. The cases are repeated, plan and run in turn. Written to
benchmarks/results/plan.json: every value, and the medians of planned / measured.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from tamis.lab import NANO, write_lab

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "plan.json"
_CHILD = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"code": done.returncode, "seconds": time.perf_counter() - start, "memory": peak}))
"""


def cases(work: Path, shared: Path, rows: int, real_rows: int) -> dict[str, list[str]]:
    """Options of `plan` and `select` by case."""
    write_lab(work / "lab", rows=rows, seed=0)
    query = sorted((work / "lab" / "queries").glob("*.jsonl"))[0]
    lab = [
        "--pool", str(work / "lab" / "pool.jsonl"), "--query", f"target={query}", "--model", str(NANO),
        "--dtype", "float32", "--strategy", "rds/round-robin,ngrams/top-k,longest,random",
    ]  # fmt: skip
    path = work / "gsm8k_train.jsonl"
    with gzip.open(shared / "data/pool/gsm8k_train.jsonl.gz", "rb") as file:
        path.write_bytes(b"".join(islice(file, real_rows)))
    real = [
        "--pool", str(path),
        "--query", f"gsm8k={shared / 'data/targets/gsm8k/exemplars_8shot.jsonl'}",
        "--map", str(ROOT / "examples/maps/shared-pool.yaml"), "--model", str(shared / "models/pool-9m"),
        "--dtype", "float32", "--max-tokens", "512", "--strategy", "rds/round-robin",
    ]  # fmt: skip
    scores = [*lab[:-1], "ifd,ifd-ppl,ppl-mid,longest"]
    return {
        "laboratory": [*lab, "--budget", "100,500"],
        "laboratory, scores": [*scores, "--budget", "100,500"],
        "real rows": [*real, "--budget", "300"],
        "real rows, stored": [*real, "--budget", "200,500"],
    }


def bytes_of(*folders: Path) -> int:
    """Bytes of the files below folders, without the ledger."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if path.name != "ledger.jsonl")


def planned(options: list[str], store: Path) -> dict[str, Any]:
    """Totals and stages as `tamis plan` gives them."""
    command = [sys.executable, "-m", "tamis", "plan", *options, "--store", str(store), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(options: list[str], store: Path, out: Path) -> dict[str, float]:
    """Wall clock, new bytes and peak memory of `tamis select`."""
    before = bytes_of(store) if store.exists() else 0
    paid = passes(store)
    command = [
        sys.executable,
        "-m",
        "tamis",
        "select",
        *options,
        "--store",
        str(store),
        "--out",
        str(out),
        "--quiet",
    ]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *command], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    found: dict[str, float] = json.loads(done.stdout)
    if found.pop("code"):
        raise SystemExit(f"select failed: {' '.join(command)}")
    spent = {key: value - paid[key] for key, value in passes(store).items()}
    return {**found, "disk": bytes_of(store, out) - before, **spent}


def passes(store: Path) -> dict[str, float]:
    """Tokens and operations that the ledger has for representations and scores."""
    found = {"tokens": 0.0, "flops": 0.0}
    path = store / "ledger.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        if entry["kind"] in ("representation", "scores"):
            found = {key: value + (entry.get(key) or 0) for key, value in found.items()}
    return found


def compared(options: list[str], store: Path, out: Path) -> dict[str, Any]:
    """Plan, then run, and the ratios planned / measured."""
    start = time.perf_counter()
    plan = planned(options, store)
    spent = time.perf_counter() - start
    run = measured(options, store, out)
    totals = plan["totals"]
    stages = [stage for stage in plan["stages"] if stage["kind"] in ("representation", "scores")]
    expected = {
        "seconds": totals["seconds"], "disk": totals["disk_bytes"], "memory": totals["memory_bytes"],
        **{key: sum(stage[key] for stage in stages) for key in ("tokens", "flops")},
    }  # fmt: skip
    return {
        "planned": {key: round(value, 1) for key, value in expected.items()},
        "measured": {key: round(value, 1) for key, value in run.items()},
        "ratio": {key: round(expected[key] / run[key], 3) for key in expected if run[key]},
        "planning_s": round(spent, 1),
        "how": sorted(
            {how for stage in plan["stages"] for key, how in stage["how"].items() if key == "seconds"}
        ),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--real-rows", type=int, default=1500)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", help="One case by its name.")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="tamis-plan-benchmark-"))
    runs: dict[str, list[dict[str, Any]]] = {}
    for turn in range(given.repeat):
        for name, options in cases(work, given.shared, given.rows, given.real_rows).items():
            if given.only and name != given.only:
                continue
            store = work / str(turn) / ("real" if name.startswith("real") else name.replace(", ", "-"))
            found = compared(options, store, work / str(turn) / f"out-{name.replace(' ', '-')}")
            runs.setdefault(name, []).append(found)
            print(
                name, json.dumps(found["ratio"]), json.dumps(found["measured"]), f"load {found['load']:.1f}"
            )
    shutil.rmtree(work)
    medians = {
        name: {key: statistics.median(run["ratio"][key] for run in found) for key in found[0]["ratio"]}
        for name, found in runs.items()
    }
    given.out.parent.mkdir(exist_ok=True)
    kept: dict[str, Any] = json.loads(given.out.read_text()) if given.only and given.out.exists() else {}
    found = {
        "planned_over_measured": kept.get("planned_over_measured", {}) | medians,
        "runs": kept.get("runs", {}) | runs,
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
