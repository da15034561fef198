"""Cherry end to end on the laboratory: embedding, clusters, one epoch of training, IFD, choice.

    python benchmarks/cherry.py --out benchmarks/results/cherry.json

One run of the command line in a process of its own, on an empty store.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tamis.lab import NANO, write_lab

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lab, out = Path(folder) / "lab", Path(folder) / "out"
        lab.mkdir()
        write_lab(lab, rows=given.rows)
        command = [
            sys.executable, "-m", "tamis", "select", "--pool", str(lab / "pool.jsonl"), "--quiet",
            "--strategy", "cherry", "--budget", "500", "--model", str(NANO), "--store", f"{folder}/store",
            "--out", str(out),
        ]  # fmt: skip
        load, start = os.getloadavg()[0], time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT)
        wall = time.perf_counter() - start
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        pre = json.loads((out / "manifest.json").read_text())["subsets"][0]["pre"]
    found = {
        "rows": given.rows,
        "wall_s": round(wall, 1),
        "cpu_s": round(spent.ru_utime + spent.ru_stime, 1),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "cores": os.cpu_count(),
        "chosen_rows": pre["chosen_rows"],
        "steps": pre["training"]["steps"],
    }
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
