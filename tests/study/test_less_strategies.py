"""less as a strategy: warm-up, gradients, choice; what is shared, resumed and refused."""

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
from tamis.representations import _gradient_encoder as encoding
from tamis.study.strategies import parse_settings, resolve

pytest.importorskip("torch")
pytest.importorskip("peft")

RECIPE = {"recipe": "less-warmup", "epochs": 2, "rank": 2, "alpha": 8, "batch_rows": 4, "learning_rate": 1e-3}
SMALL = {"less": {"share": 0.2, "recipe": RECIPE, "dimensions": 256, "dtype": "float32"}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder, rows=60, seed=1)
    return folder


def target(lab: Path) -> dict[str, Path]:
    """Four rows of a target."""
    path = lab / "few.jsonl"
    lines = sorted((lab / "queries").glob("*.jsonl"))[0].read_text().splitlines()[:4]
    path.write_text("".join(f"{line}\n" for line in lines))
    return {"task": path}


def chosen(lab: Path, store: Path, **given: Any) -> Any:
    pool = tamis.read_pool([lab / "pool.jsonl"], store=store)
    options = {"strategy": "less/round-robin", "budget": 10, "parameters": SMALL, "model": str(NANO),
               "device": "cpu", "query": target(lab)}  # fmt: skip
    return tamis.select(pool, **{**options, "store": store, "report": False, **given})


@pytest.fixture(scope="module")
def made(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run, and its folder with store/ and out/."""
    folder = tmp_path_factory.mktemp("made")
    return folder, chosen(lab, folder / "store", out=folder / "out")


def kinds(store: Path) -> list[str]:
    return sorted(kind for kind, _, _ in Store(store).things())


def test_the_adapter_is_trained_on_a_share_and_gradients_are_taken_at_each_epoch(
    lab: Path, made: tuple[Path, Any]
) -> None:
    folder, subset = made
    pre = subset.facts["pre"]
    rows = round(0.2 * len(subset.pool))
    assert (pre["strategy"], pre["chosen_rows"], pre["asked_rows"]) == ("random", rows, rows)
    assert pre["training"]["rows"] == rows and pre["training"]["steps"] == 2 * -(-rows // 4)
    model = folder / "store" / "model" / pre["model"]
    epochs = sorted(path.name for path in model.glob("epoch-*"))
    assert epochs == ["epoch-1", "epoch-2"]
    # By hand: features at the checkpoints that are there, weighted by their rates.
    common = {"store": folder / "store", "template": "auto", "device": "cpu", "model": str(model)}
    common["parameters"] = {"dimensions": 256, "dtype": "float32"}
    pool = tamis.read_pool([lab / "pool.jsonl"], store=folder / "store")
    query = tamis.read_pool([lab / "few.jsonl"], store=folder / "store", merge_duplicates=False)
    rates = [read_json(model / epoch / "epoch.json")["learning_rate_mean"] for epoch in epochs]
    similarity = np.zeros((4, len(pool)))
    for epoch, rate in zip(epochs, rates, strict=True):
        sides = [tamis.represent(rows, "less", role=role, **{**common, "model": str(model / epoch)}).array()
                 for rows, role in ((query, "query"), (pool, "pool"))]  # fmt: skip
        similarity += rate / sum(rates) * (sides[0] @ sides[1].T)
    wanted: list[int] = []
    for turn in range(10):  # the one task takes turns between its rows
        left = similarity[turn % 4].copy()
        left[wanted] = -np.inf
        wanted.append(int(left.argmax()))
    assert sorted(wanted) == sorted(subset.positions)


def test_the_manifest_has_the_warm_up_and_every_checkpoint_in_its_bill(made: tuple[Path, Any]) -> None:
    folder, subset = made
    manifest = read_json(folder / "out" / "manifest.json")
    recipe = manifest["recipe"]["strategies"][0]
    assert recipe["pre"]["share"] == 0.2 and recipe["pre"]["recipe"]["rank"] == 2
    assert recipe["signal"]["parameters"]["dimensions"] == 256
    assert "checkpoints" not in recipe["signal"]["parameters"]
    things = {digest: kind for kind, digest, _ in Store(folder / "store").things()}
    paid = [things.get(digest, "subset") for digest in manifest["ledger"]]
    assert paid.count("representation") == 4  # two checkpoints, pool and queries
    assert {"model", "rendering", "pool"} <= set(paid)
    for digest, bill in manifest["ledger"].items():
        if things.get(digest) == "representation":
            assert bill["flops"] > 4 * 2_000_000 * bill["tokens"] > 0
            assert bill["rows"] in (4, len(subset.pool))


def test_a_second_run_gives_the_same_bytes_and_another_store_too(
    lab: Path, made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, subset = made
    names = ("selection.parquet", "subset.jsonl")
    first = [(folder / "out" / subset.relative / name).read_bytes() for name in names]
    chosen(lab, tmp_path / "store", out=tmp_path / "out")
    assert [(tmp_path / "out" / subset.relative / name).read_bytes() for name in names] == first
    before = kinds(folder / "store")
    monkeypatch.setattr(training._Run, "train", lambda *given: pytest.fail("trained again"))
    monkeypatch.setattr(encoding.GradientEncoder, "encode", lambda *given: pytest.fail("encoded again"))
    again = chosen(lab, folder / "store", out=tmp_path / "again")
    assert [(tmp_path / "again" / subset.relative / name).read_bytes() for name in names] == first
    assert kinds(folder / "store") == before and again.facts["pre"] == subset.facts["pre"]


def test_strategies_share_the_warm_up_and_what_is_stored_of_the_rows(
    lab: Path, made: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = made
    monkeypatch.setattr(training._Run, "train", lambda *given: pytest.fail("trained again"))
    before = kinds(folder / "store").count("representation")
    greedy = chosen(lab, folder / "store", strategy="less/doubly-greedy")
    assert greedy.facts["pre"]["model"] == first.facts["pre"]["model"]
    assert kinds(folder / "store").count("representation") == before
    parameters = {"loss-gradients": SMALL["less"]}
    plain = chosen(lab, folder / "store", strategy="loss-gradients/round-robin", parameters=parameters)
    assert plain.facts["pre"]["model"] == first.facts["pre"]["model"]
    assert kinds(folder / "store").count("representation") == before + 2  # the pool's; the queries' are there


def test_checkpoints_of_one_s_own_skip_the_warm_up_and_share_what_is_stored(
    lab: Path, made: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = made
    model = folder / "store" / "model" / first.facts["pre"]["model"]
    monkeypatch.setattr(training._Run, "train", lambda *given: pytest.fail("trained"))
    monkeypatch.setattr(encoding.GradientEncoder, "encode", lambda *given: pytest.fail("encoded again"))
    own = {key: SMALL["less"][key] for key in ("dimensions", "dtype")}
    ways: list[dict[str, Any]] = [
        {"parameters": {"less": {**own, "checkpoints": str(model)}}},
        {"parameters": {"less": {**own, "pre": False}}, "model": str(model)},
    ]
    for way in ways:
        subset = chosen(lab, folder / "store", **way)
        assert sorted(subset.positions) == sorted(first.positions) and "pre" not in subset.facts


def test_several_workers_make_the_same_bytes(
    lab: Path, made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamis.core.store._SHARD_ROWS", (8, 65536))
    folder, first = made
    model = str(folder / "store" / "model" / first.facts["pre"]["model"] / "epoch-2")
    lines = (lab / "pool.jsonl").read_text().splitlines()[:20]
    (tmp_path / "pool.jsonl").write_text("".join(f"{line}\n" for line in lines))
    found = []
    for name, shares in (("one", [None]), ("two", [(1, 2), (2, 2)])):
        pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / name)
        for share in shares:
            made_by = tamis.represent(
                pool, "less", model=model, device="cpu", store=tmp_path / name, share=share,
                parameters={"dimensions": 64},
            )  # fmt: skip
            assert (made_by.state == "complete") == (share != (1, 2))
        assert made_by.thing.shards == 3
        found.append([made_by.digests, made_by.array().tobytes(), made_by.codes.tobytes()])
    assert found[0] == found[1]


# --- settings --------------------------------------------------------------------------------------------


def test_every_part_can_be_set_and_is_part_of_the_recipe() -> None:
    (usual,) = resolve(["less/round-robin"])
    assert usual.pre is not None
    assert (usual.pre.strategy.name, usual.pre.share, usual.pre.rows) == ("random", 0.05, 10_000)
    assert (usual.pre.recipe.method, usual.pre.recipe.epochs, usual.pre.recipe.rank) == ("lora", 4, 128)
    assert [usual.pre.rows_of(n) for n in (1, 100, 10**6)] == [1, 5, 10_000]
    (rows,) = resolve(["less/round-robin"], parse_settings(["less.rows=50"]))
    assert rows.pre is not None and rows.pre.share is None and rows.pre.rows_of(100) == 50
    given = (
        [], ["less.rows=50"], ["less.share=0.1"], ["less.recipe=lora"], ["less.pre=false"],
        ["less.strategy=longest"], ["less.dimensions=9"], ["less.aggregate=cosines"], ["less.shortlist=0.1"],
    )  # fmt: skip
    recipes = {
        json.dumps(resolve(["less/round-robin"], parse_settings(one))[0].recipe(), sort_keys=True)
        for one in given
    }
    assert len(recipes) == len(given)
    (fast,) = resolve(["less-fast/round-robin"])
    assert fast.pre is not None and fast.pre.described() == usual.pre.described()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["less.share=0"], "less.share=0: expected a number above 0"),
        (["less.share=5"], "less.share=5: expected a number above 0, at most 1"),
        (["less.rows=0"], "less.rows=0: expected a whole number"),
        (["less.pre=maybe"], "less.pre=.maybe.: expected true or false"),
        (["less.recipe=les-warmup"], "unknown recipe .les-warmup."),
        (["less.strategy=rds/round-robin"], "expected one without a target"),
        (["less.dimension=9"], "dimension"),
        (["less-fast.rows=9"], "no chosen strategy uses .less-fast."),
    ],
)
def test_refused(given: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        resolve(["less/round-robin"], parse_settings(given))


def test_faults_of_the_run_are_found_before_any_training(
    lab: Path, made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = made
    model = str(folder / "store" / "model" / first.facts["pre"]["model"])
    monkeypatch.setattr(training._Run, "train", lambda *given: pytest.fail("trained"))
    less = SMALL["less"]
    own = {key: less[key] for key in ("dimensions", "dtype")}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": None}, "needs --model"),
        ({"model": model}, "is an adapter: merge it into its base first"),
        ({"query": {}}, "query"),
        ({"parameters": {"less": {**own, "pre": False}}}, "is a whole model: give the checkpoints"),
        ({"parameters": {"less": {**own, "checkpoints": model}}, "template": "tulu"}, "another template"),
        ({"parameters": {"less": {**own, "checkpoints": str(tmp_path / "no")}}}, "no such folder"),
    ]
    for way, words in cases:
        with pytest.raises(RequestError, match=words):
            chosen(lab, tmp_path / "store", **way)
    assert "representation" not in kinds(tmp_path / "store")
