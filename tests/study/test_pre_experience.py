"""cherry: rows, a model trained on them, a score by that model; its bill, its plan, how to skip it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.core.files import read_json
from tamis.core.store import Store
from tamis.lab import NANO, write_lab
from tamis.models import train as training
from tamis.study.budget import Budget
from tamis.study.plan import Asked, plan
from tamis.study.signals import Settings
from tamis.study.stored import stored_subsets
from tamis.study.strategies import parse_settings, resolve
from tamis.study.trace import trace

pytest.importorskip("torch")
pytest.importorskip("sklearn")

SMALL = {
    "cluster-middle": {"clusters": 6, "per_cluster": 4},
    "cherry": {"recipe": {"recipe": "cherry", "batch_rows": 8, "learning_rate": 1e-3}},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder, rows=120, seed=1)
    return folder


def chosen(lab: Path, store: Path, **given: Any) -> Any:
    pool = tamis.read_pool([lab / "pool.jsonl"], store=store)
    options = {"strategy": "cherry", "budget": 20, "parameters": SMALL, "model": str(NANO), "device": "cpu"}
    return tamis.select(pool, **{**options, "store": store, "report": False, **given})


def test_the_score_is_made_by_the_model_that_was_trained_on_the_first_rows(lab: Path, tmp_path: Path) -> None:
    subset = chosen(lab, tmp_path / "store", out=tmp_path / "out")
    pre = subset.facts["pre"]
    rows = pre["choice"]["middle_rows"]
    assert (pre["strategy"], pre["chosen_rows"], pre["asked_rows"]) == ("cherry-first", rows, 1000)
    assert 12 < rows <= 24 and pre["training"]["rows"] == rows and pre["training"]["steps"] == -(-rows // 8)
    pool = subset.pool
    store = tmp_path / "store"
    model = store / "model" / pre["model"]
    by_hand = tamis.score(pool, "ifd", model=str(model), device="cpu", store=tmp_path / "other").values
    base = tamis.score(pool, "ifd", model=str(NANO), device="cpu", store=store).values
    assert np.nanmax(np.abs(by_hand - base)) > 0.05
    order = np.argsort(np.where(by_hand <= 1, -by_hand, np.inf), kind="stable")[:20]
    assert sorted(order) == sorted(subset.positions)
    np.testing.assert_allclose(subset.score, by_hand[subset.positions], rtol=1e-6)
    (first,) = [found for found in stored_subsets(store) if found.strategy == "cherry-first"]
    assert sorted((model / "ids.txt").read_text().split()) == sorted(pool.ids[first.positions])


def test_the_manifest_has_the_stage_and_its_bill(lab: Path, tmp_path: Path) -> None:
    chosen(lab, tmp_path / "store", out=tmp_path / "out")
    manifest = read_json(tmp_path / "out" / "manifest.json")
    recipe = manifest["recipe"]["strategies"][0]
    assert recipe["pre"]["strategy"]["name"] == "cherry-first" and recipe["pre"]["recipe"]["epochs"] == 1
    entry = manifest["subsets"][0]
    done = entry["pre"]["training"]
    bill = manifest["ledger"][entry["pre"]["model"]]
    assert bill["tokens"] == done["tokens"] and bill["flops"] == 6 * done["parameters"] * done["tokens"]
    kinds = {digest: kind for kind, digest, _ in Store(tmp_path / "store").things()}
    paid = [kinds.get(digest, "subset") for digest in manifest["ledger"]]
    # Perplexity of prompts, losses in context by the trained model, and IFD.
    assert paid.count("scores") == 3 and {"representation", "model", "rendering", "pool"} <= set(paid)


def test_the_same_recipe_gives_the_same_bytes_and_trains_once(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chosen(lab, tmp_path / "a", out=tmp_path / "out-a")
    monkeypatch.setattr(training._Run, "train", lambda *given: pytest.fail("trained again"))
    again = chosen(lab, tmp_path / "a", out=tmp_path / "out-b")
    for name in ("selection.parquet", "subset.jsonl"):
        ours, theirs = (out / first.relative / name for out in (tmp_path / "out-a", tmp_path / "out-b"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert again.facts["pre"] == first.facts["pre"]


def test_trace_says_that_the_first_stage_ended_without_a_row(lab: Path, tmp_path: Path) -> None:
    subset = chosen(lab, tmp_path)
    (first,) = [found for found in stored_subsets(tmp_path) if found.strategy == "cherry-first"]
    usable = tamis.score(
        subset.pool,
        "perplexity",
        model=str(NANO),
        device="cpu",
        store=tmp_path,
        parameters={"tokens": "prompt"},
    ).values
    left = next(row for row in np.flatnonzero(np.isfinite(usable)) if row not in first.positions)
    entries = trace(str(subset.pool.ids[left]), tmp_path)["rows"][0]["subsets"]
    (entry,) = [entry for entry in entries if entry["strategy"] == "cherry-first"]
    assert not entry["chosen"]
    assert entry["reason"] == f"the selection ended at {len(first.positions)} rows without it"


def test_skipped_it_is_ifd(lab: Path, tmp_path: Path) -> None:
    skipped = chosen(lab, tmp_path, parameters={"cherry": {"pre": False}})
    plain = chosen(lab, tmp_path, strategy="ifd", parameters={})
    np.testing.assert_array_equal(skipped.positions, plain.positions)
    np.testing.assert_array_equal(skipped.score, plain.score)
    assert "pre" not in skipped.facts and not (tmp_path / "model").exists()


def test_every_part_can_be_set_and_is_part_of_the_recipe() -> None:
    settings = parse_settings(["cherry.rows=50", "cherry.recipe=tulu2", "cluster-middle.clusters=7"])
    (strategy,) = resolve(["cherry"], settings)
    assert strategy.pre is not None
    assert (strategy.pre.rows, strategy.pre.recipe.epochs) == (50, 2)
    assert strategy.pre.strategy.recipe()["selection"]["parameters"]["clusters"] == 7
    recipes = {
        json.dumps(resolve(["cherry"], parse_settings(given))[0].recipe(), sort_keys=True)
        for given in ([], ["cherry.rows=50"], ["cluster-middle.clusters=7"], ["cherry.pre=false"])
    }
    assert len(recipes) == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cherry.row=50"], "unknown parameter of cherry .row."),
        (["cherry.rows=0"], "cherry.rows=0: expected a whole number"),
        (["cherry.pre=maybe"], "cherry.pre=.maybe.: expected true or false"),
        (["cherry.recipe=cheri"], "unknown recipe .cheri.; did you mean .cherry."),
        (["cherry.strategy=rds/round-robin"], "expected one without a target"),
        (["ifd.model=gpt2"], "leave out --set ifd.model"),
        (["ppl-mid.pre=false"], "unknown method in --set"),
    ],
)
def test_refused(given: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        resolve(["cherry"], parse_settings(given))


def test_a_base_that_cannot_be_trained_is_refused_before_any_work(lab: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(NANO)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"never read")
    with pytest.raises(RequestError, match="merge it into its base first"):
        chosen(lab, tmp_path / "store", model=str(adapter))
    assert not (tmp_path / "store" / "scores").exists()


def test_rows_that_are_left_out_are_not_trained_on_either(lab: Path, tmp_path: Path) -> None:
    query = sorted((lab / "queries").glob("*.jsonl"))[0]
    leaked = tmp_path / "leaked.jsonl"
    leaked.write_bytes(query.read_bytes() + (lab / "pool.jsonl").read_bytes().splitlines()[0] + b"\n")
    subset = chosen(lab, tmp_path / "store", query={"task": leaked}, decontaminate="drop")
    model = tmp_path / "store" / "model" / subset.facts["pre"]["model"]
    assert subset.pool.ids[0] not in (model / "ids.txt").read_text().split()
    assert 0 not in subset.positions
    assert subset.facts["pre"]["choice"]["usable_rows"] < len(subset.pool)


def test_the_plan_has_every_stage_of_it(lab: Path, tmp_path: Path) -> None:
    settings = Settings(store=tmp_path, model=str(NANO), device="cpu")
    strategies = resolve(["cherry", "ifd"], SMALL)
    asked = Asked(strategies, [Budget(20, "rows")], [str(lab / "pool.jsonl")], settings=settings)
    before = plan(asked)
    names = [stage.name for stage in before.stages]
    rows = next(stage.rows for stage in before.stages if stage.name == "train the model of cherry")
    order = [
        "score the pool by perplexity",
        "encode the pool by prompt-mean",
        f"choose cherry-first ({rows})",
        "train the model of cherry",
        "score the pool by ifd with the trained model",
        "score the pool by ifd",
    ]
    assert [name for name in names if name in order] == order
    training_stage = before.stages[names.index("train the model of cherry")]
    assert training_stage.flops == pytest.approx(6 * 2_632_128 * training_stage.tokens)
    assert training_stage.seconds > 0 and training_stage.disk_bytes > 4 * 2_600_000
    chosen(lab, tmp_path, strategy=["cherry", "ifd"], budget=[20])
    states = {stage.name: stage.state for stage in plan(asked).stages}
    assert states["score the pool by perplexity"] == states["score the pool by ifd"] == "complete"
    assert states["score the pool by ifd with the trained model"] == "missing"  # its name cannot be known
