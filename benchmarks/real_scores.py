"""Every row of a real pool scored with a small real model: statuses that add up, time, and what is shared.

    python benchmarks/real_scores.py --shared ../shared --out benchmarks/results/real_scores.json

`length`, `perplexity` and `ifd` in turn by the command line, each in a process of its own, on one store; an
interrupted run goes on. Wall time is only whole where the run was: compare it with `seconds`, which is the
ledger's. For `ifd` the tokens are those of the direct pass: the one in context is stored by then. What came
first, the losses of first exchanges, stands under `before`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAPPING = ROOT / "examples" / "maps" / "shared-pool.yaml"
METHODS = ("length", "perplexity", "ifd")
KEPT = ("rows", "status", "scored", "different", "quantiles", "length_correlation", "warnings", "execution")


def scored(method: str, shared: Path, work: Path, dtype: str, most: int) -> dict[str, Any]:
    """One command, and what it says of its result."""
    command = [
        sys.executable, "-m", "tamis", "score", method, "--pool", str(shared / "data/pool/*.jsonl.gz"),
        "--map", str(MAPPING), "--model", str(shared / "models/pool-9m"), "--max-tokens", str(most),
        "--dtype", dtype, "--store", str(work / "store"), "--json",
    ]  # fmt: skip
    load, start = os.getloadavg()[0], time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    told = json.loads(done.stdout)
    if sum(told["status"].values()) != told["rows"]:
        raise SystemExit(f"{method}: {told['status']} do not add up to {told['rows']} rows")
    found = {name: told[name] for name in KEPT}
    found["wall_s"] = round(time.perf_counter() - start, 1)
    found["load"] = [round(load, 1), round(os.getloadavg()[0], 1)]
    for name, spent in (("own", told["ledger"]), *(("before", each) for each in told["before"].values())):
        found[name] = {key: round(spent[key], 1) for key in ("seconds", "cpu_seconds", "tokens", "flops")}
        if spent["tokens"] and spent["seconds"]:
            found[name]["tokens_per_s"] = round(spent["tokens"] / spent["seconds"])
    return found


def rows_in_files(shared: Path) -> int:
    """Lines of all files; more than the rows of the pool, for equal ones are merged."""
    count = 0
    for path in sorted((shared / "data/pool").glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as file:
            count += sum(1 for line in file if line.strip())
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/tamis-real-scores"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    shared = given.shared.resolve()
    found: dict[str, Any] = {
        "lines": rows_in_files(shared), "dtype": given.dtype, "max_tokens": given.max_tokens
    }  # fmt: skip
    for method in METHODS:
        found[method] = scored(method, shared, given.work, given.dtype, given.max_tokens)
        print(method, json.dumps(found[method]), flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
