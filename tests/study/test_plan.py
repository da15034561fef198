"""Plans: the published table, names and states of stored things, models by their config, samples."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.lab import NANO, write_lab
from tamis.study import _plan_pool
from tamis.study.budget import parse_budget
from tamis.study.plan import Asked, plan
from tamis.study.signals import Settings
from tamis.study.strategies import resolve

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "vocab_size": 32000,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder, rows=600, seed=4)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama-7b")
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    return folder


def asked(lab: Path, strategies: list[str], store: Path, model: Any = None, **more: Any) -> Asked:
    path = sorted((lab / "queries").glob("*.jsonl"))[0]
    settings = Settings(store=store, model=None if model is None else str(model), dtype="float32")
    budgets = [parse_budget(text) for text in ("20", "50")]
    given: dict[str, Any] = {"pool": [str(lab / "pool.jsonl")], "queries": {"t": str(path)}}
    return Asked(resolve(strategies), budgets, **{**given, "settings": settings, "calibrate": False, **more})


def stages(made: Any) -> dict[str, Any]:
    return {stage.name: stage for stage in made.stages}


@pytest.mark.parametrize(("rows", "printed"), [(200_000, 5.73e18), (5_800_000, 1.66e20)])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_7b_config_agrees_with_the_published_table(
    config: Path, tmp_path: Path, rows: int, printed: float, given: str
) -> None:
    model = config if given == "folder" else config / "config.json"
    settings = Settings(store=tmp_path / "store", model=str(model), device="cpu")
    request = Asked(
        resolve(["rds/round-robin"]), [parse_budget("10000")], rows=rows, tokens_per_row=2048,
        settings=settings, tflops=989.0,
    )  # fmt: skip
    made = plan(request)
    parameters = made.facts["model"]["parameters"]
    assert parameters == 6_738_415_616  # of Llama-2-7B
    stage = stages(made)["encode the pool by rds"]
    assert stage.published_flops == 2 * parameters * 2048 * rows
    assert stage.published_flops * 7e9 / parameters == pytest.approx(printed, rel=0.005)
    # Our own count leaves out the tables and adds attention: here they are of the same size.
    assert stage.flops == pytest.approx(stage.published_flops, rel=0.05)
    # Vectors in half precision: the storage table's 8 KiB a row.
    assert stage.disk_bytes == pytest.approx(rows * 8192, rel=0.01)
    assert stage.seconds == pytest.approx(stage.flops / (989e12 * 0.5), rel=0.01)
    assert not (tmp_path / "store").exists()


def test_names_and_states_are_those_that_select_makes(lab: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    names = ["rds/round-robin", "ngrams/top-k", "longest"]
    request = asked(lab, names, store, NANO)
    before = plan(request)
    assert not store.exists()  # a plan writes nothing there
    named = {stage.digest: stage for stage in before.stages if stage.digest}
    assert {stage.state for stage in named.values()} == {"missing"}
    tamis.select(
        tamis.read_pool([lab / "pool.jsonl"], store=store), query=dict(request.queries), strategy=names,
        budget=[20, 50], model=str(NANO), dtype="float32", store=store,
    )  # fmt: skip
    made = {path.parent.name for path in store.glob("*/*/meta.json") if path.parts[-3] != "subset"}
    assert made == set(named)
    after = plan(request)
    assert {stage.digest for stage in after.stages if stage.state == "complete"} == made
    assert all(not stage.seconds and not stage.disk_bytes for stage in after.stages if stage.digest)
    sizes = {
        path.name: sum(file.stat().st_size for file in path.iterdir())
        for path in store.glob("*/*") if path.name in named
    }  # fmt: skip
    for digest, stage in named.items():
        if stage.kind != "representation" or "ngrams" not in stage.name:  # those are a guess without a trial
            assert stage.disk_bytes == pytest.approx(sizes[digest], rel=0.1, abs=1500), stage.name


def test_a_partial_thing_counts_what_is_left(lab: Path, tmp_path: Path) -> None:
    pool = tamis.read_pool([lab / "pool.jsonl"], store=tmp_path)
    tamis.represent(pool, "ngrams", store=tmp_path, share=(1, 2))
    stage = stages(plan(asked(lab, ["ngrams/top-k"], tmp_path)))["encode the pool by ngrams"]
    assert stage.state == "partial" and (stage.shards_done, stage.shards) == (1, 2)
    assert stage.rows == len(pool) - 512


def test_a_trial_measures_and_says_so(lab: Path, tmp_path: Path) -> None:
    request = asked(lab, ["ngrams/round-robin"], tmp_path / "store", calibrate=True)
    stage = stages(plan(request))["encode the pool by ngrams"]
    assert stage.how["seconds"].startswith("trial: ") and stage.seconds > 0
    pool = tamis.read_pool([lab / "pool.jsonl"], store=tmp_path / "store")
    made = tamis.represent(pool, "ngrams", store=tmp_path / "store").thing
    assert stage.tokens == pytest.approx(made.summary["tokens"], rel=0.1)
    size = sum(file.stat().st_size for file in made.folder.iterdir())
    assert stage.disk_bytes == pytest.approx(size, rel=0.1)


def test_a_model_without_weights_or_tokenizer(lab: Path, tmp_path: Path) -> None:
    folder = tmp_path / "config-only"
    folder.mkdir()
    shutil.copy(NANO / "config.json", folder)
    whole = stages(plan(asked(lab, ["rds/top-k"], tmp_path / "store", NANO)))
    bare = plan(asked(lab, ["rds/top-k"], tmp_path / "store", folder))
    assert not bare.facts["model"]["weights"] and not bare.facts["model"]["tokenizer"]
    stage = stages(bare)["encode the pool by rds"]
    assert "characters / 4" in stage.how["tokens"] and stage.digest is None
    assert stage.disk_bytes == whole["encode the pool by rds"].disk_bytes
    assert any("weights are not here" in note for note in bare.notes)
    for path in NANO.glob("*token*"):
        shutil.copy(path, folder)
    for path in NANO.glob("*.jinja"):
        shutil.copy(path, folder)
    with_tokens = stages(plan(asked(lab, ["rds/top-k"], tmp_path / "store", folder)))[
        "encode the pool by rds"
    ]
    assert with_tokens.tokens == whole["encode the pool by rds"].tokens


def test_the_ledger_is_asked_first(lab: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    request = asked(lab, ["rds/top-k"], store, NANO)
    predicted = stages(plan(request))["encode the pool by rds"]
    pool = tamis.read_pool([lab / "pool.jsonl"], store=store)
    made = tamis.represent(pool, "rds", model=str(NANO), dtype="float32", store=store)
    assert made.digest == predicted.digest
    # The same work on other rows took 4 s for 8,000 tokens, after a first shard with the loading in it.
    lines = [
        {"kind": "representation", "digest": made.digest, "method": "rds", "shard": shard, "device": "cpu",
         "rows": 100, "tokens": 8000, "seconds": seconds, "peak_memory_bytes": 10**9}
        for shard, seconds in ((0, 7.0), (1, 4.0))
    ]  # fmt: skip
    (store / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    other = tmp_path / "other.jsonl"
    rows = (lab / "pool.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    other.write_text("\n".join(rows) + "\n", encoding="utf-8")
    stage = stages(plan(replace(request, pool=[str(other)])))["encode the pool by rds"]
    assert "ledger" in stage.how["seconds"] and stage.memory_bytes == 10**9
    # 3 s of loading go to the query, which is encoded first.
    assert stage.seconds == pytest.approx(stage.tokens * 4.0 / 8000)


def test_a_large_pool_is_sampled(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (lab / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "large.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for i in range(20):
            file.writelines(
                json.dumps({**json.loads(row), "source": str(i % 3)}) + f"{' ' * i}\n" for row in rows
            )
    monkeypatch.setattr(_plan_pool, "READ_BYTES", 1 << 10)
    monkeypatch.setattr(_plan_pool, "_SAMPLE_BYTES", 1 << 18)
    known = _plan_pool.known_pool([str(path)], tmp_path / "store", tmp_path / "scratch", query=True)
    pool = tamis.read_pool([path], store=tmp_path / "all", merge_duplicates=False)
    assert known.digest is None and len(known.pool or []) < len(pool)
    assert known.rows == pytest.approx(len(pool), rel=0.1)
    assert known.characters == pytest.approx(float(np.sum(pool.chars)), rel=0.1)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 5}, "give --pool, or --rows"),
        ({"pool": [], "rows": 5}, "belong together"),
        ({"pool": []}, "give --pool, or --rows"),
        ({"queries": {}}, "give --query NAME=PATH"),
        ({"budgets": []}, "at least one strategy"),
        ({"pool": [], "rows": 0, "tokens_per_row": 3.0}, "both must be above 0"),
    ],
)
def test_what_cannot_be_planned(lab: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan(replace(asked(lab, ["ngrams/top-k"], tmp_path), **change))


def test_densities_of_sparse_vectors_are_not_priced_by_their_buckets(lab: Path, tmp_path: Path) -> None:
    made = stages(plan(asked(lab, ["ngrams/knn-kde"], tmp_path / "store")))
    (choose,) = (stage for name, stage in made.items() if name.startswith("choose ngrams/knn-kde"))
    # At most 600 rows against each other at about a thousand dimensions, and the pass over the lists.
    assert 0 < choose.flops < 600**2 * 1024 + 2 * 600 * 100 * 1024
