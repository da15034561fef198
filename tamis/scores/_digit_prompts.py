"""What a digit scorer is asked: one prompt for each exchange of a row, whose end is never cut."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.extras import need

if TYPE_CHECKING:
    from tamis.models.render import Renderer
    from tamis.pools.pool import Message

PLAIN = {
    "complexity": "Rate how complex this query is.\n##Query: {instruction}\n##Complexity: ",
    "quality": (
        "Rate how good this response is.\n#Question#:\n{instruction}\n#Response#:\n{response}\n##Quality: "
    ),
}
"""Prompts of our own, for scorers that were tuned with them; a published scorer needs its own words."""
MARKS = {"complexity": "##Complexity:", "quality": "##Quality:"}
_FIELDS = re.compile(r"\{(instruction|response|output)\}")
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')


@dataclass(frozen=True)
class Exchange:
    """What was asked (all that was said since the last answer, joined by newlines) and the answer."""

    instruction: str
    response: str


def exchanges(messages: Sequence[Message]) -> list[Exchange]:
    """The exchanges of a row in which something is asked and something is answered.

    Answers in a row are one answer, joined by a newline; what follows the last answer is left out.
    """
    found: list[Exchange] = []
    said: list[str] = []
    for message in messages:
        if message.role != "assistant":
            said.append(message.content)
        elif said or not found:
            found.append(Exchange("\n".join(said), message.content))
            said = []
        else:
            found[-1] = Exchange(found[-1].instruction, f"{found[-1].response}\n{message.content}")
    return [each for each in found if each.instruction.strip() and each.response.strip()]


@dataclass(frozen=True)
class Prompt:
    """A template cut at its places: `words[0]`, field, `words[1]`, field, …, `words[-1]`."""

    words: tuple[str, ...]
    fields: tuple[str, ...]

    def text(self, exchange: Exchange) -> tuple[str, int, int]:
        """The prompt, and where the content of its last place begins and ends, in characters."""
        text, begin = self.words[0], 0
        for field, following in zip(self.fields, self.words[1:], strict=True):
            begin = len(text)
            text += exchange.instruction if field == "instruction" else exchange.response
            end = len(text)
            text += following
        # Half a surrogate pair has no UTF-8, which tokenizers need; one character for one.
        return text.encode("utf-8", "replace").decode(), begin, end


def parsed(text: str, aspect: str) -> Prompt:
    """A template with the places that `aspect` needs; raises RequestError for another."""
    parts = _FIELDS.split(text)
    fields = tuple("response" if field == "output" else field for field in parts[1::2])
    wanted = {"instruction"} if aspect == "complexity" else {"instruction", "response"}
    if set(fields) != wanted or not parts[-1].strip():
        places = " and ".join("{" + field + "}" for field in sorted(wanted))
        raise RequestError(
            f"{aspect}: the scorer's prompt must have {places}, and end with words after them "
            f"(such as {MARKS[aspect]}); got {text!r}"
        )
    return Prompt(tuple(parts[0::2]), fields)


def prompt_of(given: str, aspect: str, model: str) -> str:
    """The template that `given` stands for: "card", "plain", a template itself, or the path of a file.

    A file's last line break is not part of it. Raises RequestError when there is none.
    """
    if given == "plain":
        return PLAIN[aspect]
    if given == "card":
        return _from_card(aspect, model)
    if "{instruction}" in given:
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise RequestError(
            f"{aspect} prompt {given!r}: expected 'card', 'plain', a text with {{instruction}}, or a file"
        )
    return path.read_bytes().decode("utf-8").removesuffix("\n").removesuffix("\r")


def _from_card(aspect: str, model: str) -> str:
    """The string of the model's card (README.md) that has the scorer's mark and a place for the text."""
    why = "it has no README.md"
    path = _card(model)
    if path is not None:
        why = f"its README.md has no string with {{instruction}} and {MARKS[aspect]}"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if MARKS[aspect] not in line or "{instruction}" not in line:
                continue
            for literal in _LITERAL.findall(line):
                if MARKS[aspect] in literal:
                    return str(ast.literal_eval(literal))
    raise RequestError(
        f"{model}: the prompt that this scorer was tuned with is not known, for {why}; give it to the last "
        f"space in a file: prompt=FILE, or prompt=plain for the words of tamis ({aspect})"
    )


def _card(model: str) -> Path | None:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / "README.md" if (folder / "README.md").is_file() else None
    hub = need("huggingface_hub", extra="lm")
    try:
        return Path(hub.hf_hub_download(model, "README.md"))
    except (OSError, ValueError, hub.errors.HfHubHTTPError):
        return None


def digit_tokens(tokenizer: Any, model: str, digits: Sequence[int] = range(1, 7)) -> np.ndarray:
    """Ids (6,) int64 of the tokens "1" to "6".

    The tokens that are the bare digits, if all six are in the vocabulary; else those of a digit after a
    space, if each is one token. Raises RequestError otherwise, or when two are the same.
    """
    vocabulary = tokenizer.get_vocab()
    bare = [vocabulary.get(str(digit)) for digit in digits]
    spaced = [tokenizer.encode(f" {digit}", add_special_tokens=False) for digit in digits]
    if None not in bare:
        found = bare
    elif all(len(ids) == 1 for ids in spaced):
        found = [ids[0] for ids in spaced]
    else:
        missing = [str(d) for d, b, s in zip(digits, bare, spaced, strict=True) if b is None and len(s) != 1]
        raise RequestError(
            f"{model} cannot be a scorer: its tokenizer has no single token for the digits "
            f"{', '.join(missing or map(str, digits))}"
        )
    if len(set(found)) < len(found) or tokenizer.unk_token_id in found:
        raise RequestError(f"{model} cannot be a scorer: its tokenizer does not tell the digits apart")
    return np.array(found, np.int64)


def prompt_ids(
    renderer: Renderer, prompt: Prompt, asked: Sequence[Exchange], most: int
) -> tuple[list[np.ndarray | None], np.ndarray]:
    """Token ids of the prompts, each after the BOS that the tokenizer adds, and which (b,) were shortened.

    What is too long loses the end of its last place (the response, or the query), never the words after it;
    None where nothing of that place would be left.
    """
    texts = [prompt.text(exchange) for exchange in asked]
    ids: list[np.ndarray | None] = list(renderer.token_ids([text for text, _, _ in texts]))
    long = np.array([len(each) > most for each in ids if each is not None], bool)
    for i in np.flatnonzero(long):
        ids[i] = _shortened(renderer, *texts[i], most)
    return ids, long


def _shortened(renderer: Renderer, text: str, begin: int, end: int, most: int) -> np.ndarray | None:
    (ids,) = renderer.token_ids([text])
    offsets = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = np.array([start for start, _ in offsets["offset_mapping"]])
    opening = len(ids) - len(starts)
    after = int((starts >= end).sum())
    kept = most - after
    if kept <= opening + int((starts < begin).sum()):
        return None
    return np.concatenate([ids[:kept], ids[len(ids) - after :]])
