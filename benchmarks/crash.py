"""Kill `represent`, `score` and `select` on the laboratory again and again; every time the repeated command
must end with the bytes of an undisturbed run. `--verbs less`: a selection by gradients, warm-up included.

    python benchmarks/crash.py --kills 50 --out benchmarks/results/crash.json

Half of the kills (SIGKILL) come at a random moment, half right before or after a random call that makes
something durable or visible (fsync, replace, rename), so that the gaps between the two writes of a rename are
hit. A file system that is too small for the run (a tmpfs; needs the right to mount) stands for the full disk.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERBS = ("represent", "select", "score")
KINDS = (*VERBS, "less")  # with the training of an adapter, and gradients at two of its checkpoints
NANO = ROOT / "tamis" / "lab" / "nano"
STEPS = {"represent": 90, "select": 90, "score": 320, "less": 700}
"""A kill at a step comes at one of the first so many."""
OUTSIDE_IDENTITY = ("ledger", "execution", "elsewhere")  # of a manifest

DIE_AT_STEP = """
import os, signal, sys
left = int(sys.argv.pop(1))
def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
def watched(call):
    def wrapper(*args, **kwargs):
        step()
        result = call(*args, **kwargs)
        step()
        return result
    return wrapper
os.fsync, os.replace, os.rename = watched(os.fsync), watched(os.replace), watched(os.rename)
sys.argv[0] = "tamis"
from tamis.cli import main
main()
"""


def commands(folder: Path, lab: Path, with_model: bool = True) -> dict[str, list[str]]:
    """The commands under test, writing below `folder`; without a model they start much sooner."""
    pool = ["--pool", str(lab / "pool.jsonl"), "--quiet", "--store", str(folder / "store")]
    if not with_model:
        return {"select": ["select", *pool, *_target(folder, lab), "--strategy", "ngrams/round-robin,random"]}
    model = ["--model", str(NANO), "--dtype", "float32"]
    warm_up = "{recipe: less-warmup, epochs: 2, rank: 2, alpha: 8, batch_rows: 4, max_tokens: 128}"
    less = ["--strategy", "less/round-robin", "--max-tokens", "128"]
    for setting in ("rows=12", f"recipe={warm_up}", "dimensions=256"):
        less += ["--set", f"less.{setting}"]
    strategies = ["--strategy", "rds/round-robin,ngrams/top-k,longest,random", "--budget", "3000tok"]
    return {
        "represent": ["represent", "rds", *pool, *model],
        "score": ["score", "ifd", *pool, *model],
        "select": ["select", *pool, *model, *_target(folder, lab), *strategies],
        "less": ["select", *pool, *model, *_target(folder, lab), *less],
    }


def _target(folder: Path, lab: Path) -> list[str]:
    query = sorted((lab / "queries").glob("*.jsonl"))[0]
    return ["--query", f"{query.stem}={query}", "--budget", "100", "--out", str(folder / "out")]


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file, without the ledger, the manifest's times and the report's bill."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name == "ledger.jsonl":
            continue
        data = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(data)
            kept = {key: value for key, value in manifest.items() if key not in OUTSIDE_IDENTITY}
            data = json.dumps(kept, sort_keys=True).encode()
        if path.name == "report.html":
            data = re.sub(rb"<!--bill-->.*?<!--/bill-->", b"", data, flags=re.DOTALL)
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def run(arguments: list[str], kill_after: float | None = None, die_at: int | None = None) -> int:
    """Run `tamis` with `arguments`; SIGKILL it after some seconds or at a step."""
    head = (
        [sys.executable, "-m", "tamis"]
        if die_at is None
        else [sys.executable, "-c", DIE_AT_STEP, str(die_at)]
    )
    process = subprocess.Popen(
        [*head, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    if process.returncode not in (0, 4, -signal.SIGKILL):
        raise SystemExit(f"{arguments[0]} ended with {process.returncode}:\n{errors.decode()}")
    return process.returncode


@contextlib.contextmanager
def small_disk(size_kib: int) -> Iterator[Path | None]:
    """A tmpfs of `size_kib`, or None where mounting is not allowed."""
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        shutil.rmtree(folder)
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def full_disk(lab: Path, expected: dict[str, str], size_kib: int) -> str:
    """Run out of disk, make room, run again."""
    with small_disk(size_kib) as disk:
        if disk is None:
            return "not run: mounting is not allowed here"
        first = run(commands(disk, lab)["select"])
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        second = run(commands(disk, lab)["select"])
        same = contents(disk) == expected
        return f"exit {first}, then {second}; {'same bytes' if same else 'OTHER BYTES'}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=75)
    parser.add_argument("--verbs", nargs="+", choices=KINDS, default=VERBS)
    parser.add_argument("--rows", type=int, default=2500, help="rows of the laboratory's pool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from tamis.lab import write_lab

    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as work:
        lab = Path(work) / "lab"
        write_lab(lab, rows=given.rows, seed=0)
        expected, seconds = {}, {}
        for verb in given.verbs:
            start = time.perf_counter()
            folder = Path(work) / f"undisturbed-{verb}"
            assert run(commands(folder, lab)[verb]) == 0
            seconds[verb] = time.perf_counter() - start
            expected[verb] = contents(folder)
        results = []
        for kill in range(given.kills):
            verb = given.verbs[kill % len(given.verbs)]
            folder = Path(work) / f"kill-{kill}"
            if kill // len(given.verbs) % 2 == 0:
                code = run(commands(folder, lab)[verb], kill_after=rng.uniform(0.3, seconds[verb]))
            else:
                code = run(commands(folder, lab)[verb], die_at=rng.randrange(STEPS[verb]))
            again = run(commands(folder, lab)[verb])
            same = again == 0 and contents(folder) == expected[verb]
            results.append({"verb": verb, "killed": code == -signal.SIGKILL, "same_bytes": same})
            print(f"kill {kill}: {results[-1]}", file=sys.stderr, flush=True)
            shutil.rmtree(folder)
        disk = (
            [full_disk(lab, expected["select"], size) for size in (600, 1500, 3000)]
            if "select" in given.verbs
            else []
        )
    summary = {
        "kills_asked": given.kills,
        "killed": sum(result["killed"] for result in results),
        "same_bytes": sum(result["same_bytes"] for result in results),
        "undisturbed_s": {verb: round(value, 2) for verb, value in seconds.items()},
        "full_disk": disk,
        "rows": given.rows,
        "system": os.uname().sysname,
    }
    print(json.dumps(summary, indent=1))
    if given.out:
        given.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if summary["same_bytes"] != given.kills or any("OTHER" in line for line in disk):
        raise SystemExit("a repeated command did not end with the bytes of an undisturbed run")


if __name__ == "__main__":
    main()
