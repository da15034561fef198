"""Select end to end without a model: files, prefixes, tasks, budgets, refusals, and the same bytes again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.core.errors import RequestError, RunError
from tamis.lab import NANO, write_lab
from tamis.study.manifest import OUTSIDE_IDENTITY


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder, rows=600, seed=3)
    return folder


@pytest.fixture(scope="module")
def pool(lab: Path) -> Any:
    return tamis.read_pool([lab / "pool.jsonl"], store=lab / "store")


def _queries(lab: Path, *skills: str) -> dict[str, Path]:
    files = sorted((lab / "queries").glob("*.jsonl"))
    return {
        path.stem: path
        for path in (files if not skills else [lab / "queries" / f"{s}.jsonl" for s in skills])
    }


def _first(lab: Path, count: int = 1) -> dict[str, Path]:
    return dict(list(_queries(lab).items())[:count])


def test_files_hold_what_the_design_says(lab: Path, pool: Any, tmp_path: Path) -> None:
    subset = tamis.select(
        pool,
        query=_first(lab, 2),
        strategy="ngrams/round-robin",
        budget=40,
        store=lab / "store",
        out=tmp_path,
    )
    folder = tmp_path / "ngrams-round-robin" / "40" / "seed0"
    assert subset.folder == folder
    table = pq.read_table(folder / "selection.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "rank": "int32", "id": "string", "row": "int64", "source": "string", "score": "float",
        "task": "string", "query": "int32", "tokens": "int32",
    }  # fmt: skip
    assert table["rank"].to_pylist() == list(range(40))
    rows = table["row"].to_pylist()
    assert len(set(rows)) == 40 and rows == subset.positions.tolist()
    assert table["id"].to_pylist() == [pool.row(row).id for row in rows]
    # Two tasks take turns, in the order given.
    assert table["task"].to_pylist() == list(_first(lab, 2)) * 20
    lines = (folder / "subset.jsonl").read_bytes().splitlines()
    originals = (lab / "pool.jsonl").read_bytes().splitlines()
    assert lines == [originals[pool.row(row).line - 1] for row in rows]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["complete"] and manifest["subsets"][0]["status"] == {"ok": len(pool)}
    assert manifest["subsets"][0]["rows"] == 40


def test_budgets_are_prefixes_and_shares_and_within(lab: Path, pool: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"query": _first(lab), "store": lab / "store"}
    for strategy in (
        "ngrams/round-robin",
        "ngrams/top-k",
        "ngrams/doubly-greedy",
        "random",
        "random-balanced",
    ):
        small, large = tamis.select(pool, strategy=strategy, budget=[17, 60], **given)
        assert large.positions[:17].tolist() == small.positions.tolist(), strategy
    share = tamis.select(pool, strategy="random", budget="10%", **given)
    assert len(share) == len(pool) // 10
    inside = tamis.select(pool, strategy="ngrams/top-k", budget=100, within="source", **given)
    chosen = np.bincount(pool.source_codes[inside.positions])
    expected = np.bincount(pool.source_codes) * 100 / len(pool)
    assert (np.abs(chosen - expected) < 1).all()


def test_the_length_matched_control_has_the_lengths_of_its_reference(lab: Path, pool: Any) -> None:
    reference, control, plain = tamis.select(
        pool,
        query=_first(lab),
        strategy=["ngrams/top-k", "random-length-matched", "random"],
        budget=60,
        store=lab / "store",
    )
    chars = np.asarray(pool.chars)
    means = {s.strategy.name: chars[s.positions].mean() for s in (reference, control, plain)}
    gap = abs(means["random-length-matched"] - means["ngrams/top-k"])
    assert gap < 0.1 * means["ngrams/top-k"]
    assert set(control.positions) != set(reference.positions)


def test_the_same_request_gives_the_same_bytes(lab: Path, pool: Any, tmp_path: Path) -> None:
    def run(out: Path, store: Path) -> dict[str, bytes]:
        rows = tamis.read_pool([lab / "pool.jsonl"], store=store)
        tamis.select(
            rows,
            query=_first(lab, 3),
            strategy=["ngrams/round-robin", "random"],
            budget=[10, 50],
            store=store,
            out=out,
        )
        found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
        manifest = json.loads(found.pop("manifest.json"))
        found["report.html"] = re.sub(
            rb"<!--bill-->.*?<!--/bill-->", b"", found["report.html"], flags=re.DOTALL
        )
        for key in OUTSIDE_IDENTITY:
            manifest.pop(key)
        return {**found, "manifest.json": json.dumps(manifest, sort_keys=True).encode()}

    first = run(tmp_path / "a", tmp_path / "store-a")
    assert run(tmp_path / "b", tmp_path / "store-b") == first  # another store, made anew
    assert run(tmp_path / "a", tmp_path / "store-a") == first  # again over the same folder
    assert len(first) == 29  # per subset two files and its views; queries, report with tables, manifest


def test_a_folder_of_another_selection_is_refused(lab: Path, pool: Any, tmp_path: Path) -> None:
    tamis.select(pool, strategy="random", budget=5, store=lab / "store", out=tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(RequestError, match="holds another selection"):
        tamis.select(pool, strategy="random", budget=5, seed=1, store=lab / "store", out=tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_damaged_manifest_is_named(lab: Path, pool: Any, tmp_path: Path) -> None:
    tamis.select(pool, strategy="random", budget=5, store=lab / "store", out=tmp_path)
    (tmp_path / "manifest.json").write_text('{"digest": ')
    with pytest.raises(RunError, match=r"manifest\.json: damaged.*remove"):
        tamis.select(pool, strategy="random", budget=5, store=lab / "store", out=tmp_path)


def test_a_template_file_is_known_by_what_it_says(lab: Path, pool: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")

    def recipe(path: Path) -> dict[str, Any]:
        out = tmp_path / path.parent.name / path.stem
        tamis.select(
            pool,
            strategy="random",
            budget=5,
            store=lab / "store",
            out=out,
            model=str(NANO),
            template=str(path),
        )
        found: dict[str, Any] = json.loads((out / "manifest.json").read_text())["recipe"]
        return found

    text = (NANO / "chat_template.jinja").read_text()
    for folder, content in (
        ("one", text),
        ("two", text),
        ("three", text.replace("<|", "[").replace("|>", "]")),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "chat.jinja").write_text(content)
    one, two, three = (recipe(tmp_path / name / "chat.jinja") for name in ("one", "two", "three"))
    assert one == two and one["model"] != three["model"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategy": "ngrams/top-k", "budget": 5}, "give --query NAME=PATH"),
        ({"strategy": "rds/top-k", "budget": 5, "query": True}, "rds/top-k needs --model"),
        ({"strategy": "longest", "budget": 5}, "no model was given: add --model"),
        ({"strategy": "random", "budget": "500tok"}, "a token budget counts rendered tokens"),
        ({"strategy": "random", "budget": 10**9}, "budget"),
        ({"strategy": "random", "budget": 5, "within": "skill"}, "expected 'source'"),
        ({"strategy": "random-length-matched", "budget": 5}, "name that one first"),
        ({"strategy": "random", "budget": "0.01%"}, "less than one"),
        ({"strategy": [], "budget": 5}, "at least one strategy"),
    ],
)
def test_what_cannot_work_is_refused(lab: Path, pool: Any, given: dict[str, Any], message: str) -> None:
    if given.get("query") is True:
        given = {**given, "query": _first(lab)}
    with pytest.raises(RequestError, match=message):
        tamis.select(pool, store=lab / "store", **given)


def test_underflow_is_an_error_or_said(lab: Path, pool: Any) -> None:
    with pytest.raises(RequestError):
        tamis.select(pool, strategy="random", budget=len(pool) + 1, store=lab / "store")
    found = tamis.select(
        pool, strategy="random", budget=len(pool) + 1, store=lab / "store", allow_underflow=True
    )
    assert len(found) == len(pool)


def test_a_query_row_without_words_stops_the_run(lab: Path, pool: Any, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    good = {"messages": [{"role": "user", "content": "add"}, {"role": "assistant", "content": "1"}]}
    blank = {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": " "}]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(blank) + "\n")
    with pytest.raises(RequestError, match=r"1 of 2 rows have no ngrams vector, first .*q.jsonl:2"):
        tamis.select(pool, query={"q": path}, strategy="ngrams/top-k", budget=5, store=tmp_path / "store")


def test_within_binds_the_length_matched_control_too(lab: Path, pool: Any) -> None:
    reference, control = tamis.select(
        pool,
        query=_first(lab),
        strategy=["ngrams/top-k", "random-length-matched"],
        budget=40,
        within="source",
        store=lab / "store",
    )
    sources = [
        np.bincount(pool.source_codes[s.positions], minlength=5).tolist() for s in (reference, control)
    ]
    assert sources[0] == sources[1]


def test_the_bill_holds_reading_encoding_and_choosing(lab: Path, pool: Any, tmp_path: Path) -> None:
    tamis.select(
        pool, query=_first(lab), strategy="ngrams/top-k", budget=7, store=lab / "store", out=tmp_path
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {pool.path.name, manifest["digest"], *manifest["subsets"][0]["signals"]} <= set(manifest["ledger"])
    assert all(entry["seconds"] > 0 for entry in manifest["ledger"].values())
