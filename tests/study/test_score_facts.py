"""Facts of a score: counts that add up, ends, warnings; and the verb that shows them."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tamis
from tamis.cli import app
from tamis.lab import NANO, write_lab
from tamis.scores import ifd
from tamis.study._report_charts import number
from tamis.study.score_facts import score_facts


def test_counts_ends_and_ties(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": "x" * (i % 5)} for i in range(20)]
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    pool = tamis.read_pool([path], store=tmp_path / "store")
    scores = tamis.score(pool, "length", parameters={"unit": "chars"}, store=tmp_path / "store")
    facts = score_facts(pool, scores)
    assert (
        facts["status"] == {"ok": 16, "empty_response": 4} and sum(facts["status"].values()) == facts["rows"]
    )
    assert (facts["scored"], facts["different"]) == (16, 4)
    assert sum(facts["histogram"]["rows"]) == 16 and len(facts["histogram"]["edges"]) == 21
    assert [row["score"] for row in facts["best"]] == [4, 4, 4]
    assert [row["score"] for row in facts["worst"]] == [1, 1, 1]
    assert facts["quantiles"]["0"] == 1 and facts["quantiles"]["1"] == 4
    assert facts["length_correlation"] > 0.9


def test_the_report_shows_a_score_over_the_pool(tmp_path: Path) -> None:
    write_lab(tmp_path, rows=80, seed=1)
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / "store")
    given = {"parameters": {"length": {"unit": "chars"}}, "store": tmp_path / "store"}
    tamis.select(pool, strategy=["longest", "random"], budget=[5, 9], out=tmp_path / "out", **given)
    signals = json.loads((tmp_path / "out" / "manifest.json").read_text())["execution"]["signals"]
    told = signals["longest"]["distribution"]
    scores = tamis.score(pool, "length", parameters={"unit": "chars"}, store=tmp_path / "store")
    facts = score_facts(pool, scores)
    assert told == {name: facts[name] for name in told} and sum(told["histogram"]["rows"]) == facts["scored"]
    page = html.unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    related = number(told["length_correlation"], 2)
    assert f"The score of every row of the pool: its rank correlation with length is {related}" in page
    assert f"{number(told['different'])} different values. Length in characters." in page
    assert "distribution" not in signals["random"]


def test_the_verb_shows_and_tells(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_lab(tmp_path, rows=80, seed=1)
    given = ["score", "ifd", "--pool", str(tmp_path / "pool.jsonl"), "--model", str(NANO),
             "--store", str(tmp_path / "store")]  # fmt: skip
    told = CliRunner().invoke(app, [*given, "--json"])
    assert told.exit_code == 0, told.output
    facts = json.loads(told.stdout)
    assert sum(facts["status"].values()) == facts["rows"] and facts["state"] == "complete"
    shown = CliRunner().invoke(app, given)
    assert "distribution" in shown.stdout and "rank correlation with length" in shown.stdout
    refused = CliRunner().invoke(app, [*given, "--set", "length.unit=chars"])
    assert refused.exit_code == 2 or refused.exception is not None


def test_many_rows_above_one_are_warned_of() -> None:
    pytest.importorskip("torch")
    from tests.scores.test_likelihood import context

    scorer = ifd.prepare(ifd.Config(), context())
    assert scorer.warnings_of(np.array([0.5] * 96 + [1.2] * 4 + [np.nan] * 9)) == []
    (warning,) = scorer.warnings_of(np.array([0.5] * 9 + [1.2]))
    assert "10% of the rows have IFD above 1" in warning
