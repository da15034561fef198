"""Messages to token ids and loss mask: the one place where that happens.

A token is supervised when it holds at least one character of an assistant turn, which runs from the first
character of its content to the end of its end-of-turn token. Places are characters of the rendered text,
found and checked by `spans.py`; no template needs to mark them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from tamis.core.digest import digest
from tamis.core.errors import RequestError
from tamis.models._reference_mask import reference_masks
from tamis.models.spans import Locator, Refused, Span, Turn
from tamis.models.templates import choose_template, compiled

_BATCH_ROWS = 512
_SURROGATES = re.compile("[\ud800-\udfff]")


class Message(Protocol):
    """One message of a conversation."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


@dataclass(frozen=True)
class Rendered:
    """A row as a model sees it. `status` is a word of `tamis.core.status`; `reason` says why it was refused.

    `straddling`: supervised tokens that also hold characters outside the assistant turns. `empty_response`:
    every assistant content is blank, so that only end-of-turn tokens are supervised.
    """

    ids: np.ndarray  # (L,) int32, truncated on the right
    mask: np.ndarray  # (L,) bool, True = supervised
    tokens_full: int  # tokens before truncation
    truncated: bool
    status: str  # ok, truncated, no_target_tokens, refused
    reason: str = ""
    straddling: int = 0
    empty_response: bool = False
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # ids that were cut off


@dataclass(frozen=True)
class _Text:
    text: str
    spans: list[Span]
    empty_response: bool


class Renderer:
    """Renders rows by one template and one tokenizer.

    `template`: auto, tulu, alpaca, chatml, none, or the path of a Jinja file (see `templates.py`).
    `max_tokens`: rows are cut on the right; on the query side prompt and label are cut each for itself.
    `compatible`: labels exactly as the published encoder of the Tulu text makes them (T§1.3), where the
    newline after every assistant turn but the last is a target too; only with `template="tulu"`.
    Raises RequestError when the tokenizer has no template of its own, or gives no character offsets.
    """

    def __init__(
        self, tokenizer: Any, template: str = "auto", max_tokens: int = 2048, compatible: bool = False
    ) -> None:
        if max_tokens < 1:
            raise RequestError(f"max_tokens={max_tokens}: expected at least 1")
        if not tokenizer.is_fast:
            raise RequestError(
                f"{tokenizer.name_or_path}: {type(tokenizer).__name__} gives no character "
                "offsets, which the loss mask needs; use a model with a tokenizer.json"
            )
        if compatible and template != "tulu":
            raise RequestError(f"compatible labels are those of the template 'tulu', not of {template!r}")
        self.tokenizer = tokenizer
        self.template = choose_template(template, tokenizer)
        self.max_tokens = max_tokens
        self.compatible = compatible
        self._special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        self._backend = tokenizer.backend_tokenizer
        self._opening = [] if self.template.writes_bos else _opening(self._backend)
        self._locator = Locator(self._write, _stops(tokenizer), self._special.get("eos_token", ""))

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What determines the token ids and masks."""
        return {
            "template": digest(self.template.text),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "max_tokens": self.max_tokens,
            "compatible": self.compatible,
        }

    @property
    def eos(self) -> str:
        """Text of the tokenizer's EOS token, empty when it has none."""
        return self._special.get("eos_token", "")

    def text(self, messages: Sequence[Message], generation: bool = False) -> str:
        """The rendered text, with the generation prompt when `generation`; raises `Refused`."""
        return self._write(_turns(messages), generation)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """One conversation; a row that the template does not take has the status `refused`."""
        return self.render_many([messages])[0]

    def render_many(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Many conversations, tokenised in batches; in the order given."""
        return [row for batch in _batches(conversations) for row in self._render_batch(batch)]

    def render_query(self, messages: Sequence[Message]) -> Rendered:
        """One query (T§1.4); see `render_queries`."""
        return self.render_queries([messages])[0]

    def render_queries(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """The query side: the prompt is all but the last turn with the generation prompt, the label the last
        turn up to its end of turn without BOS; each tokenised and truncated for itself, all of the label
        supervised. A conversation that ends with a user turn is all prompt."""
        texts: list[tuple[str, str, bool] | Refused] = []
        for messages in conversations:
            try:
                texts.append(self._query_texts(_turns(messages)))
            except Refused as refused:
                texts.append(refused)
        good = [text for text in texts if not isinstance(text, Refused)]
        prompts = iter(self.token_ids([prompt for prompt, _, _ in good]))
        labels = iter(self.token_ids([label for _, label, _ in good], opening=False))
        return [
            _refused(text) if isinstance(text, Refused) else self._query(next(prompts), next(labels), text[2])
            for text in texts
        ]

    def render_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """What comes before the first assistant turn, with the generation prompt; nothing of it supervised.

        A conversation without anything before it has no prompt: `no_target_tokens`.
        """
        texts: list[str | Refused] = []
        for messages in conversations:
            turns = _turns(messages)
            first = next((i for i, (role, _) in enumerate(turns) if role == "assistant"), len(turns))
            try:
                texts.append(self._write(turns[:first], True) if first else "")
            except Refused as refused:
                texts.append(refused)
        ids = iter(self.token_ids([text for text in texts if isinstance(text, str)]))
        return [
            _refused(text) if isinstance(text, Refused) else self._prompt(next(ids), bool(text))
            for text in texts
        ]

    def token_ids(self, texts: Sequence[str], opening: bool = True) -> list[np.ndarray]:
        """Untruncated ids (L,) int32 of texts; `opening`: after the BOS that the tokenizer adds, if any."""
        head = np.array(self._opening if opening else [], dtype=np.int32)
        return [
            np.concatenate([head, np.array(encoded.ids, dtype=np.int32)])
            for batch in _batches(texts)
            for encoded in self._encode(batch)
        ]

    @cached_property
    def bos_ids(self) -> np.ndarray:
        """Ids (0 or 1,) int32 that open every rendering of a whole conversation."""
        if self._opening:
            return np.array(self._opening, dtype=np.int32)
        bos = self._special.get("bos_token", "")
        try:
            written = bool(bos) and self._write([("user", "x")], False).startswith(bos)
        except Refused:
            written = False
        return np.array([self.tokenizer.bos_token_id] if written else [], dtype=np.int32)

    def query_texts(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Prompt and label of the query side, as texts; raises `Refused`."""
        return self._query_texts(_turns(messages))[:2]

    # --- text ------------------------------------------------------------------------------------------

    def _write(self, turns: Sequence[Turn], generation: bool, query: bool = False) -> str:
        from jinja2 import TemplateError

        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text: str = compiled(self.template.text).render(
                messages=messages, add_generation_prompt=generation, query=query, **self._special
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise Refused(f"the template refuses this row: {error}") from error
        if not text.isascii():
            text = _SURROGATES.sub("\ufffd", text)  # half a surrogate pair has no encoding; one for one
        return text

    def _located(self, turns: Sequence[Turn]) -> _Text:
        turns = [(role, _encodable(content)) for role, content in turns]
        text = self._write(turns, False)
        answers = [content for role, content in turns if role == "assistant"]
        blank = bool(answers) and not any(content.strip() for content in answers)
        return _Text(text, self._locator.spans(turns, text), blank)

    def _query_texts(self, turns: list[Turn]) -> tuple[str, str, bool]:
        if not turns or turns[-1][0] != "assistant":
            return self._write(turns, True, query=True), "", False
        prompt = self._write(turns[:-1], True, query=True)
        whole = self._located(turns)
        span = whole.spans[-1]
        start = len(prompt) if whole.text.startswith(prompt) and len(prompt) <= span.start else span.start
        return prompt, whole.text[start : span.end], not turns[-1][1].strip()

    # --- tokens ----------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str]) -> Any:
        self._backend.no_truncation()
        self._backend.no_padding()
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def _render_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        located: list[_Text | Refused] = []
        for messages in conversations:
            try:
                located.append(self._located(_turns(messages)))
            except Refused as refused:
                located.append(refused)
        encoded = iter(self._encode([row.text for row in located if isinstance(row, _Text)]))
        rows = [
            _refused(row) if isinstance(row, Refused) else self._row(row, next(encoded)) for row in located
        ]
        if self.compatible:
            masks = reference_masks(self, [_turns(messages) for messages in conversations], rows)
            rows = [_with_mask(row, mask) for row, mask in zip(rows, masks, strict=True)]
        return rows

    def _row(self, row: _Text, encoded: Any) -> Rendered:
        ids = np.array(self._opening + encoded.ids, dtype=np.int32)
        mask = np.zeros(len(ids), dtype=bool)
        straddling = 0
        if row.spans and encoded.ids:
            start, end = np.array(encoded.offsets, dtype=np.int64).T
            for span in row.spans:
                # A token without characters (a dropped space) belongs to where it stands.
                inside = (start < span.end) & ((end > span.start) | ((start == end) & (start >= span.start)))
                mask[len(self._opening) :] |= inside
                straddling += int((inside & ((start < span.start) | (end > span.end))).sum())
        return self._cut(ids, mask, straddling, row.empty_response)

    def _cut(self, ids: np.ndarray, mask: np.ndarray, straddling: int, empty_response: bool) -> Rendered:
        kept = mask[: self.max_tokens]
        truncated = len(ids) > self.max_tokens
        status = "truncated" if truncated else "ok"
        if not kept.any():
            status = "no_target_tokens"
        ids, tail = ids[: self.max_tokens], ids[self.max_tokens :]
        full = len(ids) + len(tail)
        return Rendered(ids, kept, full, truncated, status, "", straddling, empty_response, tail)

    def _prompt(self, ids: np.ndarray, there: bool) -> Rendered:
        kept = ids[: self.max_tokens] if there else ids[:0]
        truncated = len(ids) > len(kept) > 0
        status = "no_target_tokens" if not len(kept) else "truncated" if truncated else "ok"
        reason = "" if there else "nothing comes before the first answer"
        return Rendered(kept, np.zeros(len(kept), bool), len(ids), truncated, status, reason)

    def _query(self, prompt: np.ndarray, label: np.ndarray, empty_response: bool) -> Rendered:
        ids = np.concatenate([prompt[: self.max_tokens], label[: self.max_tokens]])
        mask = np.zeros(len(ids), dtype=bool)
        mask[len(ids) - len(label[: self.max_tokens]) :] = True
        full = len(prompt) + len(label)
        status = "no_target_tokens" if not mask.any() else "truncated" if full > len(ids) else "ok"
        return Rendered(ids, mask, full, full > len(ids), status, "", 0, empty_response)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of what a tokenizer does (vocabulary, rules, special tokens), whatever files it came from."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding", "version"):  # set by whoever used it last
        rules.pop(state, None)
    return digest({"rules": rules, "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()}})


def _turns(messages: Sequence[Message]) -> list[Turn]:
    return [(message.role, message.content) for message in messages]


def _encodable(content: str) -> str:
    return content if content.isascii() else _SURROGATES.sub("\ufffd", content)


def _batches(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), _BATCH_ROWS):
        yield rows[start : start + _BATCH_ROWS]


def _opening(backend: Any) -> list[int]:
    """Ids that the tokenizer puts in front of a text by itself."""
    bare: list[int] = backend.encode("a", add_special_tokens=False).ids
    full: list[int] = backend.encode("a", add_special_tokens=True).ids
    return next((full[:k] for k in range(len(full)) if full[k : k + len(bare)] == bare), [])


def _stops(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]


def _refused(refused: Refused) -> Rendered:
    return Rendered(np.zeros(0, np.int32), np.zeros(0, bool), 0, False, "refused", str(refused))


def _with_mask(row: Rendered, mask: np.ndarray) -> Rendered:
    if row.status == "refused":
        return row
    status = "no_target_tokens" if not mask.any() else "truncated" if row.truncated else "ok"
    return replace(row, mask=mask, status=status)
