"""The command line: verbs, exit codes, JSON, and what a user sees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tamis.lab import NANO, write_lab

ROOT = Path(__file__).resolve().parents[2]


def tamis(*arguments: str | Path, code: int = 0, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command line and check its exit code."""
    command = [sys.executable, "-m", "tamis", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-lab")
    write_lab(folder, rows=400, seed=5)
    return folder


@pytest.fixture(scope="module")
def chosen(lab: Path) -> tuple[Path, Any]:
    """A selection with the nano model, several strategies and budgets, as JSON."""
    query = sorted((lab / "queries").glob("*.jsonl"))[0]
    done = tamis(
        "select", "--pool", lab / "pool.jsonl", "--query", f"target={query}", "--store", lab / "store",
        "--strategy", "rds/round-robin,longest", "--strategy", "random", "--budget", "20,2000tok",
        "--model", NANO, "--dtype", "float32", "--out", lab / "out", "--json", "--quiet",
    )  # fmt: skip
    return lab / "out", json.loads(done.stdout)


def test_select_by_tokens_and_rows_with_a_model(chosen: tuple[Path, Any]) -> None:
    out, manifest = chosen
    names = [(entry["strategy"], entry["budget"]) for entry in manifest["subsets"]]
    assert names == [(s, b) for s in ("rds/round-robin", "longest", "random") for b in ("20", "2000tok")]
    for entry in manifest["subsets"]:
        assert (out / entry["folder"] / "subset.jsonl").exists()
        if entry["budget"] == "2000tok":
            assert 1500 < entry["tokens"] <= 2000
    assert manifest["recipe"]["model"]["fingerprint"]
    rds = manifest["execution"]["signals"]["rds/round-robin"]
    assert rds["device"] == "cpu" and manifest["ledger"]
    longest = next(entry for entry in manifest["subsets"] if entry["strategy"] == "longest")
    assert longest["status"]["empty_response"] > 0  # the laboratory plants empty answers


@pytest.mark.parametrize("form", ["original", "messages", "alpaca", "sharegpt", "parquet", "ids", "hf"])
def test_export_of_every_format(chosen: tuple[Path, Any], form: str, tmp_path: Path) -> None:
    out, _ = chosen
    target = tmp_path / ("folder" if form == "hf" else f"subset.{form}")
    done = tamis("export", out / "random" / "20" / "seed0", "--to", form, "--out", target, "--json")
    assert json.loads(done.stdout) == {"rows": 20, "format": form, "out": str(target)}
    assert target.exists()


def test_represent_in_shares_and_again(lab: Path) -> None:
    given = ["represent", "ngrams", "--pool", lab / "pool.jsonl", "--store", lab / "other", "--json"]
    first = json.loads(tamis(*given, "--shard", "1/1").stdout)
    assert first["state"] == "complete" and sum(first["status"].values()) == first["rows"]
    assert json.loads(tamis(*given).stdout)["digest"] == first["digest"]


def test_inspect_shows_the_pool_and_one_row(lab: Path) -> None:
    facts = json.loads(tamis("inspect", lab / "pool.jsonl", "--store", lab / "store", "--json").stdout)
    assert facts["rows_read"] == 400 and facts["exact_duplicates"] == 400 - facts["rows"] > 0
    assert facts["last_answer_empty"] > 0 and sum(facts["sources"].values()) == facts["rows"]
    text = tamis("inspect", lab / "pool.jsonl", "--store", lab / "store").stdout
    assert "exact duplicates merged" in text and "length in characters" in text
    row = json.loads(
        tamis(
            "inspect", lab / "pool.jsonl", "--store", lab / "store", "--row", "3", "--model", NANO, "--json"
        ).stdout
    )
    assert row["row"] == 3 and 0 < row["supervised_tokens"] < row["tokens"] == len(row["input_ids"])
    by_id = tamis(
        "inspect", lab / "pool.jsonl", "--store", lab / "store", "--row", row["id"][:12], "--model", NANO
    )
    assert f"id {row['id']}" in by_id.stdout


def test_bad_rows_exit_3_and_skipping_keeps_them_aside(tmp_path: Path) -> None:
    good = '{"instruction": "a", "output": "b"}\n'
    (tmp_path / "p.jsonl").write_text(good * 3 + '{"instruction": 5, "output": "b"}\n{broken\n')
    given = ["select", "--pool", "p.jsonl", "--strategy", "random", "--budget", "1", "--out", "out"]
    done = tamis(*given, code=3, cwd=tmp_path)
    assert "p.jsonl:4" in done.stderr and "p.jsonl:5" in done.stderr and not (tmp_path / "out").exists()
    assert tamis("inspect", "p.jsonl", code=3, cwd=tmp_path).stdout.count("p.jsonl:") == 2
    tamis(*given, "--skip-bad-rows", cwd=tmp_path)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["line"] for line in rejected] == [4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["select", "--pool", "none.jsonl", "--strategy", "random", "--budget", "5", "--out", "o"],
            "none.jsonl",
        ),
        (
            ["select", "--pool", "x", "--strategy", "rnd", "--budget", "5", "--out", "o"],
            "did you mean 'random'",
        ),
        (["select", "--pool", "x", "--strategy", "random", "--budget", "x", "--out", "o"], "budget 'x'"),
        (["represent", "rds", "--pool", "x"], "rds needs --model"),
        (["represent", "ngrams", "--pool", "x", "--shard", "9/8"], "expected i/n"),
        (["methods", "rdss"], "did you mean 'rds'"),
        (["export", "nowhere", "--to", "alpaca", "--out", "o"], "is not a subset"),
        (["select"], "Missing option"),
    ],
)
def test_wrong_requests_exit_2_before_any_work(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = tamis(*arguments, code=2, cwd=tmp_path)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["demo", "methods", "inspect", "select", "represent", "export", "doctor"])
def test_every_verb_takes_the_common_flags(verb: str) -> None:
    text = tamis(verb, "--help").stdout
    assert all(f"--{flag} " in text for flag in ("store", "seed", "quiet", "json", "help"))


def test_methods_and_doctor(lab: Path, chosen: tuple[Path, Any]) -> None:
    listed = json.loads(tamis("methods", "--json").stdout)
    assert {"rds", "round-robin", "length"} <= {method["name"] for method in listed["methods"]}
    assert "Definition." in tamis("methods", "rds").stdout
    found = json.loads(tamis("doctor", "--store", lab / "store", "--model", NANO, "--json").stdout)
    assert found["store"]["faults"] == [] and found["store"]["complete"] > 3 and found["model"]["invariant"]
    damaged = next((lab / "store" / "representation").rglob("*.vectors.npy"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    done = tamis("doctor", "--store", lab / "store", code=4)
    assert "does not match its checksum" in done.stdout
    damaged.write_bytes(content)


def test_tests_among_the_queries_and_rows_that_repeat(lab: Path, tmp_path: Path) -> None:
    query, held_out = (sorted((lab / name).glob("*.jsonl"))[0] for name in ("queries", "tests"))
    common: list[str | Path] = ["--pool", lab / "pool.jsonl", "--store", tmp_path / "store"]
    common += ["--budget", "9", "--quiet"]
    common += ["--strategy", "random", "--query", f"a={query}", "--dedup", "near"]
    done = tamis("select", *common, "--test", f"t={query}", "--out", tmp_path / "no", code=2)
    assert "--allow-leak" in done.stderr and "row 0" in done.stderr and not done.stdout
    assert tamis("select", *common, "--decontaminate", "keep", "--out", tmp_path / "no", code=2)
    done = tamis("select", *common, "--test", f"t={held_out}", "--json", "--out", tmp_path / "out")
    assert json.loads(done.stdout)["hygiene"]["dropped"]["near_duplicate"] > 0
    done = tamis(
        "inspect", lab / "pool.jsonl", "--store", tmp_path / "store", "--near", "--json",
        "--against", lab / "pool.jsonl",
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert facts["near_duplicates"]["examples"] and facts["against"]["examples"][0]["share"] == 1.0
