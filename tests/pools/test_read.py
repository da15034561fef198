"""Reading: containers × compression, bad rows, merging, identity, and the same bytes however it is run."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tamis.core.errors import PoolError, RequestError, TamisError
from tamis.pools import _workers, segments
from tamis.pools.identity import first_occurrences
from tamis.pools.read import read_pool
from tests.pools.rows import ALPACA, ALPACA_TURNS, lines, plain_id, put, squeezed, turns


def _csv(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(ALPACA[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(ALPACA)
    return out.getvalue().encode()


def _arrow(stream: bool) -> bytes:
    table = pa.Table.from_pylist(ALPACA)
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ALPACA), sink)
    return sink.getvalue().to_pybytes()


FORMATS = {
    "jsonl": lines(ALPACA),
    "jsonl without last line break": lines(ALPACA)[:-1],
    "jsonl with blank lines, CR LF and BOM": b"\xef\xbb\xbf" + lines(ALPACA).replace(b"\n", b"\r\n\r\n"),
    "jsonl of lists of one": lines([[row] for row in ALPACA]),
    "array": json.dumps(ALPACA).encode(),
    "pretty array": b"\xef\xbb\xbf" + json.dumps(ALPACA, indent=2, ensure_ascii=False).encode(),
    "array of lines": b"[\n"
    + b",\n".join(lines(ALPACA).splitlines()[:3])
    + b",\n"
    + lines(ALPACA[3:])
    + b"]\n",
    "object": json.dumps({"version": "1", "data": ALPACA}).encode(),
    "pretty object": json.dumps({"data": ALPACA, "license": ["x"]}, indent=1).encode(),
    "csv": _csv(","),
    "tsv": _csv("\t"),
    "csv with BOM": b"\xef\xbb\xbf" + _csv(","),
    "yaml": yaml.safe_dump(ALPACA, default_style='"').encode(),
    "yaml with a head": b"# rows\n---\n" + yaml.safe_dump(ALPACA).encode(),
    "parquet": _parquet(),
    "arrow file": _arrow(stream=False),
    "arrow stream": _arrow(stream=True),
}


@pytest.mark.parametrize("codec", [None, "gzip", "zstd"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_container_and_compression_gives_the_same_rows(
    name: str, codec: str | None, tmp_path: Path
) -> None:
    content = FORMATS[name]
    if name == "array of lines":
        content = content.replace(b"\xc2\x85", b"\\u0085").replace("\u2028".encode(), b"\\u2028")
    path = put(tmp_path / "rows.bin", squeezed(content, codec))  # the name says nothing
    pool = read_pool(path, store=tmp_path / "store")
    assert turns(pool) == ALPACA_TURNS
    assert pool.ids.tolist() == [plain_id(row) for row in ALPACA_TURNS]
    report = pool.files[0]
    assert (report.rows, report.bad_rows, report.duplicate_rows, report.shape) == (4, 0, 0, "alpaca")
    assert report.notes == {"an empty answer": 1}
    for i, original in enumerate(pool.originals(range(4))):
        assert b"\n" not in original
        found = json.loads(original)
        assert (found[0] if isinstance(found, list) else found) == ALPACA[i]


def test_originals_of_json_lines_are_untouched(tmp_path: Path) -> None:
    rows = [
        b'{ "prompt":"\\u00e9" ,"completion": "b", "n": 1.50e1}',
        b'{"prompt":"q","completion":"c","x":NaN}',
    ]
    pool = read_pool(put(tmp_path / "a.jsonl", b"\n\n".join(rows)), store=tmp_path / "store")
    assert list(pool.originals([1, 0])) == [rows[1], rows[0]]
    assert [row.line for row in pool.iter_rows()] == [1, 3]


def test_lines_point_into_pretty_arrays(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", json.dumps(ALPACA, indent=1).encode())
    pool = read_pool(path, store=tmp_path / "store")
    assert [row.line for row in pool.iter_rows()] == [2, 7, 12, 17]


def test_equal_rows_are_merged_into_the_first(tmp_path: Path) -> None:
    chat = {
        "messages": [{"role": "user", "content": " Add.\n1 and 2\n"}, {"role": "assistant", "content": "3"}]
    }
    first = put(tmp_path / "first.jsonl", lines([ALPACA[1], chat, ALPACA[1]]))
    second = put(tmp_path / "second.jsonl", lines([ALPACA[0], {**ALPACA[2], "source": "own"}]))
    pool = read_pool([first, second], store=tmp_path / "store")
    assert pool.counts.tolist() == [2, 2, 1]
    assert pool.sources.tolist() == ["first", "first", "own"] and pool.source_names == ["first", "own"]
    assert [report.duplicate_rows for report in pool.files] == [1, 1]
    assert pool.row(1).messages[0].content == " Add.\n1 and 2\n"  # kept as it is, though its id strips it
    assert pool.row(2).file == str(second) and pool.row(2).line == 2 and pool.row(2).count == 1
    apart = read_pool([first, second], merge_duplicates=False, store=tmp_path / "store")
    assert len(apart) == 5 and apart.counts.tolist() == [1] * 5 and apart.digest != pool.digest
    assert apart.ids[1] == apart.ids[3]


def test_ids_do_not_confuse_text_with_turns(tmp_path: Path) -> None:
    """A content that looks like a turn is no turn; two spellings of a letter are two rows."""
    rows = [
        [("user", "a\nassistant: b"), ("assistant", "c")],
        [("user", "a"), ("assistant", "b"), ("assistant", "c")],
        [("user", "a"), ("assistant", "b\nassistant: c")],
        [("user", "é"), ("assistant", "c")],
        [("user", "e\u0301"), ("assistant", "c")],
        [("system", "a"), ("user", "b")],
        [("user", "a"), ("user", "b")],
    ]
    listed = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in rows]
    pool = read_pool(put(tmp_path / "a.jsonl", lines(listed)), store=tmp_path / "store")
    assert len(set(pool.ids.tolist())) == len(rows)
    assert pool.ids.tolist() == [plain_id(row) for row in rows]
    assert pool.files[0].notes == {
        "ends with the user": 2, "no assistant turn": 2, "one role twice in a row": 2
    }  # fmt: skip


def test_first_occurrences_against_a_dictionary() -> None:
    draw = np.random.default_rng(0)
    for span in (2, 5, 200):
        ids = draw.integers(0, span, (300, 2)).astype("<u8").view(np.uint8).reshape(300, 16)
        seen: dict[bytes, list[int]] = {}
        for i, row in enumerate(ids):
            seen.setdefault(row.tobytes(), []).append(i)
        kept, counts = first_occurrences(ids)
        assert kept.tolist() == [places[0] for places in seen.values()]
        assert counts.tolist() == [len(places) for places in seen.values()]
    kept, counts = first_occurrences(np.empty((0, 16), np.uint8))
    assert len(kept) == len(counts) == 0


BAD = [
    (b'{"prompt": "q", "completion": "a"', "invalid JSON"),
    (b'{"prompt": "q", "completion": null}', "completion is null"),
    (b'{"prompt": "q", "completion": "\xff"}', "not UTF-8"),
    (b'{"prompt": "q", "completion": "\\ud800"}', "surrogate"),
    (b'{"prompt": "q", "completion": "a\0"}', "invalid JSON"),
    (b"3", "a number, expected an object"),
    (b"[]", "a list"),
    (b"null", "null"),
    (b'{"other": 1}', "its keys are other"),
    (b"<<<<<<< HEAD", "merge-conflict"),
    (b"[" * 2000 + b"]" * 2000, "invalid JSON"),
    (b'{"messages": []}', "empty"),
]


def test_bad_rows_stop_the_reading_or_are_kept_aside(tmp_path: Path) -> None:
    good = lines([{"prompt": f"q{i}", "completion": "a"} for i in range(3)])
    path = put(tmp_path / "a.jsonl", good + b"\n".join(raw for raw, _ in BAD) + b"\n")
    store = tmp_path / "store"
    with pytest.raises(PoolError) as caught:
        read_pool(path, store=store)
    text = str(caught.value).splitlines()
    assert text[0].startswith("12 bad rows") and "and 2 more" in text[11]
    for number, (line, (_, reason)) in enumerate(zip(text[1:11], BAD, strict=False), start=4):
        assert line.startswith(f"{path}:{number}: ") and reason in line
    assert not list(store.glob("pool/*"))
    aside = tmp_path / "aside.jsonl"
    pool = read_pool(path, skip_bad_rows=True, store=store, rejected=aside)
    assert len(pool) == 3 and pool.files[0].rows == 15 and pool.files[0].bad_rows == 12
    entries = [json.loads(line) for line in aside.read_bytes().splitlines()]
    for number, (entry, (raw, reason)) in enumerate(zip(entries, BAD, strict=True), start=4):
        whole = (
            bytes.fromhex(entry["original_hex"]) if "original_hex" in entry else entry["original"].encode()
        )
        assert (entry["file"], entry["line"], whole) == (str(path), number, raw)
        assert reason in entry["reason"]
    assert (pool.path / "rejected.jsonl").read_bytes().count(b"\n") == 12
    with pytest.raises(
        PoolError, match="12 bad rows"
    ):  # what is stored does not turn a refusal into a silence
        read_pool(path, store=store)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("conflict", b"<<<<<<< HEAD\n[{}]\n=======\n", "merge-conflict"),
        ("stub", b"3779ddbc040543ab1834ef216c983d6fcc06cc9a", "rewritten history"),
        ("page", b"<!DOCTYPE html><html>", "web page"),
        ("utf16", '{"prompt": "q", "completion": "a"}'.encode("utf-16"), "UTF-16"),
        ("utf16 without mark", '{"prompt": "q", "completion": "a"}'.encode("utf-16-le"), "UTF-16"),
        ("binary", bytes(range(256)), "binary"),
        ("cut gzip", gzip.compress(lines(ALPACA) * 500, mtime=0)[:-200], "cut off"),
        ("damaged gzip", gzip.compress(lines(ALPACA), mtime=0)[:-8] + b"12345678", "damaged"),
        ("cut array", json.dumps(ALPACA).encode()[:-3], "not closed"),
        ("no csv", b"some words\nof a text\n", "no known shape"),
        ("no rows", b"nonsense {\n", "one line of text"),
        ("scalars", b"[1, 2]", "none of its first 2 rows"),
        ("parquet", b"PAR1 but no more", "damaged Parquet"),
        ("arrow", b"ARROW1 but no more", "damaged Arrow"),
        ("twice", b"question,answer,answer\n1,2,3\n", "names 'answer' twice"),
        ("unknown keys", b'{"text": "t", "n": 1}\n', "--map instruction="),
        ("text for a list", b'{"conversations": "t"}\n', "no known shape"),
    ],
)
def test_files_that_are_no_pool_are_refused_by_name(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(TamisError) as caught:
        read_pool(
            [put(tmp_path / "good.jsonl", lines(ALPACA)), path], skip_bad_rows=True, store=tmp_path / "s"
        )
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert not list((tmp_path / "s").glob("pool/*/meta.json"))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", gzip.compress(b"", mtime=0)])
def test_a_file_without_rows_is_no_error(content: bytes, tmp_path: Path) -> None:
    pool = read_pool(put(tmp_path / "a.jsonl", content), store=tmp_path / "store")
    assert len(pool) == 0 and pool.files[0].rows == 0 and pool.files[0].notes == {"no rows in the file": 1}
    assert pool.conversations() == [] and pool.ids.shape == (0,) and list(pool.iter_rows()) == []


def test_csv_rows_end_at_line_feeds_outside_quotes_alone(tmp_path: Path) -> None:
    text = 'prompt,completion\n"a\r\nb",x\u0085y\n"c ""d""",\u2028\r\n,\nq\n"e"f,g\n"h,i'
    path = put(tmp_path / "a.csv", text.encode())
    pool = read_pool(path, skip_bad_rows=True, store=tmp_path / "store")
    assert turns(pool) == [
        [("user", "a\r\nb"), ("assistant", "x\u0085y")],
        [("user", 'c "d"'), ("assistant", "\u2028")],
        [("user", ""), ("assistant", "")],
    ]
    entries = [json.loads(line) for line in (pool.path / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["original"]) for entry in entries] == [
        (6, "q\n"),
        (7, '"e"f,g\n'),
        (8, '"h,i'),
    ]
    assert "1 cells, expected 2" in entries[0]["reason"]
    assert pool.files[0].rows == 6


def test_yaml_items_that_are_broken_or_not_text(tmp_path: Path) -> None:
    text = "- {prompt: q, completion: a}\n- {prompt: q, completion: 3}\n- {prompt: [\n- text\n"
    text += "- &x {prompt: q}\n- *x\n"
    pool = read_pool(put(tmp_path / "a", text.encode()), skip_bad_rows=True, store=tmp_path / "store")
    assert len(pool) == 1 and pool.files[0].bad_rows == 5 and pool.files[0].rows == 6


def test_paths_globs_folders_and_their_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in zip(("b", "a", "c"), ALPACA, strict=False):
        put(tmp_path / "data" / f"{name}.jsonl", lines([row]))
    put(tmp_path / "data" / "x.jsonl.REMOVED.git-id", b"3779ddbc040543ab1834ef216c983d6fcc06cc9a")
    put(tmp_path / "odd [1].jsonl", lines(ALPACA[3:]))
    store = tmp_path / "store"
    pool = read_pool([tmp_path / "odd [1].jsonl", str(tmp_path / "data" / "*.jsonl*")], store=store)
    assert pool.sources.tolist() == ["odd [1]", "a", "b", "c"]
    for given, reason in [
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path / "*.parquet", "no file matches"),
        (tmp_path / "data", "a folder; name the files in it"),
        ([tmp_path / "odd [1].jsonl", tmp_path / "odd*.jsonl"], "named twice"),
        ([], "no pool file"),
        ("org/name", "org/name:train"),
    ]:
        with pytest.raises(RequestError, match=reason.replace("*", ".")):
            read_pool(given, store=store)
    with pytest.raises(RequestError) as caught:
        read_pool([tmp_path / "none1", tmp_path / "none2"], store=store)
    assert "none1" in str(caught.value) and "none2" in str(caught.value)


def test_folders_of_datasets_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ALPACA)
    whole.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "splits"))
    store = tmp_path / "store"
    assert turns(read_pool(tmp_path / "saved", store=store)) == ALPACA_TURNS
    assert turns(read_pool(tmp_path / "splits" / "train", store=store)) == ALPACA_TURNS
    with pytest.raises(RequestError, match="several splits"):
        read_pool(tmp_path / "splits", store=store)
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> Any:
        asked.append((name, split))
        if name == "org/gone":
            raise ConnectionError("offline")
        return whole.select(range(2))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pool = read_pool("org/some:train:2", store=store)
    assert turns(pool) == ALPACA_TURNS[:2] and asked == [("org/some", "train[:2]")]
    assert pool.sources.tolist() == ["org/some"] * 2 and pool.row(0).file == "org/some:train:2"
    with pytest.raises(RequestError, match="check the name and the network"):
        read_pool("org/gone:train", store=store)


def test_what_was_read_is_not_read_again_and_paths_take_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    pool = read_pool(put(tmp_path / "one" / "a.jsonl", lines(ALPACA)), store=store)
    monkeypatch.setattr(_workers, "work", lambda *_, **__: pytest.fail("read again"))
    moved = read_pool(put(tmp_path / "two" / "a.jsonl", lines(ALPACA)), store=store)
    assert moved.path == pool.path and moved.row(0).file == str(tmp_path / "two" / "a.jsonl")
    assert (store / "ledger.jsonl").read_text().count("\n") == 1


def test_the_digest_names_texts_order_and_sources(tmp_path: Path) -> None:
    chat = [{"prompt": "q ", "completion": "a"}, {"prompt": "r", "completion": "b"}]

    def digest(name: str, content: bytes) -> str:
        return read_pool(put(tmp_path / name, content), store=tmp_path / "store").digest

    base = digest("1/a.jsonl", lines(chat))
    assert digest("2/a.json", json.dumps(chat, indent=1).encode()) == base  # another container, the same rows
    others = [
        digest("3/b.jsonl", lines(chat)),
        digest("4/a.jsonl", lines(chat[::-1])),
        digest("5/a.jsonl", lines([{"prompt": "q", "completion": "a"}, chat[1]])),  # same ids, another text
    ]
    assert len({base, *others}) == 4


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_and_helping_processes_change_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    rows = [{"prompt": "é" * draw.randrange(40), "completion": str(i % 900)} for i in range(1000)]
    content = lines(rows)
    path = put(tmp_path / "a.jsonl", content)
    whole = read_pool(path, store=tmp_path / "whole")
    for size in (997, 5000):
        monkeypatch.setattr(segments, "SHARD_BYTES", size)
        monkeypatch.setattr(segments, "_PIECE_BYTES", size)
        cut = read_pool(path, store=tmp_path / f"cut{size}")
        assert cut.digest == whole.digest
        assert [row.line for row in cut.iter_rows()] == [row.line for row in whole.iter_rows()]
        assert cut.files == whole.files
    monkeypatch.setattr(_workers, "_ALONE_BYTES", 0)
    helped = read_pool(path, store=tmp_path / "helped")
    assert _tree(helped.path) == _tree(cut.path)


def test_an_interrupted_reading_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SHARD_BYTES", 4096)
    monkeypatch.setattr(segments, "_PIECE_BYTES", 4096)
    path = put(tmp_path / "a.jsonl", lines([{"prompt": str(i), "completion": "a" * 50} for i in range(400)]))
    undisturbed = read_pool(path, store=tmp_path / "whole")
    read, calls = _workers._read_shard, []

    def stopping(plan: Any, thing: Any, number: int) -> None:
        calls.append(number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        read(plan, thing, number)

    monkeypatch.setattr(_workers, "_read_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        read_pool(path, store=tmp_path / "store")
    again = read_pool(path, store=tmp_path / "store")
    assert calls[4] == 3 and len(set(calls)) == len(calls) - 1  # the finished shards were kept
    assert _tree(again.path) == _tree(undisturbed.path)


def test_a_bad_row_in_one_shard_of_many_has_its_own_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SHARD_BYTES", 1000)
    monkeypatch.setattr(segments, "_PIECE_BYTES", 1000)
    rows = lines([{"prompt": str(i), "completion": "a"} for i in range(500)]).splitlines(keepends=True)
    rows[333] = b'{"prompt": "q"}\n'
    with pytest.raises(PoolError, match=r"a.jsonl:334: "):
        read_pool(put(tmp_path / "a.jsonl", b"".join(rows)), store=tmp_path / "store")
