"""Maps: how rows of a format of one's own become turns.

A field map, `instruction=q,output=a`, renames columns to the names of a known shape (`FIELDS`). A mapping file is
a YAML list; the first entry whose `match` fits the path of a file is used for every row of that file:

    - match: "data/quiz_*.jsonl*"      # glob, compared from the right end of the path, folder by folder
      turns:                           # a template for each turn …
        - {role: user, content: "{{ question.stem }}"}
        - {role: assistant, content: "{{ answer }}"}
      # … or, in place of turns:
      fields: {instruction: q, output: a}        # a field map
      messages_from: dialog                      # a column that holds a list of turns, or JSON text of one
      tokens: {column: text, roles: {"<|user|>": user, "<|ai|>": assistant}, drop: ["<|eos|>"]}
      # and, wherever wanted:
      each: [paragraphs, qas]          # one row for each item of a list, or of lists in lists
      source: "{{ task }}"             # the source of the row
      columns: [question, A, B, answer]          # names of the cells of a CSV or TSV file
      header: false                    # its first line is data
      delimiter: "\\t"
      quoted: false                    # quotes are text, every line is a row

Templates are Jinja in a sandbox over the columns of the row; with `each`, over those of the item too (an item
that is not an object is `item`). A missing field, null, a list or an object in a text makes the row bad. Loops
run over lists of the row alone: there is no `range`, and nothing that multiplies or pads text.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import jinja2
import jinja2.sandbox
import orjson
import yaml

from tamis.core.errors import RequestError, unknown_name
from tamis.pools.shapes import ROLES, SHAPES, BadRow, Turns, named, shape_of_keys, text_of, turn_list

FIELDS = (
    "instruction", "input", "context", "output", "response", "history", "prompt", "completion", "question",
    "answer", "explanation", "system", "messages", "conversations", "conversation", "chosen", "rejected", "source",
)  # fmt: skip
_WAYS = ("turns", "fields", "messages_from", "tokens")
_KEYS = ("match", *_WAYS, "each", "source", "columns", "header", "delimiter", "quoted")
_METHODS = frozenset(
    "split rsplit splitlines strip lstrip rstrip replace startswith endswith find lower upper capitalize "
    "partition rpartition removeprefix removesuffix get items keys values index count".split()
)
_NO_FILTERS = ("center", "indent", "wordwrap", "format", "pprint", "random", "urlize", "xmlattr", "tojson", "replace")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja without attributes of objects but a few methods of text and of objects, and without growth."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr in _METHODS and type(obj) in (str, dict, list)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or not all(type(side) in (int, float) for side in (left, right)):
            raise jinja2.sandbox.SecurityError(f"{operator} on {named(left)} and {named(right)} is not allowed")
        return super().call_binop(context, operator, left, right)


def _plain_text(value: Any) -> Any:
    if isinstance(value, jinja2.Undefined) or type(value) in (str, int, float):
        return value
    raise BadRow(f"{named(value)} where the map writes text")


def _replace(text: Any, old: Any, new: Any) -> str:
    if not old:
        raise jinja2.sandbox.SecurityError("replace needs something to replace")
    return str(text).replace(str(old), str(new))


@functools.cache
def _environment() -> _Sandbox:
    made = _Sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_plain_text)
    made.globals.clear()
    for name in _NO_FILTERS:
        made.filters.pop(name, None)
    made.filters["replace"] = _replace
    return made


@functools.cache
def _compiled(text: str) -> jinja2.Template:
    return _environment().from_string(text)


def _rendered(text: str, fields: Mapping[str, Any], where: str) -> str:
    try:
        return _compiled(text).render(fields)
    except jinja2.UndefinedError as error:
        raise BadRow(f"{where}: {error}") from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise BadRow(f"{where}: {type(error).__name__}: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise BadRow(f"{where}: the template does not end") from error


@dataclass(frozen=True)
class Rule:
    """One entry of a mapping file, or a field map, ready to be used on rows."""

    entry: Mapping[str, Any]

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Rule:
        """The rule of an entry that `read_map` has checked."""
        return cls(entry)

    @property
    def each(self) -> list[str]:
        """Names of the lists, outer first, whose items become rows."""
        given = self.entry.get("each", [])
        return [given] if isinstance(given, str) else list(given)

    @property
    def converts(self) -> bool:
        """Whether it makes the turns itself; else it only names columns, and the shape is found by looking."""
        return any(way in self.entry for way in _WAYS) or bool(self.each)

    def rows(self, row: dict[str, Any]) -> list[tuple[Turns, str | None, bytes | None]]:
        """(turns, source or None, the row narrowed to one item or None) of each row that `row` gives."""
        made = []
        several = list(_items(row, self.each))
        for fields, narrowed in several:
            source = self.entry.get("source")
            made.append(
                (
                    self._turns(fields),
                    None if source is None else _rendered(source, fields, "source").strip() or None,
                    orjson.dumps(narrowed) if len(several) > 1 else None,
                )
            )
        return made

    def _turns(self, row: dict[str, Any]) -> Turns:
        if "turns" in self.entry:
            flat: Turns = []
            for i, turn in enumerate(self.entry["turns"]):
                flat += (ROLES[turn["role"]], _rendered(turn["content"], row, f"turns[{i}]"))
            return flat
        if "messages_from" in self.entry:
            column = self.entry["messages_from"]
            return turn_list(_listed(_column(row, column), column), column)
        if "tokens" in self.entry:
            return _by_tokens(row, self.entry["tokens"])
        if "fields" in self.entry:
            row = renamed(row, self.entry["fields"])
        shape = shape_of_keys(row)
        if shape is None:
            raise BadRow(f"no known shape; its keys are {', '.join(map(str, row)) or 'none'}")
        return SHAPES[shape](row)


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise BadRow(f"no field {name}, which the map names")
    return row[name]


def _listed(value: Any, column: str) -> Any:
    if type(value) is not str:
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise BadRow(f"{column} holds text that is not JSON: {error}") from error


def renamed(row: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """The mapped columns under the names of a known shape; of the others only the row's own source."""
    made = {name: row[name] for name in ("source", "dataset") if name in row}
    return made | {field: _column(row, column) for field, column in fields.items()}


def _items(row: dict[str, Any], each: list[str]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(fields that templates see, the row narrowed to this item) for every item of nested lists."""
    if not each:
        yield row, row
        return
    listed = _column(row, each[0])
    if type(listed) is not list:
        raise BadRow(f"{each[0]} is {named(listed)}, expected a list")
    for item in listed:
        inner = item if type(item) is dict else {"item": item}
        for fields, narrowed in _items(inner, each[1:]):
            outer = {name: value for name, value in row.items() if name != each[0]}
            yield {**outer, **fields}, {**row, each[0]: [narrowed if type(item) is dict else item]}


def _by_tokens(row: Mapping[str, Any], tokens: Mapping[str, Any]) -> Turns:
    """Turns of a text in which special tokens stand before each; a token that is dropped leaves no trace."""
    text = text_of(_column(row, tokens["column"]), tokens["column"])
    for dropped in tokens.get("drop", []):
        text = text.replace(dropped, "")
    roles = tokens["roles"]
    starts = sorted((at, mark) for mark in roles for at in _places(text, mark))
    if not starts or text[: starts[0][0]].strip():
        raise BadRow(f"{tokens['column']} does not begin with one of {', '.join(roles)}")
    flat: Turns = []
    for i, (at, mark) in enumerate(starts):
        end = starts[i + 1][0] if i + 1 < len(starts) else len(text)
        flat += (ROLES[roles[mark]], text[at + len(mark) : end].strip())
    return flat


def _places(text: str, mark: str) -> Iterator[int]:
    at = text.find(mark)
    while at >= 0:
        yield at
        at = text.find(mark, at + len(mark))


# --- reading and checking --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Map:
    """A field map (`fields`) or the entries of a mapping file, in order."""

    fields: Mapping[str, str] | None = None
    entries: tuple[Mapping[str, Any], ...] = ()

    def entry_for(self, path: Path) -> dict[str, Any] | None:
        """The first entry whose `match` fits the path, without `match`; None when none does."""
        for entry in self.entries:
            if PurePath(path).match(entry["match"]):
                return {key: value for key, value in entry.items() if key != "match"}
        return None


def read_map(given: str | Path | Mapping[str, str] | None) -> Map:
    """The map that was given: a dict or text of fields, or the path of a mapping file; all faults at once."""
    if given is None:
        return Map()
    if isinstance(given, Mapping):
        return Map(fields=_checked_fields(given))
    text = str(given)
    if "=" in text and not Path(text).exists():
        pairs = [part.partition("=") for part in text.split(",")]
        if any(not name.strip() or not column.strip() for name, _, column in pairs):
            raise RequestError(f"--map {text}: expected field=column,field=column or the path of a mapping file")
        return Map(fields=_checked_fields({name.strip(): column.strip() for name, _, column in pairs}))
    return Map(entries=_file_entries(Path(text)))


def _checked_fields(fields: Mapping[str, Any]) -> dict[str, str]:
    for field, column in fields.items():
        if field not in FIELDS:
            raise unknown_name("field of a map", str(field), FIELDS)
        if not isinstance(column, str):
            raise RequestError(f"the map's {field} is {named(column)}, expected the name of a column")
    if shape_of_keys(fields) is None:
        raise RequestError(
            f"the map names {', '.join(fields) or 'nothing'}, which makes no conversation; "
            "name for example instruction and output, prompt and completion, or messages"
        )
    return dict(fields)


def _file_entries(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such mapping file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{path}: not a mapping file: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise RequestError(f"{path}: a mapping file is a list of entries ('- match: …')")
    faults = [fault for i, entry in enumerate(entries) for fault in _faults(entry, f"[{i}]")]
    if faults:
        raise RequestError("\n".join(f"{path}: {fault}" for fault in faults))
    return tuple(entries)


def _faults(entry: Any, at: str) -> Iterator[str]:
    """What is wrong with one entry, each with its key path."""
    if not isinstance(entry, dict):
        yield f"{at} is {named(entry)}, expected an object with match"
        return
    for key in entry:
        if key not in _KEYS:
            yield f"{at}.{unknown_name('key', str(key), _KEYS)}"
    ways = [way for way in _WAYS if way in entry]
    if len(ways) > 1:
        yield f"{at} has {' and '.join(ways)}; one of them is enough"
    types = {"match": str, "each": (str, list), "messages_from": str, "source": str, "header": bool}
    types |= {"delimiter": str, "quoted": bool, "columns": list, "turns": list, "fields": dict, "tokens": dict}
    if "match" not in entry:
        yield f"{at} has no match"
    for key, expected in types.items():
        if key in entry and (not isinstance(entry[key], expected) or not entry[key] and entry[key] is not False):
            yield f"{at}.{key} is {named(entry[key])} {entry[key]!r}, which does not fit"
            return
    for key in ("each", "columns"):
        if any(not isinstance(name, str) for name in entry.get(key, [])):
            yield f"{at}.{key} must name columns in text"
    if entry.get("header") is False and "columns" not in entry:
        yield f"{at}.header is false, so columns must name the cells"
    if len(entry.get("delimiter", ",")) != 1:
        yield f"{at}.delimiter must be one character"
    yield from _way_faults(entry, at)


def _way_faults(entry: Mapping[str, Any], at: str) -> Iterator[str]:
    for i, turn in enumerate(entry.get("turns", [])):
        here = f"{at}.turns[{i}]"
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            yield f"{here} must have role and content, and nothing else"
        elif turn["role"] not in ROLES:
            yield f"{here}.role: {unknown_name('role', str(turn['role']), ROLES)}"
        else:
            yield from _template_faults(turn["content"], f"{here}.content")
    if "source" in entry:
        yield from _template_faults(entry["source"], f"{at}.source")
    if "fields" in entry:
        try:
            _checked_fields(entry["fields"])
        except RequestError as error:
            yield f"{at}.fields: {error}"
    if "tokens" in entry:
        tokens = entry["tokens"]
        if not set(tokens) <= {"column", "roles", "drop"} or not isinstance(tokens.get("column"), str):
            yield f"{at}.tokens must have column, roles and drop, and nothing else"
        elif not isinstance(tokens.get("roles"), dict) or not tokens["roles"] or "" in tokens["roles"]:
            yield f"{at}.tokens.roles must give a role to every token"
        else:
            for mark, role in tokens["roles"].items():
                if role not in ROLES:
                    yield f"{at}.tokens.roles.{mark}: {unknown_name('role', str(role), ROLES)}"
            if not all(isinstance(part, str) and part for part in tokens.get("drop", [])):
                yield f"{at}.tokens.drop must be a list of texts"


def _template_faults(text: Any, at: str) -> Iterator[str]:
    if not isinstance(text, str):
        yield f"{at} is {named(text)}, expected a template"
        return
    try:
        _compiled(text)
    except jinja2.TemplateError as error:
        yield f"{at}: {error}"
