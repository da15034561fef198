"""Every format that is written is read back as the same rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tamis.core.errors import RequestError
from tamis.pools.export import FORMATS, export
from tamis.pools.pool import Pool
from tamis.pools.read import read_pool
from tests.pools.rows import ALPACA, lines, put, turns

CHATS = [
    {"conversations": [{"from": "system", "value": "be\nkind"}, {"from": "human", "value": "q"},
                       {"from": "gpt", "value": "a"}, {"from": "human", "value": "r"},
                       {"from": "gpt", "value": ""}],
     "source": "own"},
    {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]], "extra": [1, {"b": None}]},
]  # fmt: skip
TOOLS = {"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "t"}]}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    rows = put(tmp_path / "rows.jsonl", lines([*ALPACA, *CHATS, TOOLS]))
    return read_pool(rows, store=tmp_path / "store")


TRAINERS = ("llamafactory", "axolotl", "trl")  # folders: see test_trainers.py


@pytest.mark.parametrize("fmt", [name for name in FORMATS if name not in ("ids", *TRAINERS)])
def test_formats_are_read_back_as_the_same_ids(fmt: str, pool: Pool, tmp_path: Path) -> None:
    if fmt == "hf":
        pytest.importorskip("datasets")
    order = np.array([5, 0, 4, 2, 1, 3] + ([] if fmt == "alpaca" else [6]))
    out = tmp_path / "out"
    export(pool, order, {"rank": np.arange(len(order)), "score": np.linspace(0, 1, len(order))}, fmt, out)
    back = read_pool(out, store=tmp_path / "again")
    assert back.ids.tolist() == pool.ids[order].tolist()
    assert turns(back) == [turns(pool)[i] for i in order]
    if fmt != "original":
        assert back.sources.tolist() == pool.sources[order].tolist()
    if fmt == "original":
        assert out.read_bytes().splitlines() == list(pool.originals(order))
    if fmt == "parquet":
        table = pq.read_table(out)
        assert (
            table["rank"].to_pylist() == list(range(7))
            and table["id"].to_pylist() == pool.ids[order].tolist()
        )


def test_ids_hold_no_text(pool: Pool, tmp_path: Path) -> None:
    export(pool, [2, 0], {"rank": [0, 1], "score": np.array([0.5, np.nan])}, "ids", tmp_path / "ids.csv")
    with open(tmp_path / "ids.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == pool.ids[[2, 0]].tolist()
    assert [row["score"] for row in rows] == ["0.5", ""] and set(rows[0]) == {"id", "source", "rank", "score"}


def test_what_a_format_cannot_hold_is_refused_with_the_row(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"row {pool.ids[6]} .position 6.: .*user, tool"):
        export(pool, [0, 6], {}, "alpaca", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequestError, match="did you mean 'alpaca'"):
        export(pool, [0], {}, "alpacca", tmp_path / "out")
    with pytest.raises(RequestError, match="1 values for 2 rows"):
        export(pool, [0, 1], {"rank": [0]}, "ids", tmp_path / "out")
