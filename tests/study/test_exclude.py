"""strict-random in a selection: what it excludes, and refusals where it cannot exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.lab import write_lab
from tests.cli.test_cli import tamis as command


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exclude-lab")
    write_lab(folder, rows=300, seed=4)
    return folder


@pytest.fixture(scope="module")
def given(lab: Path) -> dict[str, Any]:
    query = sorted((lab / "queries").glob("*.jsonl"))[0]
    return {"query": {"t": query}, "store": lab / "store"}


@pytest.fixture(scope="module")
def pool(lab: Path) -> Any:
    return tamis.read_pool([lab / "pool.jsonl"], store=lab / "store")


def test_it_draws_from_what_the_largest_subsets_leave_at_every_budget(
    pool: Any, given: dict[str, Any]
) -> None:
    made = tamis.select(
        pool,
        strategy=["strict-random", "ngrams/top-k", "random", "ngrams/round-robin"],
        budget=[10, 60],
        **given,
    )
    of = {(subset.strategy.name, len(subset)): subset for subset in made}
    assert [subset.strategy.name for subset in made][:2] == ["strict-random"] * 2
    union = set(of["ngrams/top-k", 60].positions) | set(of["ngrams/round-robin", 60].positions)
    whole = tamis.select(pool, strategy="random", budget=len(pool), **given).positions
    left = [row for row in whole if row not in union]
    for budget in (10, 60):
        found = of["strict-random", budget]
        assert found.positions.tolist() == left[:budget]
        assert found.facts["notes"]["excluded_rows"] == len(union)
    # random is a control, not a strategy: its rows may come up again.
    assert set(left[:60]) & set(of["random", 60].positions)


def test_the_overlap_rule_compares_subsets_of_the_same_budget(pool: Any, given: dict[str, Any]) -> None:
    rule = {"random-redrawn": {"max_overlap": 0.2}}
    made = tamis.select(
        pool, strategy=["random-redrawn", "ngrams/top-k", "longest"], budget=[10, 40], parameters={
            **rule, "length": {"unit": "chars"},
        }, **given,
    )  # fmt: skip
    of = {(subset.strategy.name, len(subset)): subset for subset in made}
    for budget in (10, 40):
        redrawn = of["random-redrawn", budget]
        for other in ("ngrams/top-k", "longest"):
            shared = np.intersect1d(redrawn.positions, of[other, budget].positions)
            assert len(shared) <= 0.2 * budget
    assert of["random-redrawn", 10].positions.tolist() == of["random-redrawn", 40].positions[:10].tolist()
    notes = of["random-redrawn", 40].facts["notes"]
    assert notes["draws"] >= 1 and notes["largest_overlap"] <= 0.2
    with pytest.raises(RequestError, match="random-redrawn is infeasible"):
        tamis.select(pool, strategy=["ngrams/top-k", "random-redrawn"], budget=200, parameters=rule, **given)
    with pytest.raises(RequestError, match="name one beside it"):
        tamis.select(pool, strategy=["random", "random-redrawn"], budget=5, store=given["store"])
    with pytest.raises(RequestError, match="takes no tokens and no groups"):
        tamis.select(pool, strategy=["ngrams/top-k", "random-redrawn"], budget=5, within="source", **given)


def test_a_cap_on_the_rows_of_a_source(pool: Any, given: dict[str, Any]) -> None:
    names, sizes = np.unique(pool.sources, return_counts=True)
    most = int(sizes.min())
    subset = tamis.select(
        pool, strategy="random", budget=most * len(names), parameters={"random": {"most_per_source": most}},
        **given,
    )  # fmt: skip
    assert (np.unique(pool.sources[subset.positions], return_counts=True)[1] == most).all()


def test_folders_are_excluded_by_what_they_hold(pool: Any, given: dict[str, Any], tmp_path: Path) -> None:
    first = tamis.select(pool, strategy="ngrams/top-k", budget=40, out=tmp_path / "a", **given)
    copy = tmp_path / "renamed"
    copy.mkdir()
    (copy / "selection.parquet").write_bytes((first.folder / "selection.parquet").read_bytes())
    recipes = []
    for number, folder in enumerate((first.folder, copy)):
        found = tamis.select(
            pool, strategy="strict-random", budget=50, exclude=[folder], out=tmp_path / f"s{number}", **given
        )
        assert not set(found.positions) & set(first.positions)
        recipes.append(json.loads((tmp_path / f"s{number}" / "manifest.json").read_text())["digest"])
    assert recipes[0] == recipes[1]
    other = tamis.select(pool, strategy="ngrams/top-k", budget=41, out=tmp_path / "b", **given)
    tamis.select(
        pool, strategy="strict-random", budget=50, exclude=[other.folder], out=tmp_path / "s2", **given
    )
    assert json.loads((tmp_path / "s2" / "manifest.json").read_text())["digest"] != recipes[0]


def test_where_it_cannot_exist(pool: Any, given: dict[str, Any], tmp_path: Path) -> None:
    select = lambda **more: tamis.select(pool, **given, **more)  # noqa: E731
    with pytest.raises(RequestError, match="strict-random draws from what other strategies leave"):
        select(strategy=["strict-random", "random"], budget=5)
    with pytest.raises(RequestError, match="--exclude is for strict-random"):
        select(strategy="random", budget=5, exclude=[tmp_path])
    with pytest.raises(RequestError, match=r"is not a subset: .*selection.parquet is missing"):
        select(strategy="strict-random", budget=5, exclude=[tmp_path])
    n = len(pool)
    message = (
        f"infeasible: of {n} rows .* {n} are usable, {n - 20} of them excluded, 20 left, and {n - 20} were"
    )
    with pytest.raises(RequestError, match=message):
        select(strategy=["ngrams/top-k", "strict-random"], budget=n - 20)
    _, few = select(strategy=["ngrams/top-k", "strict-random"], budget=n - 20, allow_underflow=True)
    assert len(few) == 20
    pq.write_table(pa.table({"id": ["0" * 32]}), tmp_path / "selection.parquet")
    with pytest.raises(RequestError, match="none of its 1 rows is in this pool"):
        select(strategy="strict-random", budget=5, exclude=[tmp_path])


def test_the_store_keeps_draws_with_other_exclusions_apart(
    pool: Any, given: dict[str, Any], tmp_path: Path
) -> None:
    from tamis.study.stored import stored_subsets

    store = {**given, "store": tmp_path}
    for budgets in ([5], [5, 30]):
        tamis.select(pool, strategy=["ngrams/top-k", "strict-random"], budget=budgets, **store)
    strict = [s for s in stored_subsets(tmp_path) if s.strategy == "strict-random" and s.budget == "5"]
    top = [s for s in stored_subsets(tmp_path) if s.strategy == "ngrams/top-k" and s.budget == "5"]
    assert len(strict) == 2 and len(top) == 1


def test_on_the_command_line(lab: Path, tmp_path: Path) -> None:
    common = ["--pool", lab / "pool.jsonl", "--store", lab / "store", "--budget", 20, "--quiet"]
    command("select", *common, "--strategy", "random", "--out", tmp_path / "a")
    folder = tmp_path / "a" / "random" / "20" / "seed0"
    command("select", *common, "--strategy", "strict-random", "--exclude", folder, "--out", tmp_path / "b")
    rows = [
        pq.read_table(path)["row"].to_numpy()
        for path in (
            folder / "selection.parquet",
            tmp_path / "b" / "strict-random" / "20" / "seed0" / "selection.parquet",
        )
    ]
    assert not np.intersect1d(*rows).size
