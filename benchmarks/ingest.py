"""Reading 1,000,000 JSON lines: `read_pool` against a plain loop with json.loads that comes to the same.

    python benchmarks/ingest.py [--rows 1000000] [--runs 3] [--folder DIR]

The plain loop does, a row at a time and with the standard library, what the reader does: json.loads, the same
checks, the same id (hashlib), duplicates merged by a dictionary, the same columns written with pyarrow. Each
run is a process of its own; the two take turns. Written to benchmarks/results/ingest.json: seconds of every
run, medians, their ratio, the largest memory (for several processes: their sum), and that
both gave the same rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "ingest.json"
_TEXT = "the row of data which one would train on and was it worth its price in time money or memory"
_ROLES = {"system", "user", "assistant", "tool"}


def write_rows(path: Path, rows: int) -> None:
    """Chat rows of some 460 bytes, one in ten not in English; one in fifty repeats an earlier one."""
    draw = random.Random(0)
    english = [word + suffix for word in _TEXT.split(" ") for suffix in ("", "s", "ing", "ed")]
    others = [*english, *(word + suffix for word in _TEXT.split(" ") for suffix in ("é", " 数"))]
    with open(path, "w", encoding="utf-8") as file:
        earlier = [""]
        for i in range(rows):
            if i % 50 == 49:
                file.write(draw.choice(earlier))
                continue
            vocabulary = others if i % 10 == 0 else english
            question = " ".join(draw.choices(vocabulary, k=15))
            answer = " ".join(draw.choices(vocabulary, k=45)) + f"\n{i}"
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            line = json.dumps({"messages": turns}, ensure_ascii=False) + "\n"
            file.write(line)
            if i % 100 == 0:
                earlier.append(line)


def plain(path: Path, out: Path) -> dict[str, Any]:
    """The loop that comes to mind first, with the same result."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tamis.pools.ingest import SCHEMA

    first: dict[bytes, int] = {}
    counts: dict[bytes, int] = {}
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    with pq.ParquetWriter(out, SCHEMA, compression="zstd", compression_level=1) as writer:
        with open(path, "rb") as file:
            for line, raw in enumerate(file, start=1):
                row = json.loads(raw)
                if (
                    not isinstance(row, dict)
                    or not isinstance(row.get("messages"), list)
                    or not row["messages"]
                ):
                    raise ValueError(f"{path}:{line}")
                turns, flat = [], []
                for turn in row["messages"]:
                    if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
                        raise ValueError(f"{path}:{line}")
                    if not isinstance(turn.get("content"), str):
                        raise ValueError(f"{path}:{line}")
                    turns.append({"role": turn["role"], "content": turn["content"]})
                    flat += [turn["role"], turn["content"].strip()]
                text = json.dumps(flat, ensure_ascii=False, separators=(",", ":"))
                key = hashlib.blake2b(text.encode(), digest_size=16).digest()
                first.setdefault(key, line - 1)
                counts[key] = counts.get(key, 0) + 1
                source = row.get("source") or row.get("dataset") or path.stem
                chars = sum(len(turn["content"]) for turn in turns)
                values = (key, source, 0, line, turns, raw.rstrip(b"\n"), chars)
                for name, value in zip(SCHEMA.names, values, strict=True):
                    columns[name].append(value)
                if len(columns["id"]) == 4096:
                    writer.write_table(pa.table(columns, schema=SCHEMA))
                    columns = {name: [] for name in SCHEMA.names}
        writer.write_table(pa.table(columns, schema=SCHEMA))
    return {"rows": len(first), "ids": hashlib.blake2b(b"".join(first)).hexdigest()}


def quick(path: Path, out: Path) -> dict[str, Any]:
    """`read_pool` into a new store."""
    import numpy as np

    from tamis.pools.read import read_pool

    pool = read_pool([path], store=out)
    return {"rows": len(pool), "ids": hashlib.blake2b(np.asarray(pool.id_bytes).tobytes()).hexdigest()}


def _family_memory(pid: int) -> int:
    """Resident bytes of a process and of those it started (Linux)."""
    total, queue = 0, [pid]
    while queue:
        current = queue.pop()
        try:
            fields = Path(f"/proc/{current}/statm").read_text().split()
            total += (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
            queue += [
                int(child) for child in Path(f"/proc/{current}/task/{current}/children").read_text().split()
            ]
        except (OSError, ValueError):
            continue
    return total


def _run(kind: str, path: Path, folder: Path) -> dict[str, Any]:
    out = folder / f"{kind}-out"
    command = [sys.executable, __file__, "--only", kind, "--input", str(path), "--output", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, _family_memory(process.pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    text, _ = process.communicate()
    watcher.join()
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    if process.returncode:
        raise SystemExit(f"{kind} failed")
    return {**json.loads(text), "peak_memory_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=("plain", "quick"), help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        routine = plain if given.only == "plain" else quick
        start, before = time.perf_counter(), os.times()
        found = routine(given.input, given.output)
        seconds, after = time.perf_counter() - start, os.times()
        processor = sum(after[:4]) - sum(before[:4])  # with that of helping processes
        print(json.dumps({**found, "seconds": round(seconds, 3), "processor_seconds": round(processor, 2)}))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        path = folder / "rows.jsonl"
        write_rows(path, given.rows)
        runs: dict[str, list[dict[str, Any]]] = {"plain": [], "quick": []}
        for _ in range(given.runs):
            for kind, made in runs.items():
                made.append(_run(kind, path, folder))
                print(kind, made[-1], file=sys.stderr)
        size = path.stat().st_size
    medians = {kind: statistics.median(run["seconds"] for run in made) for kind, made in runs.items()}
    same = len({(run["rows"], run["ids"]) for made in runs.values() for run in made}) == 1
    result = {
        "rows": given.rows,
        "input_bytes": size,
        "bytes_a_row": round(size / given.rows, 1),
        "rows_after_merging": runs["quick"][0]["rows"],
        "same_rows_and_ids": same,
        "seconds": {kind: [run["seconds"] for run in made] for kind, made in runs.items()},
        "median_seconds": medians,
        "processor_seconds": {
            kind: [run["processor_seconds"] for run in made] for kind, made in runs.items()
        },
        "times_as_fast": round(medians["plain"] / medians["quick"], 2),
        "peak_memory_bytes": {
            kind: max(run["peak_memory_bytes"] for run in made) for kind, made in runs.items()
        },
        "machine": {
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
        },
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
