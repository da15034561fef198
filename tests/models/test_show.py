"""Rows in colour: every character is shown, in the colour of its token."""

from __future__ import annotations

from tamis.models.render import Renderer
from tamis.models.show import CUT, PROMPT, SUPERVISED, escaped, pieces, show
from tests.models.tiny import QWEN, talk, tokenizer


def runs(text) -> list[tuple[str, str]]:
    """(style, characters) of neighbours with one style, joined."""
    found: list[tuple[str, str]] = []
    for span in text.spans:
        style, part = str(span.style), text.plain[span.start : span.end]
        if found and found[-1][0] == style:
            part = found.pop()[1] + part
        found.append((style, part))
    return found


def test_colours_follow_the_mask():
    own = tokenizer(QWEN)
    row = Renderer(own, "auto").render(talk("system:S", "user:日本 é?", "assistant:naïve 👩‍👩‍👧"))
    assert runs(show(row, own)) == [
        (
            PROMPT,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n日本 é?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (SUPERVISED, "naïve 👩‍👩‍👧<|im_end|>"),
        (PROMPT, "\n"),
    ]


def test_what_was_cut_off_is_struck_through():
    own = tokenizer()
    messages = talk("user:a", "assistant:rain rain")
    whole = Renderer(own, "tulu").render(messages)
    row = Renderer(own, "tulu", max_tokens=len(whole.ids) - 1).render(messages)
    assert runs(show(row, own))[-2:] == [(SUPERVISED, "rain rain"), (CUT, "</s>")]


def test_boundaries_and_pieces():
    own = tokenizer()
    row = Renderer(own, "none").render(talk("user:the sum 日"))
    parts = [text for _, text in pieces(row.ids, own)]
    assert "".join(parts) == "the sum 日" and " 日" in parts
    assert show(row, own, boundaries=True).plain == "|".join(parts)


def test_control_characters_are_escaped():
    assert escaped("a\x1b[31m\x00\n\tb\u202ec\u200d\x85") == "a\\x1b[31m\\x00\n\tb\\u202ec\u200d\\x85"


def test_a_refused_row_says_why():
    own = tokenizer("{{ raise_exception('no rows today') }}")
    assert "no rows today" in show(Renderer(own, "auto").render(talk("user:a")), own).plain
