"""Folders for trainers: their rows read back, and what makes the trainer read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tamis.core.errors import RequestError
from tamis.pools.export import export
from tamis.pools.pool import Pool
from tamis.pools.read import read_pool
from tests.pools.rows import ALPACA, lines, put, turns
from tests.pools.test_export import CHATS, TOOLS, TRAINERS

FITTING = [0, 4, 2]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    rows = put(tmp_path / "rows.jsonl", lines([*ALPACA, *CHATS, TOOLS]))
    return read_pool(rows, store=tmp_path / "store")


@pytest.mark.parametrize("fmt", TRAINERS)
def test_the_rows_are_read_back_as_the_same_ids(fmt: str, pool: Pool, tmp_path: Path) -> None:
    export(pool, FITTING, {}, fmt, tmp_path / "my set")
    back = read_pool(tmp_path / "my set" / "my_set.jsonl", store=tmp_path / "again")
    assert back.ids.tolist() == pool.ids[FITTING].tolist()
    assert turns(back) == [turns(pool)[i] for i in FITTING]
    with pytest.raises(RequestError, match="exists already"):
        export(pool, FITTING, {}, fmt, tmp_path / "my set")
    assert len(list((tmp_path / "my set").iterdir())) == 2


def test_llamafactory_finds_the_file_and_its_turns(pool: Pool, tmp_path: Path) -> None:
    export(pool, FITTING, {}, "llamafactory", tmp_path / "set")
    entry = json.loads((tmp_path / "set" / "dataset_info.json").read_text())["set"]
    rows = [json.loads(line) for line in (tmp_path / "set" / entry["file_name"]).open()]
    tags = entry["tags"]
    for row in rows:
        said = row[entry["columns"]["messages"]]
        roles = [turn[tags["role_tag"]] for turn in said if turn[tags["role_tag"]] != tags["system_tag"]]
        assert roles == [tags["user_tag"], tags["assistant_tag"]] * (len(roles) // 2)
        assert all(isinstance(turn[tags["content_tag"]], str) for turn in said)


def test_llamafactory_is_not_given_what_it_would_pass_over(pool: Pool, tmp_path: Path) -> None:
    odd = turns(pool).index([("user", "q"), ("tool", "t")])
    with pytest.raises(RequestError, match=rf"{pool.ids[odd]}.*would pass over"):
        export(pool, np.array([0, odd]), {}, "llamafactory", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_axolotl_block(pool: Pool, tmp_path: Path) -> None:
    export(pool, FITTING, {}, "axolotl", tmp_path / "set")
    (block,) = yaml.safe_load((tmp_path / "set" / "datasets.yaml").read_text())["datasets"]
    row = json.loads(Path(block["path"]).read_text().splitlines()[0])
    assert set(row[block["field_messages"]][0]) == set(block["message_property_mappings"].values())
    assert block["roles_to_train"] == ["assistant"] and block["type"] == "chat_template"


def test_trl_script_reads_the_rows_beside_it(pool: Pool, tmp_path: Path) -> None:
    export(pool, FITTING, {}, "trl", tmp_path / "set")
    script = (tmp_path / "set" / "train.py").read_text()
    compile(script, "train.py", "exec")
    assert "'set.jsonl'" in script and (tmp_path / "set" / "set.jsonl").exists()
    assert "assistant_only_loss" in script  # row 4 has two answers
    export(pool, [0, 1], {}, "trl", tmp_path / "single")
    assert "completion_only_loss" in (tmp_path / "single" / "train.py").read_text()
