"""`tamis plan` and `tamis trace` on the command line."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tamis as package
from tamis.cli import plan as plan_verb
from tamis.cli import select as select_verb
from tamis.lab import NANO, write_lab
from tamis.study.budget import parse_budget
from tamis.study.plan import expected
from tamis.study.select import Request
from tamis.study.signals import Settings
from tamis.study.strategies import resolve


def tamis(*arguments: object, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tamis", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder, rows=200, seed=6)
    return folder


def test_plan_takes_every_option_of_select() -> None:
    options = inspect.signature(select_verb).parameters
    assert set(options) <= set(inspect.signature(plan_verb).parameters)


def test_plan_as_text_and_as_json(lab: Path, tmp_path: Path) -> None:
    query = sorted((lab / "queries").glob("*.jsonl"))[0]
    given = [
        "plan", "--pool", lab / "pool.jsonl", "--query", f"t={query}", "--strategy", "ngrams/top-k,random",
        "--budget", "10,100000", "--dedup", "near", "--store", tmp_path / "store",
        "--price-device-hour", "36",
    ]  # fmt: skip
    found = json.loads(tamis(*given, "--json").stdout)
    assert [stage["state"] for stage in found["stages"] if stage["digest"]] == ["missing"] * 4
    assert found["totals"]["usd"] == pytest.approx(found["totals"]["seconds"] / 100)
    assert "not in the estimate: --dedup" in found["notes"]
    assert any("budget 100000 is more than the pool" in note for note in found["notes"])
    text = tamis(*given).stdout
    assert "how each was estimated" in text and "encode the pool by ngrams" in " ".join(text.split())
    assert not (tmp_path / "store").exists()


def test_a_study_file_is_said_to_come_later(tmp_path: Path) -> None:
    assert "not built yet" in tamis("plan", "study.yaml", code=2, cwd=tmp_path).stderr
    assert "at least one strategy" in tamis("plan", "--pool", "x", code=2, cwd=tmp_path).stderr


def test_trace_as_text_and_as_json(lab: Path, tmp_path: Path) -> None:
    pool = package.read_pool([lab / "pool.jsonl"], store=tmp_path)
    subset = package.select(pool, strategy="random", budget=5, store=tmp_path)
    row = str(subset.ids[2])
    found = json.loads(tamis("trace", row[:12], "--store", tmp_path, "--json").stdout)
    assert found["id"] == row and found["rows"][0]["subsets"][0]["rank"] == 2
    assert "chosen as number 3 of 5" in tamis("trace", row, "--store", tmp_path).stdout
    assert "of no row in this store" in tamis("trace", "0" * 32, "--store", tmp_path, code=2).stderr


def test_what_select_says_beforehand(lab: Path, tmp_path: Path) -> None:
    pool: Any = package.read_pool([lab / "pool.jsonl"], store=tmp_path)
    query = package.read_pool([lab / "tests" / next((lab / "tests").iterdir()).name], store=tmp_path)
    settings = Settings(store=tmp_path, model=str(NANO), dtype="float32", device="cpu")
    budgets = [parse_budget("5")]
    request = Request(resolve(["rds/top-k"]), budgets, {"t": query}, settings=settings)
    seconds, disk = expected(pool, request)
    assert seconds > 0 and disk == pytest.approx(len(pool) * (192 * 4 + 5), abs=2000)
    package.represent(pool, "rds", model=str(NANO), dtype="float32", device="cpu", store=tmp_path)
    assert expected(pool, request) == (0, 0)
    assert expected(pool, Request(resolve(["ngrams/top-k"]), budgets, {"t": query})) == (0, 0)
