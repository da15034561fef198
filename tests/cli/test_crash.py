"""Kills of `select` and `score`; the benchmark `crash.py` does the same at length."""

from __future__ import annotations

import importlib.util
import json
import signal
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from tamis.lab import write_lab

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "crash.py"


@pytest.fixture(scope="module")
def crash() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crash", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_killed_at_steps_the_repeated_command_gives_the_same_bytes(crash: ModuleType, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    write_lab(lab, rows=700, seed=1)

    def command(folder: str) -> list[str]:
        return crash.commands(tmp_path / folder, lab, with_model=False)["select"]

    assert crash.run(command("undisturbed")) == 0
    expected = crash.contents(tmp_path / "undisturbed")
    assert sum(name.endswith("subset.jsonl") for name in expected) == 2
    # Steps spread over reading the pool, encoding and writing the subsets.
    for step in (5, 30, 55, 80):
        folder = f"step-{step}"
        assert crash.run(command(folder), die_at=step) == -signal.SIGKILL
        assert crash.run(command(folder)) == 0
        assert crash.contents(tmp_path / folder) == expected, f"killed at step {step}"


def shards(folder: Path) -> dict[str, int]:
    """Every written shard of a score, and when it was written."""
    found = {}
    for path in (folder / "store" / "scores").glob("*/*.values.npy"):
        whole = path.with_name(f"{path.name[:5]}.json").exists() or path.parent.suffix != ".part"
        if whole:
            found[f"{path.parent.stem}/{path.name}"] = path.stat().st_mtime_ns
    return found


def booked(folder: Path) -> Counter[tuple[str, int]]:
    """Shards of scores in the ledger."""
    lines = (folder / "store" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if entry["kind"] == "scores"]
    return Counter((entry["digest"], entry["shard"]) for entry in entries)


def test_killed_while_losses_are_computed_the_next_run_computes_only_what_is_missing(
    crash: ModuleType, tmp_path: Path
) -> None:
    """IFD: two things (losses in context, losses of responses alone) of two shards each."""
    pytest.importorskip("torch")
    lab = tmp_path / "lab"
    write_lab(lab, rows=700, seed=1)

    def command(folder: str) -> list[str]:
        return crash.commands(tmp_path / folder, lab)["score"]

    assert crash.run(command("undisturbed")) == 0
    expected = crash.contents(tmp_path / "undisturbed")
    assert len(shards(tmp_path / "undisturbed")) == 4
    seen = set()
    # Within the first shard; after one in context; after one of both.
    for step in (120, 160, 200):
        folder = f"step-{step}"
        assert crash.run(command(folder), die_at=step) == -signal.SIGKILL
        kept = shards(tmp_path / folder)
        seen.add(len(kept))
        assert crash.run(command(folder)) == 0
        assert crash.contents(tmp_path / folder) == expected, f"killed at step {step}"
        after = shards(tmp_path / folder)
        assert kept.items() <= after.items() and len(after) == 4, f"killed at step {step}"
        assert max(booked(tmp_path / folder).values()) == 1, f"killed at step {step}"
    assert seen == {0, 1, 2}
