"""Chat templates: the tokenizer's own, four that are built in, or a Jinja file; compiled in a sandbox.

A template is a Jinja text over `messages` (each with `role` and `content`), the tokenizer's special tokens
(`bos_token`, `eos_token`, …), `add_generation_prompt` and `query`, which is true when the rows are rendered
as the query side. The built-in ones write no BOS: the one that the tokenizer adds by itself is put in front.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from tamis.core.errors import RequestError

# Contents are stripped, except those of the query side's prompt; the whole text ends without a newline.
_TULU = """\
{%- for m in messages -%}
{%- set content = m.content if query and m.role != 'assistant' else m.content | trim -%}
{%- set open = m.role == 'assistant' or add_generation_prompt or content or not loop.last -%}
{{ '<|' + m.role + '|>' }}{{ '\n' if open }}{{ content }}
{{- eos_token if m.role == 'assistant' }}{{ '\n' if add_generation_prompt or not loop.last }}
{%- endfor -%}
{{ '<|assistant|>\n' if add_generation_prompt }}"""

_ALPACA = """\
{%- if messages and messages[0].role == 'system' -%}
{{ messages[0].content | trim }}{% set turns = messages[1:] %}
{%- else -%}
Below is an instruction that describes a task. Write a response that appropriately completes the request.
{%- set turns = messages -%}
{%- endif -%}
{%- for m in turns -%}
{%- if m.role == 'user' -%}{{ '\n\n### Instruction:\n' + m.content | trim }}
{%- elif m.role == 'assistant' -%}{{ '\n\n### Response:\n' + m.content | trim }}{{ eos_token }}
{%- else -%}{{ raise_exception('the alpaca template has no place for a ' + m.role + ' turn here') }}
{%- endif -%}
{%- endfor -%}
{{ '\n\n### Response:\n' if add_generation_prompt }}"""

_CHATML = """\
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt }}"""

_NONE = """\
{%- for m in messages -%}
{{ m.content }}{{ eos_token if m.role == 'assistant' }}{{ '\n' if add_generation_prompt or not loop.last }}
{%- endfor -%}"""

BUILT_IN: Mapping[str, str] = {"tulu": _TULU, "alpaca": _ALPACA, "chatml": _CHATML, "none": _NONE}
"""Jinja text by name. `tulu` is T§1.2 with tool turns under `<|tool|>`; `alpaca` has no tool turns."""

TODAY = date(2024, 7, 26)
"""What `strftime_now` of a template shows: a fixed day, so that a rendering never depends on the clock."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template by the name it was asked for. `writes_bos`: it writes its BOS itself; none is added."""

    name: str
    text: str
    writes_bos: bool


def choose_template(template: str, tokenizer: Any) -> ChatTemplate:
    """`auto` (the tokenizer's own), a built-in name, or the path of a Jinja file.

    Raises RequestError when the tokenizer has no template, or the file cannot be read or compiled.
    """
    if template in BUILT_IN:
        return ChatTemplate(template, BUILT_IN[template], writes_bos=False)
    if template == "auto":
        return ChatTemplate("auto", _own_template(tokenizer), writes_bos=True)
    path = Path(template)
    if not path.is_file():
        raise RequestError(
            f"--template {template!r}: neither a file nor a known template; "
            f"known: auto, {', '.join(BUILT_IN)}, or the path of a Jinja file"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--template {template}: {error}") from error
    compiled(text, str(path))
    return ChatTemplate(path.name, text, writes_bos="bos_token" in text)


def _own_template(tokenizer: Any) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if not own:
        raise RequestError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: it has no chat template of its own; "
            f"choose one with --template: {', '.join(BUILT_IN)}, or the path of a Jinja file"
        )
    text: str = own
    compiled(text, f"chat template of {tokenizer.name_or_path or 'the tokenizer'}")
    return text


@lru_cache(maxsize=64)
def compiled(text: str, where: str = "template") -> Any:
    """The Jinja template of `text`, in a sandbox; raises RequestError with the line of a syntax error."""
    from jinja2 import TemplateSyntaxError

    try:
        return _environment().from_string(text)
    except TemplateSyntaxError as error:
        raise RequestError(f"{where}, line {error.lineno}: {error.message}") from error


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the model writes; masks do not need it, so it is only let through."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own convention

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson  # Jinja's own escapes for HTML
    environment.globals.update(raise_exception=raise_exception, strftime_now=TODAY.strftime)
    return environment
