"""Where the contents of a conversation's turns stand in its rendered text, without marks in the template.

The template is rendered once for each sequence of roles with a sentinel in place of every content. What
stands between the sentinels is the template's own text; a row's text must then be exactly that, with its
contents (as they are, or stripped as templates do) in between. A template whose own text depends on the
contents, such as one that rewrites <think> sections, fails that comparison and is searched turn by turn; what
cannot be found and checked is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Turn = tuple[str, str]
"""Role and content."""

Render = Callable[[Sequence[Turn], bool], str]
"""Text of turns, with the generation prompt or without; raises `Refused`."""

_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000(\\d+)\ue001")
_SPACE = re.compile(r"\s*")


class Refused(Exception):
    """A row that the template does not take, or whose turns cannot be found in the text; says why."""


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of an assistant turn: its content up to `content_end`, then its end of turn."""

    start: int
    content_end: int
    end: int


@dataclass(frozen=True)
class Layout:
    """The template's own text for one sequence of roles: `pieces` before, between and after the contents of
    the turns `order`; a turn that the template leaves out is `dropped`."""

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    dropped: int | None


class Locator:
    """Finds assistant turns in texts of one template. `stops`: texts of tokens that may end a turn."""

    def __init__(self, render: Render, stops: Sequence[str], eos: str) -> None:
        self._render = render
        self._layouts: dict[tuple[str, ...], Layout | None] = {}
        self._ends = tuple(dict.fromkeys(end for end in (self._tail(stops), eos) if end))

    def spans(self, turns: Sequence[Turn], text: str) -> list[Span]:
        """The assistant turns of `turns` in `text`, their rendering, in order; raises `Refused`."""
        layout = self._layout(tuple(role for role, _ in turns))
        answers = [i for i, (role, _) in enumerate(turns) if role == "assistant"]
        found = None
        if layout is not None:
            if layout.dropped is not None:
                role = turns[layout.dropped][0]
                raise Refused(f"the template leaves out message {layout.dropped} (role {role!r})")
            found = _match(layout, turns, text)
        if found is None:
            found = {i: self._search(i, turns, text) for i in answers}
        spans = [self._ended(text, *found[i]) for i in answers]
        for before, after in pairwise(spans):
            if before.end > after.start:
                raise Refused("two assistant turns overlap in the rendered text")
        return spans

    def _layout(self, roles: tuple[str, ...]) -> Layout | None:
        if roles not in self._layouts:
            if len(self._layouts) > 4096:  # conversations of many lengths; the table is only a cache
                self._layouts.clear()
            self._layouts[roles] = self._new_layout(roles)
        return self._layouts[roles]

    def _new_layout(self, roles: tuple[str, ...]) -> Layout | None:
        try:
            text = self._render([(role, _MARK.format(i)) for i, role in enumerate(roles)], False)
        except Refused:
            return None
        parts = _MARKS.split(text)
        order = tuple(int(number) for number in parts[1::2])
        dropped = [i for i in range(len(roles)) if i not in order]
        if len(set(order)) < len(order):
            return None
        return Layout(tuple(parts[::2]), order, dropped[0] if dropped else None)

    def _tail(self, stops: Sequence[str]) -> str:
        """What the template writes after the last assistant content: its end of turn."""
        layout = self._layout(("user", "assistant"))
        if layout is None or layout.order[-1:] != (1,):
            return ""
        tail = layout.pieces[-1].strip()
        known = [stop for stop in stops if tail.startswith(stop)]
        return max(known, key=len) if known else tail

    def _ended(self, text: str, start: int, end: int) -> Span:
        space = _SPACE.match(text, end)
        after = space.end() if space else end
        for stop in self._ends:
            if text.startswith(stop, after):
                return Span(start, end, after + len(stop))
        return Span(start, end, end)

    def _search(self, i: int, turns: Sequence[Turn], text: str) -> tuple[int, int]:
        """Turn i by rendering the conversation with only its content replaced."""
        content, mark = turns[i][1], _MARK.format(i)
        while any(mark in other for _, other in turns):
            mark = mark[0] + mark
        marked = self._render([*turns[:i], ("assistant", mark), *turns[i + 1 :]], False)
        parts = marked.split(mark)
        if len(parts) != 2:
            raise Refused(f"the template shows assistant message {i} {len(parts) - 1} times")
        before, after = parts
        end = len(text) - len(after)
        around = text.startswith(before) and text.endswith(after) and len(before) <= end
        if around and text[len(before) : end] in _variants(content):
            return len(before), end
        prompt = self._render(turns[:i], True)
        after = after[len(after) - _common_suffix(text, after) :]
        end = len(text) - len(after)
        if text.startswith(prompt) and len(prompt) <= end and _kept(text[len(prompt) : end], content):
            return len(prompt), end
        raise Refused(f"the template rewrites assistant message {i}; its text was not found in the rendering")


def _match(layout: Layout, turns: Sequence[Turn], text: str) -> dict[int, tuple[int, int]] | None:
    """Place of every content, when `text` is exactly the layout's pieces with the contents in between."""
    if not text.startswith(layout.pieces[0]):
        return None
    at, found = len(layout.pieces[0]), {}
    for i, piece in zip(layout.order, layout.pieces[1:], strict=True):
        for content in _variants(turns[i][1]):
            if text.startswith(content, at) and text.startswith(piece, at + len(content)):
                found[i] = (at, at + len(content))
                at += len(content) + len(piece)
                break
        else:
            return None
    return found if at == len(text) else None


def _variants(content: str) -> Iterator[str]:
    """The content as templates write it: as it is, stripped, or only what follows a <think> section."""
    yield content
    if content[:1].isspace() or content[-1:].isspace():
        yield content.rstrip()
        yield content.lstrip()
        yield content.strip()
        yield from (content.rstrip("\n"), content.lstrip("\n"), content.strip("\n"))
    if "</think>" in content:
        answer = content.split("</think>")[-1]
        yield from (answer, answer.lstrip("\n"), answer.strip())


def _kept(shown: str, content: str) -> bool:
    """Whether `shown` is the content up to white space, or what follows its <think> section."""
    shown, content = "".join(shown.split()), "".join(content.split())
    left_out = content[: len(content) - len(shown)]
    return content.endswith(shown) and (not left_out or left_out.endswith("</think>"))


def _common_suffix(a: str, b: str) -> int:
    size = 0
    while size < min(len(a), len(b)) and a[-1 - size] == b[-1 - size]:
        size += 1
    return size
