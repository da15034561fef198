"""Kills of `represent` and `select`; the benchmark `crash.py` does the same at length."""

from __future__ import annotations

import importlib.util
import signal
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
