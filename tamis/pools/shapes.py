"""Row shapes found by looking at the keys of a row: which columns hold the turns of the conversation.

    preference     chosen + rejected, and a prompt: the chosen side is read
    messages       messages: [{role, content}, …]; contents are text or lists of typed parts
    sharegpt       conversations: [{from, value}, …]
    conversation   conversation: [{human, assistant}, …] or either of the two above
    alpaca         instruction (+ input or context) and output or response; history: [[query, answer], …]
    prompt         prompt and completion or response
    question       question and answer (+ explanation, which comes before the answer)

The turns of a row are one flat list of text, `[role, content, role, content, …]`, with the roles `system`,
`user`, `assistant` and `tool`. Contents are never changed; the rules that join or render several fields into
one text stand with the functions below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from tamis.core.errors import PoolError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
"""The roles that rows use, and the four that tamis uses."""

Turns = list[str]


class BadRow(PoolError):
    """One row cannot be read; the message is the reason alone, the reader adds file and line."""


def named(value: object) -> str:
    """Word for the type of a JSON value, for messages."""
    if value is None:
        return "null"
    words = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return words.get(type(value), type(value).__name__)


def text_of(value: object, where: str) -> str:
    """`value` when it is text; else the row is bad."""
    if type(value) is not str:
        raise BadRow(f"{where} is {named(value)}, expected text")
    return value


def _field(row: Mapping[str, Any], *names: str) -> str:
    """Text of the one of `names` that the row has; several are fine when they are equal."""
    found = [name for name in names if row.get(name) is not None]
    if not found:
        given = [name for name in names if name in row]
        raise BadRow(f"{given[0]} is null, expected text" if given else f"no field {' or '.join(names)}")
    first = row[found[0]]
    for name in found[1:]:
        if row[name] != first:
            raise BadRow(f"{found[0]} and {name} differ; keep one, or name one with a map")
    return text_of(first, found[0])


def _optional(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else text_of(value, name)


def _system(row: Mapping[str, Any]) -> Turns:
    system = _optional(row, "system")
    return ["system", system] if system.strip() else []


# --- lists of turns --------------------------------------------------------------------------------------


def part_text(part: Any, where: str) -> str:
    """Text of one typed part: reasoning in `<think>` tags, a tool call as JSON in `<tool_call>` tags."""
    if type(part) is str:
        return part
    if type(part) is not dict:
        raise BadRow(f"{where} is {named(part)}, expected a part with a type")
    kind = part.get("type")
    value = next((part[key] for key in ("text", "value", kind) if key in part and key != "type"), None)
    if kind == "text":
        return text_of(value, where)
    if kind in ("reasoning", "thinking"):
        return f"<think>\n{text_of(value, where)}\n</think>"
    if kind == "tool_call":
        return _call_text(value, where)
    raise BadRow(f"{where} is a part of type {kind!r}, expected text, reasoning or tool_call")


def _call_text(value: Any, where: str) -> str:
    if type(value) is dict:
        value = orjson.dumps(value).decode()
    return f"<tool_call>\n{text_of(value, where)}\n</tool_call>"


def _content(turn: Mapping[str, Any], key: str, where: str) -> str:
    value = turn.get(key)
    calls = turn.get("tool_calls") or []
    if type(calls) is not list:
        raise BadRow(f"{where}.tool_calls is {named(calls)}, expected a list")
    parts: list[str] = []
    if type(value) is list:
        parts = [part_text(part, f"{where}.{key}[{i}]") for i, part in enumerate(value)]
    elif value is not None or not calls:
        if key not in turn:
            raise BadRow(f"{where} has no {key}")
        parts = [text_of(value, f"{where}.{key}")]
    if calls and parts == [""]:
        parts = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if type(call) is dict else call
        parts.append(_call_text(function, f"{where}.tool_calls[{i}]"))
    return "\n".join(parts)


def turn_list(turns: Any, where: str) -> Turns:
    """Turns of a list of `{role, content}` or `{from, value}`; line breaks join the parts of one content."""
    if type(turns) is not list:
        raise BadRow(f"{where} is {named(turns)}, expected a list of turns")
    if not turns:
        raise BadRow(f"{where} is empty")
    flat: Turns = []
    for i, turn in enumerate(turns):
        here = f"{where}[{i}]"
        if type(turn) is not dict:
            raise BadRow(f"{here} is {named(turn)}, expected an object with role and content")
        role_key, key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
        if role_key not in turn:
            raise BadRow(f"{here} has no role; its keys are {', '.join(map(str, turn)) or 'none'}")
        role = turn[role_key]
        if type(role) is not str or role not in ROLES:
            raise BadRow(f"{here} has the unknown role {role!r}; known: {', '.join(ROLES)}")
        flat += (ROLES[role], _content(turn, key, here))
    return flat


def _with_system(row: Mapping[str, Any], flat: Turns) -> Turns:
    return flat if flat[0] == "system" else _system(row) + flat


# --- the shapes ------------------------------------------------------------------------------------------


def messages(row: dict[str, Any]) -> Turns:
    """`messages`, with the row's own `system` before them when they have none."""
    return _with_system(row, turn_list(row["messages"], "messages"))


def sharegpt(row: dict[str, Any]) -> Turns:
    """`conversations`, with the row's own `system` before them when they have none."""
    return _with_system(row, turn_list(row["conversations"], "conversations"))


def conversation(row: dict[str, Any]) -> Turns:
    """`conversation`: pairs of human and assistant, or a list of turns."""
    pairs = row["conversation"]
    if type(pairs) is not list or not pairs or type(pairs[0]) is not dict or "human" not in pairs[0]:
        return _with_system(row, turn_list(pairs, "conversation"))
    flat: Turns = []
    for i, pair in enumerate(pairs):
        here = f"conversation[{i}]"
        if type(pair) is not dict or "human" not in pair or "assistant" not in pair:
            raise BadRow(f"{here} is not a pair of human and assistant")
        flat += ("user", text_of(pair["human"], f"{here}.human"))
        flat += ("assistant", text_of(pair["assistant"], f"{here}.assistant"))
    return _with_system(row, flat)


def asked(instruction: str, context: str) -> str:
    """Instruction and input joined by a line break; an empty one of the two leaves no trace."""
    if not context.strip():
        return instruction
    return f"{instruction}\n{context}" if instruction.strip() else context


def alpaca(row: dict[str, Any]) -> Turns:
    """`instruction`, a line break and `input` or `context`; of a list of outputs (best first) the first."""
    instruction = _field(row, "instruction")
    context = row.get("input")
    if context is None:
        context = row.get("context")
    context = "" if context is None else text_of(context, "input" if "input" in row else "context")
    output = row.get("output")
    if type(output) is list:
        if not output:
            raise BadRow("output is an empty list")
        output = text_of(output[0], "output[0]")
    else:
        output = _field(row, "output", "response")
    flat = _system(row)
    for i, pair in enumerate(_history(row)):
        if type(pair) is not list or len(pair) != 2:
            raise BadRow(f"history[{i}] is not a pair of query and answer")
        flat += ("user", text_of(pair[0], f"history[{i}][0]"))
        flat += ("assistant", text_of(pair[1], f"history[{i}][1]"))
    flat += ("user", asked(instruction, context), "assistant", output)
    return flat


def _history(row: Mapping[str, Any]) -> list[Any]:
    history = row.get("history")
    if history is None:
        return []
    if type(history) is not list:
        raise BadRow(f"history is {named(history)}, expected a list of pairs")
    return history


def prompt(row: dict[str, Any]) -> Turns:
    """`prompt` and `completion` or `response`; either may be a list of turns."""
    if type(row["prompt"]) is list:
        flat = turn_list(row["prompt"], "prompt")
    else:
        flat = [*_system(row), "user", _field(row, "prompt")]
    if type(row.get("completion")) is list:
        return flat + turn_list(row["completion"], "completion")
    return [*flat, "assistant", _field(row, "completion", "response")]


def question(row: dict[str, Any]) -> Turns:
    """`question` and `answer`; an `explanation` comes first, then a line break and the answer."""
    answer = _field(row, "answer")
    explanation = _optional(row, "explanation")
    if explanation.strip():
        answer = f"{explanation}\n{answer}"
    return [*_system(row), "user", _field(row, "question"), "assistant", answer]


def preference(row: dict[str, Any]) -> Turns:
    """The chosen side after its prompt; a chosen list that does not begin with the assistant is whole."""
    chosen = row["chosen"]
    if type(chosen) is list:
        flat = turn_list(chosen, "chosen")
        if flat[0] != "assistant":
            return _with_system(row, flat)
    elif type(chosen) is dict:
        flat = turn_list([chosen], "chosen")
    else:
        flat = ["assistant", text_of(chosen, "chosen")]
    for name in ("messages", "conversations", "prompt"):
        if type(row.get(name)) is list:
            return _with_system(row, turn_list(row[name], name) + flat)
    if "instruction" in row:
        return [*_system(row), "user", asked(_field(row, "instruction"), _optional(row, "input")), *flat]
    for name in ("prompt", "question"):
        if name in row:
            return [*_system(row), "user", _field(row, name), *flat]
    raise BadRow("chosen has no prompt beside it (prompt, instruction, question, messages or conversations)")


SHAPES: dict[str, Callable[[dict[str, Any]], Turns]] = {
    "preference": preference,
    "messages": messages,
    "sharegpt": sharegpt,
    "conversation": conversation,
    "alpaca": alpaca,
    "prompt": prompt,
    "question": question,
}
_LISTS = {"messages": "messages", "sharegpt": "conversations", "conversation": "conversation"}


def shape_of_keys(keys: Iterable[str]) -> str | None:
    """Name of the shape that rows with these keys have, or None."""
    names = set(keys)
    if {"chosen", "rejected"} <= names:
        return "preference"
    for shape, column in _LISTS.items():
        if column in names:
            return shape
    if "instruction" in names and names & {"output", "response"}:
        return "alpaca"
    if "prompt" in names and names & {"completion", "response"}:
        return "prompt"
    # with options beside it, the question alone would be asked and the options lost
    if {"question", "answer"} <= names and not names & {"options", "choices"}:
        return "question"
    return None


def shape_of(row: dict[str, Any]) -> str | None:
    """Name of the shape of a row; None too when the column of a list of turns holds something else."""
    shape = shape_of_keys(row)
    if shape in _LISTS and type(row[_LISTS[shape]]) is not list:
        return None
    if shape == "question" and type(row["question"]) is dict:
        return None
    return shape
