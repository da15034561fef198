"""Imports end to end: selected by what was imported, by files and by name, and the same bytes either way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError, RunError
from tamis.representations._context import Context
from tamis.study.importing import import_scores, import_vectors
from tests.cli.test_cli import tamis as command
from tests.representations.test_imported import write_index

TEXTS = [f"question {i}" for i in range(8)]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    rows = [{"prompt": text, "completion": "yes"} for text in TEXTS]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "query.jsonl").write_text("\n".join(map(json.dumps, rows[:2])) + "\n")
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / "store")
    angles = np.linspace(0, np.pi / 2, 8)
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors[::-1])
    (tmp_path / "ids.txt").write_text("\n".join(pool.ids[::-1]))
    np.save(tmp_path / "queries.npy", np.array([[0.0, 3.0], [1.0, 0.1]], np.float32))
    return tmp_path


def pool_of(work: Path) -> Any:
    return tamis.read_pool([work / "pool.jsonl"], store=work / "store")


def parameters(work: Path) -> dict[str, Any]:
    return {
        "file": str(work / "vectors.npy"),
        "ids": str(work / "ids.txt"),
        "query": str(work / "queries.npy"),
        "by_position": True,
    }


def select(work: Path, strategy: str, budget: int = 3, **options: Any) -> Any:
    options = {"query": {"t": work / "query.jsonl"}, **options}
    return tamis.select(pool_of(work), strategy=strategy, budget=budget, store=work / "store", **options)


def test_vectors_by_files_and_by_name_choose_the_same(work: Path) -> None:
    direct = select(work, "import/round-robin", parameters={"import": parameters(work)})
    assert direct.positions.tolist() == [7, 0, 6]  # nearest to each query in turn
    query = tamis.read_pool([work / "query.jsonl"], merge_duplicates=False, store=work / "store")
    found = import_vectors(pool_of(work), {"t": query}, parameters(work), "mine", work / "store")
    assert found["pool"]["matched"]["matched"] == 8 and found["query t"]["status"] == {"ok": 2}
    for name in ("vectors.npy", "ids.txt", "queries.npy"):
        (work / name).unlink()
    kept = select(work, "import/round-robin", parameters={"import": {"name": "mine"}}, out=work / "out")
    assert kept.positions.tolist() == direct.positions.tolist()
    np.testing.assert_array_equal(kept.score, direct.score)
    (work / "more.jsonl").write_text(json.dumps({"prompt": "new", "completion": "row"}))
    with pytest.raises(RequestError, match="not made for these rows"):
        select(
            work, "import/top-k", parameters={"import": {"name": "mine"}}, query={"t": work / "more.jsonl"}
        )


def test_contents_and_not_paths_are_in_the_manifest(work: Path) -> None:
    def recipe(folder: Path, out: str) -> Any:
        select(work, "import/top-k", parameters={"import": parameters(folder)}, out=work / out)
        manifest = json.loads((work / out / "manifest.json").read_text())
        assert manifest["execution"]["signals"]["import/top-k"]["file"] == str(folder / "vectors.npy")
        return manifest["recipe"]

    first = recipe(work, "one")
    assert str(work) not in json.dumps(first) and first["contents"]["import/top-k"]["pool"]["numbers"]
    moved = work / "moved"
    moved.mkdir()
    for name in ("vectors.npy", "ids.txt", "queries.npy"):
        (moved / name).write_bytes((work / name).read_bytes())
    assert recipe(moved, "two") == first
    np.save(moved / "queries.npy", np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    assert recipe(moved, "three") != first


def test_a_gradient_index_selects(work: Path) -> None:
    vectors = np.load(work / "vectors.npy")
    index = write_index(work / "index", vectors, "float16")
    asked = write_index(work / "asked", np.load(work / "queries.npy"), "float16")
    given = {**parameters(work), "file": str(index), "query": str(asked)}
    assert select(work, "import/round-robin", parameters={"import": given}).positions.tolist() == [7, 0, 6]


def test_scores_select_and_holes_stop_the_run(work: Path) -> None:
    pool = pool_of(work)
    lines = [f"{text},{value}" for text, value in zip(pool.ids, [3, 9, 1, "", 5, 7, 2, 8], strict=True)]
    (work / "scores.csv").write_text("id,quality\n" + "\n".join(lines))
    given = {"file": str(work / "scores.csv"), "column": "quality"}
    with pytest.raises(RunError, match="1 of 8 rows failed"):
        select(work, "import-score/top-k", parameters={"import-score": given}, query={})
    options: dict[str, Any] = {"query": {}, "max_unscored": 0.2}
    subset = select(work, "import-score/top-k", parameters={"import-score": given}, **options)
    assert subset.positions.tolist() == [1, 7, 5]
    lowest = {**given, "better": "lower"}
    assert import_scores(pool, lowest, "low", work / "store")["pool"]["status"] == {"ok": 7, "failed": 1}
    subset = select(work, "import-score/top-k", parameters={"import-score": {"name": "low"}}, **options)
    assert subset.positions.tolist() == [2, 6, 0]


def test_rows_by_their_text_are_the_rows_by_their_place(work: Path) -> None:
    pool = pool_of(work)
    encoder = tamis.REPRESENTATIONS["import"].run(
        tamis.REPRESENTATIONS["import"].configure(parameters(work)), Context()
    )
    encoder.match(pool.ids)
    some = encoder.encode([pool.row(i).messages for i in (5, 2)], lambda tokens: None)
    np.testing.assert_array_equal(some.arrays["vectors"], encoder.rows(0, 8).arrays["vectors"][[5, 2]])
    (work / "scores.csv").write_text("id,q\n" + "\n".join(f"{text},{i}" for i, text in enumerate(pool.ids)))
    method = tamis.SCORES["import-score"]
    scorer = method.run(method.configure({"file": str(work / "scores.csv"), "column": "q"}), Context())
    assert scorer.score([pool.row(3).messages], lambda tokens: None).values.tolist() == [3]


def test_the_verb(work: Path) -> None:
    common = ["--pool", work / "pool.jsonl", "--store", work / "store", "--name", "mine"]
    vectors = ["--vectors", work / "vectors.npy", "--ids", work / "ids.txt"]
    queries = [
        "--query",
        f"t={work / 'query.jsonl'}",
        "--query-vectors",
        work / "queries.npy",
        "--by-position",
    ]
    found = json.loads(command("import", *common, *vectors, *queries, "--json").stdout)
    assert found["pool"]["matched"]["matched"] == 8 and found["query t"]["rows"] == 2
    assert "--set import.name=mine" in command("import", *common, *vectors, *queries).stdout
    chosen = command(
        "select", "--pool", work / "pool.jsonl", "--query", f"t={work / 'query.jsonl'}", "--budget", "3",
        "--strategy", "import/round-robin", "--set", "import.name=mine", "--store", work / "store",
        "--out", work / "out", "--json",
    )  # fmt: skip
    assert json.loads(chosen.stdout)["subsets"][0]["rows"] == 3
    for wrong, message in (
        (common, "give one of --vectors, --bergson, --scores; got none"),
        ([*common, *vectors, "--column", "x"], "--column: not for --vectors"),
        ([*common, "--scores", work / "scores.csv"], "--scores needs --column"),
        ([*common, "--bergson", work / "nowhere"], "no such folder"),
        ([*common, *vectors, "--query", f"t={work / 'query.jsonl'}"], "give --query-vectors"),
    ):
        assert message in command("import", *wrong, code=2).stderr
