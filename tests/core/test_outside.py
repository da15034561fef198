"""Matching rows of a file to the rows of a pool, and names of imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamis.core.errors import RequestError
from tamis.core.outside import Kept, Rules, keep_name, matched, named, read_ids

A, B, C, D = (letter * 32 for letter in "abcd")
ZERO = "0" * 32
POOL = np.array([A, B, C, ZERO])


def test_by_hand() -> None:
    found = matched(POOL, np.array([C, ZERO, A.upper()]), 3, Rules(), "file")
    assert found.row.tolist() == [2, -1, 0, 1]
    assert found.counts == {"file_rows": 3, "matched": 3, "missing": 1, "unknown": 0, "repeated": 0}


def test_unknown_and_repeated_ids_are_refused_with_their_counts_unless_allowed() -> None:
    ids = np.array([B, D, A, B, B])
    with pytest.raises(RequestError, match=r"1 of 5 ids are not in the pool.*'repeated': 2.*--allow-unknown"):
        matched(POOL, ids, 5, Rules(), "file")
    with pytest.raises(RequestError, match=r"2 of 5 ids repeat earlier ones.*--allow-repeated"):
        matched(POOL, ids, 5, Rules(allow_unknown=True), "file")
    found = matched(POOL, ids, 5, Rules(allow_unknown=True, allow_repeated=True), "file")
    assert found.row.tolist() == [2, 0, -1, -1] and (found.unknown, found.repeated) == (1, 2)


def test_a_row_may_stand_twice_in_a_query_set() -> None:
    assert matched(np.array([B, B]), np.array([B]), 1, Rules(), "file").row.tolist() == [0, 0]


def test_by_position_only_when_asked_and_lengths_agree() -> None:
    assert matched(POOL, None, 4, Rules(by_position=True), "file").row.tolist() == [0, 1, 2, 3]
    with pytest.raises(RequestError, match="give the ids"):
        matched(POOL, None, 4, Rules(), "file")
    with pytest.raises(RequestError, match="5 rows, but 4 rows in the pool"):
        matched(POOL, None, 5, Rules(by_position=True), "file")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([A, "row-7"], r"'row-7' \(row 1\) is no row id"),
        ([A, "é" * 32], r"\(row 1\) is no row id"),
        ([D, "e" * 32], "none of its 2 ids is a row of this pool"),
        ([A], "2 rows, but 1 ids"),
    ],
)
def test_what_is_no_match(ids: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        matched(POOL, np.array(ids), 2, Rules(allow_unknown=True), "file")


def test_many_rows_agree_with_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    pool = np.array([f"{i:032x}" for i in rng.permutation(4000)[:3000]])
    ids = np.array([f"{i:032x}" for i in rng.integers(0, 5000, 3000)])
    first: dict[str, int] = {}
    for row, text in enumerate(ids.tolist()):
        first.setdefault(text, row)
    found = matched(pool, ids, 3000, Rules(False, True, True), "file")
    assert found.row.tolist() == [first.get(text, -1) for text in pool.tolist()]
    assert found.repeated == 3000 - len(first)
    assert found.unknown == sum(text not in set(pool.tolist()) for text in ids.tolist())


def test_files_of_ids(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(f"{A}\n{B}\n")
    (tmp_path / "ids.json").write_text(json.dumps([A, B]))
    np.save(tmp_path / "ids.npy", np.array([A, B]))
    pq.write_table(pa.table({"id": [A, B], "score": [1, 2]}), tmp_path / "ids.parquet")
    for path in tmp_path.iterdir():
        assert read_ids(path).tolist() == [A, B], path
    (tmp_path / "broken.json").write_text("[")
    for name, message in (("broken.json", "not a file of ids"), ("absent.txt", "no such file")):
        with pytest.raises(RequestError, match=message):
            read_ids(tmp_path / name)


def test_names(tmp_path: Path) -> None:
    record: dict[str, Any] = {"kind": "representation", "made_by": {"pool": {"x": 1}}, "dimensions": 3}
    keep_name(tmp_path, "mine", record)
    keep_name(tmp_path, "mine", record)
    assert named(tmp_path, "mine") == record
    kept = Kept(tmp_path, "mine", "representation")
    assert kept.recipe == {"x": 1} and kept.dimensions == 3
    with pytest.raises(RequestError, match="repeat `tamis import`"):
        kept.match(POOL)
    with pytest.raises(RequestError, match="taken by another import"):
        keep_name(tmp_path, "mine", {**record, "dimensions": 4})
    with pytest.raises(RequestError, match="did you mean 'mine'"):
        named(tmp_path, "mien")
    for kind, role in (("scores", "pool"), ("representation", "query")):
        with pytest.raises(RequestError, match="it has representation of: pool"):
            Kept(tmp_path, "mine", kind, role)
    with pytest.raises(RequestError, match="letters, digits"):
        keep_name(tmp_path, "../mine", record)
