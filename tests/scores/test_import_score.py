"""Import of scores: file kinds, statuses, direction, and columns that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.core.errors import RequestError
from tamis.core.status import words
from tamis.representations._context import Context
from tamis.scores import SCORES

IMPORT = SCORES["import-score"]
IDS = [f"{i:032d}" for i in range(6)]  # digits alone, as some ids are
VALUES = [0.5, None, float("inf"), -2.0, 1e300]


def opened(path: Path, **parameters: Any) -> Any:
    return IMPORT.run(IMPORT.configure({"file": str(path), "column": "score", **parameters}), Context())


def write(folder: Path, kind: str) -> Path:
    path = folder / f"scores.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"other": [1] * 5, "id": IDS[:5], "score": VALUES}), path)
    elif kind == "jsonl":
        path.write_text(
            "".join(json.dumps({"id": i, "score": v}) + "\n" for i, v in zip(IDS, VALUES, strict=False))
        )
    else:
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join((i, "" if v is None else str(v))) for i, v in zip(IDS, VALUES, strict=False)]
        path.write_text(f"id{mark}score\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    scorer = opened(write(tmp_path, kind))
    order = [4, 5, 0, 1, 2, 3]
    assert scorer.match(np.array(IDS)[order])["missing"] == 1
    found = scorer.rows(0, 6)
    assert list(words(found.status)) == ["ok", "failed", "ok", "failed", "non_finite", "ok"]
    np.testing.assert_array_equal(found.values, [1e300, np.nan, 0.5, np.nan, np.nan, -2.0])
    assert sorted(found.reasons) == [1, 3, 4]
    np.testing.assert_array_equal(scorer.rows(2, 6).values, found.values[2:])
    recipes = {
        json.dumps(opened(write(tmp_path, other)).recipe) for other in ("csv", "tsv", "jsonl", "parquet")
    }
    assert len(recipes) == 1  # the numbers and ids, whatever file holds them


def test_lower_is_better_and_cells_that_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(f"id,score\n{IDS[0]},3\n{IDS[1]},high\n")
    scorer = opened(path, better="lower")
    scorer.match(np.array(IDS[:2]))
    found = scorer.rows(0, 2)
    assert found.values[0] == -3 and list(words(found.status)) == ["ok", "parse_error"]
    assert scorer.recipe != opened(path).recipe


def test_by_position(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("score\n1\n2\n")
    scorer = opened(path, by_position=True)
    scorer.match(np.array(IDS[:2]))
    assert scorer.rows(0, 2).values.tolist() == [1, 2]
    with pytest.raises(RequestError, match="2 rows, but 6 rows"):
        scorer.match(np.array(IDS))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("scores.csv", {"column": ""}, r"--set import-score\.column=NAME"),
        ("absent.csv", {}, "no such file of scores"),
        ("scores.xls", {}, "expected one of .csv"),
        ("scores.csv", {"column": "quality"}, "no column 'quality'; it has: id, score"),
        ("scores.jsonl", {"column": "quality"}, "no column 'quality'; it has: id, score"),
        ("scores.parquet", {"id": "row"}, "no column 'row'; it has: other, id, score"),
        ("scores.csv", {"better": "most"}, "better='most'"),
        ("scores.csv", {"name": "mine"}, "not both"),
    ],
)
def test_refusals_before_any_work(
    tmp_path: Path, name: str, parameters: dict[str, Any], message: str
) -> None:
    for kind in ("csv", "jsonl", "parquet"):
        write(tmp_path, kind)
    (tmp_path / "scores.xls").touch()
    with pytest.raises(RequestError, match=message):
        opened(tmp_path / name, **parameters)
