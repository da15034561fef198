"""Kills of a selection by gradients: in its warm-up, at a later checkpoint, and while subsets are written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tamis.lab import write_lab
from tests.cli.test_crash import SCRIPT, crash  # noqa: F401

pytest.importorskip("torch")
pytest.importorskip("peft")

DIE_AFTER = """
import os, re, signal, sys
pattern, left = sys.argv.pop(1), int(sys.argv.pop(1))
import tamis.core.store
tamis.core.store._SHARD_ROWS = (16, 65536)
def watched(call):
    def wrapper(source, target, *args, **kwargs):
        global left
        result = call(source, target, *args, **kwargs)
        if re.search(pattern, str(target)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper
os.replace, os.rename = watched(os.replace), watched(os.rename)
sys.argv[0] = "tamis"
from tamis.cli import main
main()
"""
"""Shards of 16 rows, and a SIGKILL after the n-th file of some name is in its place."""
NEVER = ("^$", 1)


def run(arguments: list[str], pattern: str, count: int) -> int:
    command = [sys.executable, "-c", DIE_AFTER, pattern, str(count), *arguments]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def shards(folder: Path) -> dict[str, int]:
    """Every whole shard of gradients, and when its vectors were written."""
    found = {}
    for path in (folder / "store" / "representation").glob("*/*.vectors.npy"):
        if path.with_name(f"{path.name[:5]}.json").exists() or path.parent.suffix != ".part":
            found[f"{path.parent.stem}/{path.name}"] = path.stat().st_mtime_ns
    return found


def ledger(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "store" / "ledger.jsonl").read_text().splitlines()]


def test_killed_again_and_again_it_goes_on_and_gives_the_same_bytes(crash, tmp_path: Path) -> None:  # noqa: F811
    lab = tmp_path / "lab"
    write_lab(lab, rows=45, seed=1)
    for path in (lab / "queries").glob("*.jsonl"):
        path.write_text("".join(path.open().readlines()[:4]))

    def command(folder: str) -> list[str]:
        given = crash.commands(tmp_path / folder, lab)["less"]
        return [*given[: given.index("--budget")], "--budget", "10", *given[given.index("--budget") + 2 :]]

    assert run(command("undisturbed"), *NEVER) == 0
    expected = crash.contents(tmp_path / "undisturbed")
    assert len(shards(tmp_path / "undisturbed")) == 8  # two of the target, and three of the pool twice
    killed, kept = tmp_path / "killed", []
    for pattern, count, whole in (
        (r"epoch-1/exp_avg_sq", 1, 0),  # the warm-up is in its second epoch
        (r"representation/.*/\d{5}\.json$", 7, 7),  # two of three shards at the second checkpoint are there
        (r"subset\.jsonl$", 1, 8),
    ):
        assert run(command("killed"), pattern, count) == -signal.SIGKILL, pattern
        kept.append(shards(killed))
        assert len(kept[-1]) == whole, pattern
    assert run(command("killed"), *NEVER) == 0
    assert crash.contents(killed) == expected
    after = shards(killed)
    assert all(one.items() <= after.items() for one in kept) and len(after) == 8
    booked = Counter(
        (entry["digest"], entry["shard"]) for entry in ledger(killed) if entry["kind"] == "representation"
    )
    # The second kill came before the line of the shard that had just been written.
    assert len(booked) == 7 and max(booked.values()) == 1
