"""Size of the report of a large subset, the time to write it, and the time until a browser has opened it.

    python benchmarks/report.py --rows 100000 --work /tmp/report

A pool of twice as many synthetic rows (words of a Zipf vocabulary, log-normal lengths) is read and half of it
selected by ngrams/top-k against 48 queries. `--browser` names a Chromium; its time is that of a headless
run that loads the page, unpacks the rows and lists them, beside that of a run on an empty page.
Written to benchmarks/results/report.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parent / "results" / "report.json"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


def write_pool(path: Path, rows: int, seed: int) -> None:
    """Rows of two turns from a vocabulary of 30,000 made-up words."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(generator.choice(letters, generator.integers(2, 10))) for _ in range(30_000)])
    sizes = np.exp(generator.normal(4.0, 0.8, (rows, 2))).astype(int) + 3
    drawn = np.minimum(generator.zipf(1.2, int(sizes.sum())) - 1, len(words) - 1)
    texts = iter(np.split(words[drawn], np.cumsum(sizes.ravel())[:-1]))
    with open(path, "w", encoding="utf-8") as file:
        for row in range(rows):
            turns = [{"role": role, "content": " ".join(next(texts))} for role in ("user", "assistant")]
            file.write(json.dumps({"messages": turns, "source": f"source-{row % 17}"}) + "\n")


def opened(browser: str, page: str) -> tuple[float, bool]:
    """Seconds of a headless run on `page`, and whether its rows were listed."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [browser, *FLAGS, f"--user-data-dir={folder}", "--virtual-time-budget=10000", "--dump-dom", page],
            capture_output=True,
            timeout=120,
            check=False,
        )
        return time.perf_counter() - start, b'data-ready="yes"' in done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--browser", default=shutil.which("chromium") or "")
    given = parser.parse_args()

    import tamis

    given.work.mkdir(parents=True, exist_ok=True)
    store, out = given.work / "store", given.work / "out"
    for name, rows, seed in (("pool", 2 * given.rows, 0), ("query", 48, 1)):
        if not (given.work / f"{name}.jsonl").exists():
            write_pool(given.work / f"{name}.jsonl", rows, seed)
    pool = tamis.read_pool([given.work / "pool.jsonl"], store=store)
    tamis.select(
        pool, query={"synthetic": given.work / "query.jsonl"}, strategy="ngrams/top-k", budget=given.rows,
        store=store, out=out, report=False,
    )  # fmt: skip
    start = time.perf_counter()
    made = tamis.report(out)
    found: dict[str, object] = {
        "rows": made.rows,
        "megabytes": round(made.size_bytes / 1e6, 2),
        "write_s": round(time.perf_counter() - start, 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    if given.browser:
        (given.work / "empty.html").write_text("<!DOCTYPE html><title>empty</title>")
        runs = [opened(given.browser, made.path.resolve().as_uri()) for _ in range(3)]
        empty = [opened(given.browser, (given.work / "empty.html").resolve().as_uri())[0] for _ in range(3)]
        found["browser_s"] = [round(seconds, 2) for seconds, _ in runs]
        found["browser_empty_page_s"] = [round(seconds, 2) for seconds in empty]
        found["rows_listed"] = all(ready for _, ready in runs)
    found["load"] = [round(value, 1) for value in os.getloadavg()]
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
