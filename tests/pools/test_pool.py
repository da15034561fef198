"""A stored pool: rows by position and id, in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.pools import ingest
from tamis.pools import pool as pools
from tamis.pools.pool import Pool
from tamis.pools.read import read_pool
from tests.pools.rows import ALPACA, lines, plain_id, put, turns

ROWS = [{"prompt": f"q{i % 97}", "completion": "a" * (i % 97)} for i in range(300)]


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(ingest, "GROUP_ROWS", 10)
    monkeypatch.setattr(pools, "_WINDOW_CHARS", 2000)
    paths = [put(tmp_path / f"{i}.jsonl", lines(ROWS[i * 50 : i * 50 + 50])) for i in range(6)]
    return read_pool(paths, store=tmp_path / "store")


def test_columns_belong_to_the_rows(pool: Pool) -> None:
    assert len(pool) == 97
    expected = [[("user", f"q{i}"), ("assistant", "a" * i)] for i in range(97)]
    assert turns(pool) == expected
    assert pool.ids.tolist() == [plain_id(row) for row in expected] and pool.ids.dtype == "<U32"
    assert pool.id_bytes.tobytes().hex() == "".join(pool.ids.tolist())
    assert pool.counts.tolist() == [4] * 9 + [3] * 88 and pool.counts.sum() == 300
    assert pool.sources.tolist() == ["0"] * 50 + ["1"] * 47
    assert [pool.source_names[code] for code in pool.source_codes] == pool.sources.tolist()
    assert pool.chars.tolist() == [len(f"q{i}") + i for i in range(97)]
    for row in pool.iter_rows(45, 60):
        assert row == pool.row(row.position)
        assert (row.messages[1].content, row.line) == ("a" * row.position, row.position % 50 + 1)
        assert row.original == lines([ROWS[row.position]]).strip()
        assert Path(row.file).stem == row.source
    assert pool.row(-1).position == 96
    assert turns(pool)[3:5] == [[tuple(turn) for turn in row] for row in pool.conversations(3, 5)]


def test_rows_come_in_the_order_asked_for(pool: Pool) -> None:
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(97), 2))
    assert list(pool.originals(order)) == [lines([ROWS[i]]).strip() for i in order]
    assert [row[1].content for row in pool.messages_at(order)] == ["a" * i for i in order]
    assert list(pool.originals([])) == []
    for wrong in ([97], [-1]):
        with pytest.raises(RequestError, match="0 to 96"):
            list(pool.originals(wrong))
    with pytest.raises(IndexError):
        pool.row(97)


def test_ids_are_found_by_their_beginning(pool: Pool) -> None:
    for digits in (7, 12, 31, 32):
        assert pool.find(pool.ids[40][:digits].upper()) == 40
    shared = next(digit for digit in "0123456789abcdef" if sum(name[0] == digit for name in pool.ids) > 1)
    with pytest.raises(RequestError, match="write more digits"):
        pool.find(shared)
    with pytest.raises(RequestError, match="of no row"):
        pool.find("0" * 32)
    for wrong in ("", "xyz", "0" * 33):
        with pytest.raises(RequestError, match="no row id"):
            pool.find(wrong)


def test_a_pool_opens_from_its_folder_alone(pool: Pool, tmp_path: Path) -> None:
    again = Pool(pool.path)
    assert again.digest == pool.digest and again.row(60).messages == pool.row(60).messages
    assert again.files[0].path == "0.jsonl" and again.files[0].rows == 50
    with pytest.raises(RequestError, match="no stored pool"):
        Pool(tmp_path)


def test_a_row_may_be_asked_for_more_than_once(tmp_path: Path) -> None:
    pool = read_pool(put(tmp_path / "rows.jsonl", lines(ALPACA)), store=tmp_path / "store")
    at = np.array([2, 0, 0, 2, 1, 1])
    wanted = [turns(pool)[i] for i in at]
    assert [[tuple(turn) for turn in row] for row in pool.messages_at(at)] == wanted
    assert len(list(pool.originals(at))) == len(at)
