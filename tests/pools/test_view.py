"""Some rows of a pool: the rows themselves, in the order given, and a name of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tamis
from tamis.lab import write_lab
from tamis.pools.view import PoolRows


def test_rows_are_those_of_the_pool_in_the_order_given(tmp_path: Path) -> None:
    write_lab(tmp_path / "lab", rows=60, seed=1)
    pool = tamis.read_pool([tmp_path / "lab" / "pool.jsonl"], store=tmp_path)
    places = np.array([3, 50, 7, 8])
    rows = PoolRows(pool, places)
    assert len(rows) == 4
    assert rows.ids.tolist() == [pool.ids[i] for i in places]
    assert rows.chars.tolist() == [np.asarray(pool.chars)[i] for i in places]
    assert [rows.row(i).id for i in range(4)] == rows.ids.tolist() and rows.row(1).position == 50
    whole = pool.conversations()
    assert rows.conversations() == [whole[i] for i in places]
    assert (
        rows.conversations(1, 3) == [whole[50], whole[7]]
        and rows.conversations(2) == rows.conversations()[2:]
    )
    names = {PoolRows(pool, np.array(given)).digest for given in ([3, 50], [50, 3], [3], [])}
    assert len(names) == 4 and pool.digest not in names
    assert PoolRows(pool, places.astype(np.int32)).digest == rows.digest
    assert len(PoolRows(pool, np.array([], np.int64))) == 0
