"""A quality scorer tuned on the laboratory (`benchmarks/lab_scores.py`): it is asked what it was taught."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tamis
from tamis.lab import NANO, write_lab
from tamis.scores._digit_prompts import exchanges, parsed, prompt_ids, prompt_of
from tamis.study.laboratory import truth_of

pytest.importorskip("torch")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "lab_scores.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_scores", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_roc_by_hand(script: ModuleType) -> None:
    """Of the six pairs the clean row is higher in three, equal in one."""
    assert script.roc(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.5])) == pytest.approx(3.5 / 6)
    values = np.array([3.0, 2.0, np.nan, 1.0, 2.5])
    faults = np.array(["", "", "", "wrong", "wrong"], dtype=object)
    assert script.rocs(values, faults) == {"wrong": pytest.approx(3 / 4)}


def test_it_is_tuned_on_the_tokens_that_it_is_asked_and_scores_every_row(
    script: ModuleType, tmp_path: Path
) -> None:
    from tamis.models.lm import load_model
    from tamis.models.render import Renderer
    from tamis.pools.pool import Message
    from tamis.scores._digits import digit_tokens

    lab = tmp_path / "lab"
    write_lab(lab, rows=60, seed=2)
    pool = tamis.read_pool([lab / "pool.jsonl"], store=tmp_path / "store")
    seen = {each.instruction for row in pool.iter_rows() for each in exchanges(row.messages)}
    faults = truth_of(pool, lab).faults
    assert script.tuning_rows(pool, faults, seen) == []
    rows = script.tuning_rows(pool, faults, set())
    assert {row["completion"] for row in rows} == {script.GOOD, script.BAD}

    template = tmp_path / "scorer.jinja"
    template.write_text(script.TEMPLATE)
    tokenizer = load_model(str(NANO), tokenizer_only=True).tokenizer
    trained_on, asked = Renderer(tokenizer, str(template), 512), Renderer(tokenizer, "none", 512)
    digits = dict(zip("123456", digit_tokens(tokenizer, "nano").tolist(), strict=True))
    prompt = parsed(prompt_of("plain", "quality", ""), "quality")
    talks = [row for row in pool.iter_rows() if len(exchanges(row.messages)) == 1]
    assert len(talks) >= len(rows)
    for row in rows:
        made = trained_on.render([Message("user", row["prompt"]), Message("assistant", row["completion"])])
        at = int(made.mask.argmax())
        talk = next(t for t in talks if prompt.text(exchanges(t.messages)[0])[0] == row["prompt"])
        (ids,), _ = prompt_ids(asked, prompt, exchanges(talk.messages), 512)
        assert made.ids[:at].tolist() == ids.tolist() and made.ids[at] == digits[row["completion"]]

    script.RECIPE = {**script.RECIPE, "epochs": 1}
    path, facts = script.tuned_scorer(pool, tmp_path, 60, 5)
    assert facts["rows"] > facts["bad"] > 0 and facts["steps"] >= 1
    scores = tamis.score(
        pool, "quality", parameters={"model": str(path), "prompt": "plain"}, model=str(NANO),
        store=tmp_path / "store",
    )  # fmt: skip
    before = tamis.score(
        pool, "quality", parameters={"model": str(NANO), "prompt": "plain"}, model=str(NANO),
        store=tmp_path / "store",
    )  # fmt: skip
    scored = np.isfinite(scores.values)
    assert (scored == (scores.status == "ok")).all() and scored.sum() > 40
    assert not np.allclose(scores.values[scored], before.values[scored])
