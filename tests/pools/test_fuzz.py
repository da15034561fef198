"""Mutated files: no traceback but an error of tamis, and no row lost."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tamis.core.errors import TamisError
from tamis.pools.read import read_pool
from tests.pools.rows import ALPACA, lines, plain_id, put, turns
from tests.pools.test_shapes import CASES

ROWS = [row for row, _, _ in CASES]


def _scratched(content: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, cut out, doubled or put in."""
    text = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(text) + 1)
        action = draw.randrange(4)
        if action == 0 and at < len(text):
            text[at] ^= 1 << draw.randrange(8)
        elif action == 1:
            del text[at : at + draw.randrange(1, 20)]
        elif action == 2:
            text[at:at] = text[at : at + draw.randrange(1, 20)]
        else:
            text[at:at] = draw.choice(
                [b"\0", b"\n", b'"', b"{", b"]", b"\\", b"\xff", b",", b"null", b"\r", b"[" * 40]
            )
    return bytes(text[: draw.randrange(len(text) + 1)] if draw.random() < 0.1 else text)


def test_scratched_json_lines_lose_no_row(tmp_path: Path) -> None:
    draw = random.Random(0)
    head = lines([ALPACA[0]])  # a whole row, so that each file is known for what it is
    contents = []
    for _ in range(30):
        rows = [lines([row])[:-1] for row in draw.choices(ROWS, k=150)]
        scratched = [_scratched(row, draw) if draw.random() < 0.4 else row for row in rows]
        contents.append(head + b"\n".join(scratched))
    paths = [put(tmp_path / f"{i:02d}.jsonl", content) for i, content in enumerate(contents)]
    pool = read_pool(paths, skip_bad_rows=True, store=tmp_path / "s", merge_duplicates=False)
    entries = [json.loads(line) for line in (pool.path / "rejected.jsonl").read_bytes().splitlines()]
    whole = {(Path(row.file).name, row.line): row.original for row in pool.iter_rows()}
    assert len(whole) == len(pool) > 2000 and len(entries) > 500
    for entry in entries:
        text = bytes.fromhex(entry["original_hex"]) if "original_hex" in entry else entry["original"].encode()
        whole[entry["file"], entry["line"]] = text
    given = {
        (path.name, number): line.removesuffix(b"\r")
        for path, content in zip(paths, contents, strict=True)
        for number, line in enumerate(content.split(b"\n"), start=1)
        if line.strip()
    }
    assert whole == given and sum(report.rows for report in pool.files) == len(given)
    assert pool.ids.tolist() == [plain_id(row) for row in turns(pool)]


def _table(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize("name", ["array", "pretty", "object", "csv", "yaml", "gzip", "zoo"])
def test_scratched_files_give_rows_or_an_error_of_tamis(name: str, tmp_path: Path) -> None:
    draw = random.Random(name)
    made = {
        "array": json.dumps(ROWS).encode(),
        "pretty": json.dumps(ROWS, indent=1).encode(),
        "object": json.dumps({"data": ALPACA, "x": 1}).encode(),
        "csv": _table(ALPACA * 3),
        "yaml": yaml.safe_dump(ALPACA).encode(),
        "gzip": gzip.compress(lines(ROWS), mtime=0),
        "zoo": b"[" * 3 + b'{"a": [1, 2, "x"]}' * 4 + b"- a: 1\n" + b"1,2\n",
    }[name]
    outcomes = set()
    for trial in range(40):
        path = put(tmp_path / f"{trial}", _scratched(made, draw))
        try:
            pool = read_pool(path, skip_bad_rows=True, store=tmp_path / "s")
        except TamisError as error:
            outcomes.add("refused")
            assert str(path) in str(error)
            continue
        outcomes.add("read")
        report = pool.files[0]
        assert report.rows == report.bad_rows + report.duplicate_rows + len(pool)
    assert outcomes >= ({"refused"} if name in ("zoo", "gzip") else {"read", "refused"})
