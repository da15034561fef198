"""What a sentence encoder reads of a row: the texts of the two released codes, and the contents alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tamis.pools.pool import Message

INSTRUCTION = "Instruct: Given a sample, find the passages closest to that sample.\nQuery: "
"""Prefix of the queries for NV-Embed, as released; the second paper's code gives it to GTR too."""

_HALVES = re.compile("[\ud800-\udfff]")  # half a surrogate pair has no UTF-8, which tokenizers need


def conversation(messages: Sequence[Message], role: str, bos: str, eos: str) -> str:
    """Every turn under its tag, no special tokens; contents of answers stripped, and the whole text."""
    return "".join(_turn(message.role, _answer(message), "\n") for message in messages).strip()


def conversation_eos(messages: Sequence[Message], role: str, bos: str, eos: str) -> str:
    """The same with BOS in front and EOS after every answer, all contents stripped; a query has neither BOS
    nor its last EOS, a space before its label, and contents of its prompt as they are."""
    if role == "pool":
        turns = (_turn(m.role, m.content.strip(), _end(m, eos)) for m in messages)
        return bos + "".join(turns).strip()
    label = messages[-1:] if messages and messages[-1].role == "assistant" else []
    prompt = messages[: len(messages) - len(label)]
    text = "".join(_turn(m.role, _answer(m), _end(m, eos)) for m in prompt) + "<|assistant|>\n"
    return text + "".join(" " + message.content.strip() for message in label)


def contents(messages: Sequence[Message], role: str, bos: str, eos: str) -> str:
    """Contents alone, stripped, one below the other."""
    return "\n".join(message.content.strip() for message in messages)


TEXTS: dict[str, Callable[[Sequence[Message], str, str, str], str]] = {
    "conversation": conversation,
    "conversation-eos": conversation_eos,
    "contents": contents,
}
"""(messages, role "pool" or "query", BOS, EOS) → text, by name."""


def texts_of(
    form: str, conversations: Sequence[Sequence[Message]], role: str, bos: str = "", eos: str = ""
) -> list[str]:
    """The texts of rows; "" for a row whose contents are all blank."""
    write = TEXTS[form]
    return [
        _HALVES.sub("\ufffd", write(messages, role, bos, eos))
        if any(message.content.strip() for message in messages)
        else ""
        for messages in conversations
    ]


def _turn(role: str, content: str, end: str) -> str:
    return f"<|{role}|>\n{content}{end}"


def _answer(message: Message) -> str:
    return message.content.strip() if message.role == "assistant" else message.content


def _end(message: Message, eos: str) -> str:
    return (eos if message.role == "assistant" else "") + "\n"
