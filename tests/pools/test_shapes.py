"""Shapes by hand, and the quick conversion against the careful one."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from tamis.pools._fast import FAST
from tamis.pools.shapes import SHAPES, BadRow, shape_of, shape_of_keys

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
QA = ["user", "q", "assistant", "a"]
CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"messages": CHAT}, "messages", QA),
    ({"messages": CHAT, "system": "s"}, "messages", ["system", "s", *QA]),
    ({"messages": [{"role": "developer", "content": "d"}, *CHAT], "system": "s"}, "messages",
     ["system", "d", *QA]),
    ({"messages": CHAT, "label": False}, "messages", QA),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"},
                                                {"type": "text", "value": "r"}]}]},
     "messages", ["user", "q\nr"]),
    ({"messages": [CHAT[0], {"role": "assistant", "content": [
        {"type": "reasoning", "value": "think"}, {"type": "tool_call", "value": "{}"}]}]},
     "messages", ["user", "q", "assistant", "<think>\nthink\n</think>\n<tool_call>\n{}\n</tool_call>"]),
    ({"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
     "messages", ["user", "q", "assistant", '<tool_call>\n{"name":"f","arguments":"{}"}\n</tool_call>']),
    ({"conversations": SHARED, "tools": "[]"}, "sharegpt", QA),
    ({"conversations": [*SHARED, {"from": "function_call", "value": "c"},
                        {"from": "observation", "value": "o"}]},
     "sharegpt", [*QA, "assistant", "c", "tool", "o"]),
    ({"conversations": CHAT}, "sharegpt", QA),
    ({"conversation": [{"human": "q", "assistant": "a"}, {"human": "r", "assistant": "b"}]},
     "conversation", [*QA, "user", "r", "assistant", "b"]),
    ({"conversation": CHAT}, "conversation", QA),
    ({"instruction": "i", "input": "x", "output": "a"}, "alpaca", ["user", "i\nx", "assistant", "a"]),
    ({"instruction": "i", "input": "  ", "output": "a"}, "alpaca", ["user", "i", "assistant", "a"]),
    ({"instruction": "", "input": "x", "output": "a"}, "alpaca", ["user", "x", "assistant", "a"]),
    ({"instruction": "i", "input": None, "response": "a"}, "alpaca", ["user", "i", "assistant", "a"]),
    ({"instruction": "i", "response": "a", "output": "a"}, "alpaca", ["user", "i", "assistant", "a"]),
    ({"instruction": "i", "context": "c", "response": "a", "category": "qa"}, "alpaca",
     ["user", "i\nc", "assistant", "a"]),
    ({"instruction": "i", "output": ["best", "worse"]}, "alpaca", ["user", "i", "assistant", "best"]),
    ({"instruction": "i", "output": "b", "history": [["q", "a"]], "system": "s"}, "alpaca",
     ["system", "s", *QA, "user", "i", "assistant", "b"]),
    ({"prompt": "q", "completion": "a"}, "prompt", QA),
    ({"prompt": "q", "response": "a"}, "prompt", QA),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "prompt", QA),
    ({"question": "q", "answer": "a"}, "question", QA),
    ({"question": "q", "answer": "a", "explanation": "because"}, "question",
     ["user", "q", "assistant", "because\na"]),
    ({"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": SHARED[1]}, "preference", QA),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", QA),
    ({"instruction": "i", "input": "x", "chosen": "a", "rejected": "b"}, "preference",
     ["user", "i\nx", "assistant", "a"]),
    ({"prompt": "q", "chosen": CHAT[1:], "rejected": []}, "preference", QA),
    ({"prompt": "q", "chosen": CHAT, "rejected": CHAT}, "preference", QA),
]  # fmt: skip


@pytest.mark.parametrize(("row", "shape", "turns"), CASES)
def test_shapes_by_hand(row: dict[str, Any], shape: str, turns: list[str]) -> None:
    before = copy.deepcopy(row)
    assert shape_of(row) == shape_of_keys(row) == shape
    assert SHAPES[shape](row) == turns
    assert row == before


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "empty"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is null"),
    ({"messages": [{"role": "user"}]}, "no content"),
    ({"messages": [{"content": "q"}]}, "no role"),
    ({"messages": [{"role": "bard", "content": "q"}]}, "unknown role 'bard'"),
    ({"messages": [{"role": ["user"], "content": "q"}]}, "unknown role"),
    ({"messages": ["q"]}, "messages[0] is text"),
    ({"messages": {"role": "user"}}, "an object, expected a list"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]}, "type 'image'"),
    ({"messages": [{"role": "user", "content": [3]}]}, "a number"),
    ({"conversations": [{"from": "human", "value": 3}]}, "a number, expected text"),
    ({"conversation": [{"human": "q"}]}, "not a pair"),
    ({"instruction": "i", "output": None}, "output is null"),
    ({"instruction": None, "output": "a"}, "instruction is null"),
    ({"instruction": "i", "output": 3}, "output is a number"),
    ({"instruction": "i", "output": []}, "empty list"),
    ({"instruction": "i", "output": True}, "a boolean"),
    ({"instruction": "i", "response": "a", "output": "b"}, "differ"),
    ({"instruction": "i", "input": 3, "output": "a"}, "input is a number"),
    ({"instruction": "i", "output": "a", "history": [["q"]]}, "history[0]"),
    ({"instruction": "i", "output": "a", "history": "q"}, "history is text"),
    ({"prompt": "q", "completion": None}, "null"),
    ({"question": {"stem": "q"}, "answer": "a"}, "an object"),
    ({"chosen": "a", "rejected": "b"}, "no prompt"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        SHAPES[str(shape_of_keys(row))](row)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "i"},
        {"question": "q", "answer": "A", "options": ["x", "y"]},
        {"question": {"stem": "q"}, "answerKey": "A"},
        {"question": {"stem": "q"}, "answer": "A"},
        {"conversations": "text"},
        {"text": "t"},
        {},
    ],
)
def test_other_rows_have_no_shape(row: dict[str, Any]) -> None:
    assert shape_of(row) is None


def _mutated(row: Any, draw: random.Random) -> Any:
    """A copy of the row with one thing changed, missing or added somewhere."""
    row = copy.deepcopy(row)
    places: list[tuple[Any, Any]] = []
    queue = [row]
    while queue:
        node = queue.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                queue.append(node[key])
    node, key = draw.choice(places)
    junk = draw.choice(
        [None, 3, 1.5, True, "", " ", "text", [], {}, ["user"], {"role": "user"}, [["a", "b"]], CHAT]
    )
    action = draw.randrange(4)
    if action == 0 and isinstance(node, dict):
        del node[key]
    elif action == 1 and isinstance(node, dict):
        extra = ["system", "name", "tool_calls", "source", "output", "response", "role", "from", "input"]
        node[draw.choice(extra)] = copy.deepcopy(junk)
    elif action == 2 and isinstance(node, list):
        node.insert(key, copy.deepcopy(junk))
    else:
        node[key] = copy.deepcopy(junk)
    return row


def test_quick_conversion_equals_the_careful_one() -> None:
    draw = random.Random(1)
    agreed = left = 0
    for _ in range(6000):
        row = draw.choice(CASES)[0]
        for _ in range(draw.randrange(3)):
            row = _mutated(row, draw) or row
        for shape in FAST:
            if shape_of_keys(row) != shape:
                continue
            try:
                quick = FAST[shape](row)
            except (KeyError, TypeError, AttributeError):
                left += 1
                continue
            assert quick == SHAPES[shape](row)
            agreed += 1
    assert agreed > 300 and left > 300
