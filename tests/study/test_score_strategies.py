"""Strategies of a score: those that also compare vectors, and those that need a target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.cost import totals
from tamis.core.errors import RequestError
from tamis.core.vectors import unit
from tamis.lab import NANO, write_lab
from tamis.pools.pool import Pool
from tamis.study.budget import parse_budget
from tamis.study.plan import Asked, plan
from tamis.study.signals import Settings
from tamis.study.stored import stored_subsets
from tamis.study.strategies import parse_settings, resolve
from tamis.study.trace import trace

pytest.importorskip("torch")

DEITA = {
    "deita": {
        "quality_model": str(NANO), "complexity_model": str(NANO),
        "quality_prompt": "plain", "complexity_prompt": "plain",
    }
}  # fmt: skip

MOST = 0.998  # last states of a small model hardly differ


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder, rows=150, seed=3)
    return folder


@pytest.fixture
def pool(lab: Path, tmp_path: Path) -> Pool:
    return tamis.read_pool([lab / "pool.jsonl"], store=tmp_path / "store")


def query_of(lab: Path) -> dict[str, str]:
    return {"t": str(sorted((lab / "queries").glob("*.jsonl"))[0])}


def chosen(pool: Pool, tmp_path: Path, strategy: Any, budget: int = 10, **given: Any) -> Any:
    options: dict[str, Any] = {"model": str(NANO), "dtype": "float32", "device": "cpu", "report": False}
    return tamis.select(
        pool, strategy=strategy, budget=budget, store=tmp_path / "store", **{**options, **given}
    )


def test_deita_is_its_score_with_the_threshold_on_last_states(pool: Pool, tmp_path: Path) -> None:
    parameters = {**DEITA, "diversity-threshold": {"max_similarity": MOST}}
    subset = chosen(pool, tmp_path, "deita", parameters=parameters)
    common: dict[str, Any] = {"model": str(NANO), "dtype": "float32", "store": tmp_path / "store"}
    scores = tamis.score(pool, "deita", parameters=DEITA["deita"], **common)
    vectors = tamis.represent(pool, "rds-eos", **common)
    wanted = tamis.choose(
        "diversity-threshold", scores.values, 10, vectors=vectors.array(), ids=pool.ids,
        usable=np.isfinite(scores.values), max_similarity=MOST,
    )  # fmt: skip
    assert subset.positions.tolist() == wanted.tolist()
    assert subset.positions.tolist() != tamis.choose("top-k", scores.values, 10).tolist()
    rows = unit(vectors.array()[subset.positions])
    assert (rows @ rows.T - np.eye(10)).max() <= MOST + 1e-6
    assert sum(subset.facts["status"].values()) == len(pool)


def test_the_vectors_can_be_another_representation(pool: Pool, tmp_path: Path) -> None:
    last = chosen(pool, tmp_path, "deita", parameters=DEITA, allow_underflow=True)
    words = chosen(
        pool, tmp_path, "deita",
        parameters={**DEITA, "diversity-threshold": {"vectors": "ngrams"}, "ngrams": {"buckets": 4096}},
    )  # fmt: skip
    assert words.strategy.recipe()["vectors"]["method"] == "ngrams"
    assert words.strategy.recipe()["vectors"]["parameters"]["buckets"] == 4096
    assert last.strategy.recipe() != words.strategy.recipe()
    rows = tamis.represent(pool, "ngrams", parameters={"buckets": 4096}, store=tmp_path / "store")
    from tamis.study.signals import row_vectors

    weighted = row_vectors(rows).take(words.positions)
    similar = (weighted @ weighted.T).toarray() - np.eye(10)
    assert similar.max() <= 0.9 + 1e-6


def test_superfiltering_d_covers_the_best_fifth(pool: Pool, tmp_path: Path) -> None:
    parameters = {"coverage": {"vectors": "ngrams"}}
    subset = chosen(pool, tmp_path, "superfiltering-d", parameters=parameters)
    scores = tamis.score(
        pool, "ifd", parameters={"ratio": "perplexity", "turns": "first"}, model=str(NANO), dtype="float32",
        store=tmp_path / "store",
    )  # fmt: skip
    kept = np.flatnonzero(scores.values <= 1)
    best = kept[np.argsort(-scores.values[kept], kind="stable")][: len(kept) // 5]
    assert set(subset.positions) <= set(best.tolist())
    notes = subset.facts["notes"]
    assert notes["shortlist_rows"] == len(best)
    assert notes["above_most"] == int((scores.values > 1).sum())


def test_superfiltering_runs_the_model_that_it_names(pool: Pool, tmp_path: Path) -> None:
    own = chosen(pool, tmp_path, "superfiltering", model=None, parameters={"ifd": {"model": str(NANO)}})
    assert own.positions.tolist() == chosen(pool, tmp_path, "superfiltering").positions.tolist()
    with pytest.raises(RequestError, match="needs --model"):
        chosen(pool, tmp_path, "superfiltering", model=None)


def test_dsir_draws_from_the_target(lab: Path, pool: Pool, tmp_path: Path) -> None:
    query = query_of(lab)
    skill = Path(query["t"]).stem
    parameters = {"importance": {"pseudo_count": 1.0, "min_words": 0}}
    first = chosen(pool, tmp_path, "dsir", 10, query=query, model=None, parameters=parameters)
    again = chosen(pool, tmp_path, "dsir", 6, query=query, model=None, parameters=parameters)
    other = chosen(pool, tmp_path, "dsir", 10, query=query, model=None, parameters=parameters, seed=1)
    assert again.positions.tolist() == first.positions[:6].tolist()
    assert other.positions.tolist() != first.positions.tolist()
    recipe = first.strategy.recipe()
    assert recipe["signal"]["parameters"]["pseudo_count"] == 1.0 and skill
    with pytest.raises(RequestError, match="give --query NAME=PATH"):
        chosen(pool, tmp_path, "dsir", model=None)


def test_another_target_is_another_request(lab: Path, pool: Pool, tmp_path: Path) -> None:
    files = sorted((lab / "queries").glob("*.jsonl"))
    names = []
    for number, file in enumerate(files[:2]):
        out = tmp_path / str(number)
        subset = chosen(pool, tmp_path, "dsir", query={"t": str(file)}, model=None, out=out)
        names.append((json.loads((out / "manifest.json").read_text())["recipe"]["queries"], subset.positions))
    assert names[0][0] != names[1][0] and names[0][1].tolist() != names[1][1].tolist()


def test_the_plan_names_what_select_makes(lab: Path, tmp_path: Path) -> None:
    store, names = tmp_path / "store", ["deita", "dsir"]
    settings = Settings(store=store, model=str(NANO), dtype="float32")
    request = Asked(
        resolve(names, DEITA), [parse_budget("8")], pool=[str(lab / "pool.jsonl")], queries=query_of(lab),
        settings=settings, calibrate=False,
    )  # fmt: skip
    named = {stage.digest for stage in plan(request).stages if stage.digest}
    tamis.select(
        tamis.read_pool([lab / "pool.jsonl"], store=store), query=query_of(lab), strategy=names, budget=8,
        model=str(NANO), dtype="float32", store=store, parameters=DEITA, report=False, allow_underflow=True,
    )  # fmt: skip
    made = {path.parent.name for path in store.glob("*/*/meta.json") if path.parts[-3] != "subset"}
    assert made == named
    assert all(s.state == "complete" for s in plan(request).stages if s.digest)


def test_a_row_with_a_score_and_no_vector_has_its_status_and_trace_says_so(tmp_path: Path) -> None:
    texts = [("Name a colour.", "Red."), ("?!", "..."), ("Count to three.", "One two three.")]
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in texts
    ]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pool = tamis.read_pool([path], store=tmp_path / "store")
    parameters = {**DEITA, "diversity-threshold": {"vectors": "ngrams"}}
    subset = chosen(pool, tmp_path, "deita", 2, parameters=parameters)
    assert sorted(subset.positions.tolist()) == [0, 2]
    assert subset.facts["status"] == {"ok": 2, "no_target_tokens": 1}
    (place,) = trace(str(pool.ids[1]), tmp_path / "store")["rows"]
    (facts,) = place["subsets"]
    assert facts["reason"] == "not usable" and facts["detail"] == "no ngrams vector: no_target_tokens"
    assert {signal["method"] for signal in place["signals"]} >= {"digits", "ngrams"}


def test_the_scorer_is_part_of_the_request_by_its_contents(pool: Pool, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(NANO, copy)
    for strategy, more in (("quality/top-k", {"prompt": "plain"}), ("superfiltering", {})):
        recipes = []
        for model in (str(NANO), str(copy)):
            out = tmp_path / strategy[:5] / Path(model).name
            name = "quality" if more else "ifd"
            parameters = {name: {"model": model, **more}}
            chosen(pool, tmp_path, strategy, model=None, parameters=parameters, out=out)
            recipes.append(json.loads((out / "manifest.json").read_text())["recipe"])
        assert recipes[0] == recipes[1]
        assert str(tmp_path) not in json.dumps(recipes)


def test_a_stored_subset_does_not_depend_on_the_strategies_beside_it(pool: Pool, tmp_path: Path) -> None:
    alone = [chosen(pool, tmp_path, "ifd", 5)]
    beside = chosen(pool, tmp_path, ["ifd", "superfiltering", "random"], 5)
    kept = [s for s in stored_subsets(tmp_path / "store") if s.strategy == "ifd"]
    assert len(kept) == 1 and alone[0].positions.tolist() == beside[0].positions.tolist()


def test_settings_and_faults() -> None:
    settings = parse_settings(["coverage.vectors=rds", "coverage.shortlist=0.5", "embed.encoder=x"])
    with pytest.raises(RequestError, match="no chosen strategy uses 'embed'"):
        resolve(["superfiltering-d"], settings)
    (strategy,) = resolve(["superfiltering-d"], parse_settings(["embed.encoder=x"]))
    assert strategy.vectors == "embed" and strategy.vector_parameters == {"encoder": "x"}
    assert [method.name for method in strategy.methods()] == ["ifd", "embed", "coverage"]
    with pytest.raises(RequestError, match="unknown representation 'rdz'"):
        resolve(["superfiltering-d"], parse_settings(["coverage.vectors=rdz"]))
    with pytest.raises(RequestError, match="'coverage' cannot use the score 'length'; these can: "):
        resolve(["length/coverage"])
    deita, plain = resolve(["deita", "quality/top-k"])
    assert deita.needs_model and not plain.needs_model and not deita.needs_query


def test_the_plan_counts_the_scorers_own_model(lab: Path, tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "store", dtype="float32")
    quality = {"quality": {"model": str(NANO), "prompt": "plain"}}
    small = {"ifd": {"model": str(NANO)}}
    for names, parameters in ((["quality/top-k"], quality), (["superfiltering"], small)):
        request = Asked(
            resolve(names, parameters), [parse_budget("8")], pool=[str(lab / "pool.jsonl")],
            settings=settings, calibrate=False,
        )  # fmt: skip
        stage = [stage for stage in plan(request).stages if stage.kind == "scores"][-1]
        assert stage.flops > 0 and stage.digest is not None and stage.state == "missing"
        if names[0] == "superfiltering":
            continue
        pool = tamis.read_pool([lab / "pool.jsonl"], store=tmp_path / "store")
        scores = tamis.score(
            pool, "quality", parameters=quality["quality"], dtype="float32", store=tmp_path / "store"
        )
        assert stage.tokens == scores.tokens.sum() and stage.digest == scores.digest


def test_a_plan_of_scores_is_what_the_ledger_then_has(lab: Path, tmp_path: Path) -> None:
    """Tokens and operations: both passes of IFD, one of them shared with perplexity; quality's prompts."""
    names, store = ["ifd", "ifd-ppl", "ppl-top", "quality/top-k"], tmp_path / "store"
    parameters = {"quality": {"model": str(NANO), "prompt": "plain"}}
    settings = Settings(store=store, model=str(NANO), dtype="float32")
    request = Asked(
        resolve(names, parameters), [parse_budget("8")], pool=[str(lab / "pool.jsonl")], settings=settings,
        calibrate=False,
    )  # fmt: skip
    stages = {stage.digest: stage for stage in plan(request).stages if stage.kind == "scores"}
    assert len(stages) == 4  # losses of first exchanges, of whole rows, of responses alone; digits
    pool = tamis.read_pool([lab / "pool.jsonl"], store=store)
    tamis.select(
        pool, strategy=names, budget=8, model=str(NANO), dtype="float32", store=store, parameters=parameters,
        out=tmp_path / "out", report=False,
    )  # fmt: skip
    spent = totals(store, set(map(str, stages)))
    for digest, stage in stages.items():
        assert stage.tokens == spent[str(digest)]["tokens"], stage.name
        assert stage.flops == pytest.approx(spent[str(digest)]["flops"], rel=0.05), stage.name
        assert stage.flops > 0, stage.name
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {str(digest) for digest in stages} <= manifest["ledger"].keys()


def test_a_plan_for_a_model_of_which_only_the_config_is_here_has_both_passes(tmp_path: Path) -> None:
    request = Asked(
        resolve(["ifd"], {}), [parse_budget("8")], rows=1000, tokens_per_row=100.0, calibrate=False,
        settings=Settings(store=tmp_path, model=str(NANO / "config.json"), dtype="float32"), tflops=1.0,
    )  # fmt: skip
    first, second = [stage for stage in plan(request).stages if stage.kind == "scores"]
    assert first.name.endswith("(turns: first)") and second.name == "score the pool by ifd"
    # 2 for each parameter of body and head, and attention to half of 100 tokens.
    layers, heads_times_size = 6, 192
    each = 2 * 2_435_520 + 2 * 192 * 1024 + 4 * layers * heads_times_size * 50.5
    assert first.flops == second.flops == pytest.approx(1e5 * each)
    assert "at most" in second.how["tokens"]


def test_trace_shows_the_score_and_not_what_it_is_derived_from(pool: Pool, tmp_path: Path) -> None:
    parameters = {"quality": {"model": str(NANO), "prompt": "plain", "turns": "mean"}}
    for strategy, name, given in (
        ("ifd", "ifd", {}),
        ("quality/top-k", "quality", parameters["quality"]),
    ):
        chosen(pool, tmp_path, strategy, 5, parameters=parameters if name == "quality" else None)
        scores = tamis.score(
            pool, name, model=str(NANO), dtype="float32", parameters=given, store=tmp_path / "store"
        )
        left = int(np.nanargmin(scores.values))
        (place,) = trace(str(pool.ids[left]), tmp_path / "store")["rows"]
        (facts,) = [each for each in place["subsets"] if each["strategy"] == strategy]
        assert facts["score"] == pytest.approx(scores.values[left])
        assert all("value" not in signal for signal in place["signals"])


def test_warnings_of_a_score_reach_who_reads_it(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamis.scores.ifd.MUCH_ABOVE_ONE", 0.0)
    scores = tamis.score(pool, "ifd", model=str(NANO), dtype="float32", store=tmp_path / "store")
    assert (scores.values > 1).any() and "have IFD above 1" in scores.warnings[0]
