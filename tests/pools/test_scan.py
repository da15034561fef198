"""Elements of arrays against a parser that reads the whole."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from tamis.core.errors import PoolError
from tamis.pools.scan import elements


def _blocks(text: bytes, draw: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(text):
        size = draw.randrange(1, 12)
        yield text[at : at + size]
        at += size


def _value(draw: random.Random, depth: int = 0) -> object:
    kind = draw.randrange(6 if depth < 3 else 3)
    if kind == 0:
        return draw.choice([None, True, 1.5, -3])
    if kind <= 2:
        return "".join(draw.choices('ab"\\[]{},\n \u2028é', k=draw.randrange(8)))
    if kind == 3:
        return [_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {f'k{i}"\\'[: draw.randrange(1, 5)]: _value(draw, depth + 1) for i in range(draw.randrange(4))}


@pytest.mark.parametrize("indent", [None, 2])
def test_elements_of_any_array_in_any_blocks(indent: int | None) -> None:
    draw = random.Random(indent or 0)
    for _ in range(300):
        rows = [_value(draw) for _ in range(draw.randrange(6))]
        text = json.dumps(rows, indent=indent, ensure_ascii=draw.random() < 0.5).encode()
        found = list(elements(_blocks(text, draw), "f"))
        assert [json.loads(raw) for _, raw in found] == rows
        at = 0
        for line, raw in found:  # the line is where the element begins
            at = text.index(raw, at)
            assert line == text.count(b"\n", 0, at) + 1
            at += len(raw)


@pytest.mark.parametrize("indent", [None, 1])
def test_the_list_of_rows_in_an_object(indent: int | None) -> None:
    rows = [{"a": [1, {"b": "]"}]}, {"a": 'x"[{'}]
    text = json.dumps({"canary": "[{", "tags": ["a", "b"], "examples": rows, "end": {"x": []}}, indent=indent)
    draw = random.Random(3)
    for _ in range(50):
        assert [json.loads(raw) for _, raw in elements(_blocks(text.encode(), draw), "f", True)] == rows


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, {"a": 2}', '[{"a": 1}, {"a": "x]', "[", '[{"a": [1}, {"a": 2}]']
)
def test_an_array_that_is_not_closed_is_refused(text: str) -> None:
    with pytest.raises(PoolError, match="not closed"):
        list(elements([text.encode()], "f"))


def test_what_follows_or_is_missing_is_refused() -> None:
    with pytest.raises(PoolError, match="follows the end"):
        list(elements([b'[{"a": 1}] {"b": 2}'], "f"))
    with pytest.raises(PoolError, match="no list of rows"):
        list(elements([b'{"a": {"b": 1}}'], "f", True))
    with pytest.raises(PoolError, match="several lists"):
        list(elements([b'{"a": [{"b": 1}], "c": [{"d": 1}]}'], "f", True))


def test_two_commas_give_an_element_that_no_parser_takes() -> None:
    assert [raw for _, raw in elements([b"[1,,2]"], "f")] == [b"1", b"", b"2"]


def test_a_long_array_is_read_without_holding_it() -> None:
    row = json.dumps({"text": "x" * 1000}).encode()

    def blocks() -> Iterator[bytes]:
        yield b"["
        for i in range(200):
            yield (b"," if i else b"") + b",".join([row] * 100)
        yield b"]"

    seen = 0
    for _, raw in elements(blocks(), "f"):
        assert raw == row
        seen += 1
    assert seen == 20_000
