"""Maps: how rows of a format of one's own become turns.

A field map, `instruction=q,output=a`, renames columns to the names of a known shape (`FIELDS`). A mapping
file is a YAML list; the first entry whose `match` fits the path of a file is used for every row of that
file:

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

Templates are Jinja in a sandbox over the columns of the row (a column whose name has a space is `row["its
name"]`); with `each`, over those of the item too (an item that is not an object is `item`). A missing
field, null, a list or an object in a text makes the row bad. Loops run over lists of the row alone: there
is no `range`, no assignment, and nothing that multiplies or pads text.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.sandbox
import orjson
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext

from tamis.pools.shapes import ROLES, SHAPES, BadRow, Turns, named, shape_of_keys, text_of, turn_list

WAYS = ("turns", "fields", "messages_from", "tokens")
_METHODS = (
    "split", "rsplit", "splitlines", "strip", "lstrip", "rstrip", "startswith", "endswith", "find", "lower",
    "upper", "capitalize", "partition", "rpartition", "removeprefix", "removesuffix", "get", "items", "keys",
    "values", "count",
)  # fmt: skip
_LOOP = ("index", "index0", "first", "last", "length")
_NO_FILTERS = (
    "attr", "batch", "center", "format", "indent", "pprint", "random", "slice", "tojson", "urlize",
    "wordwrap", "xmlattr",
)  # fmt: skip
_NO_NODES = (
    nodes.Assign, nodes.AssignBlock, nodes.Macro, nodes.CallBlock, nodes.Block, nodes.Extends, nodes.Include,
    nodes.Import, nodes.FromImport, nodes.ScopedEvalContextModifier,
)  # fmt: skip
_MOST_LOOPS = 2


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja without attributes of objects but a few methods of text and of objects, and without growth."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, LoopContext):
            return attr in _LOOP
        return attr in _METHODS and type(obj) in (str, dict, list)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing: `format` can pad without bound, so it is no method here."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or not all(type(side) in (int, float) for side in (left, right)):
            raise SecurityError(f"{operator} on {named(left)} and {named(right)} is not allowed")
        return super().call_binop(context, operator, left, right)


def _plain_text(value: Any) -> Any:
    if isinstance(value, jinja2.Undefined) or type(value) in (str, int, float):
        return value
    raise BadRow(f"{named(value)} where the map writes text")


def _replace(text: Any, old: Any, new: Any) -> str:
    if not old:
        raise SecurityError("replace needs something to replace")
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
def compiled(text: str) -> jinja2.Template:
    """The template of a text; raises `jinja2.TemplateError` for what the language of maps leaves out."""
    tree = _environment().parse(text)
    for node in tree.find_all(_NO_NODES):
        raise jinja2.TemplateSyntaxError(f"{type(node).__name__.lower()} has no place in a map", node.lineno)
    if _loops(tree) > _MOST_LOOPS:
        raise jinja2.TemplateSyntaxError(f"more than {_MOST_LOOPS} loops inside each other", 1)
    return _environment().from_string(text)


def _loops(node: nodes.Node) -> int:
    """How deep loops stand in each other."""
    inner = max((_loops(child) for child in node.iter_child_nodes()), default=0)
    return inner + isinstance(node, nodes.For)


def _rendered(text: str, fields: Mapping[str, Any], where: str) -> str:
    try:
        return compiled(text).render({"row": fields, **fields})
    except jinja2.UndefinedError as error:
        raise BadRow(f"{where}: {error}") from error
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise BadRow(f"{where}: {type(error).__name__}: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise BadRow(f"{where}: the template does not end") from error


@dataclass(frozen=True)
class Rule:
    """One entry of a mapping file, or a field map, ready to be used on rows."""

    entry: Mapping[str, Any]

    @property
    def each(self) -> list[str]:
        """Names of the lists, outer first, whose items become rows."""
        given = self.entry.get("each", [])
        return [given] if isinstance(given, str) else list(given)

    @property
    def converts(self) -> bool:
        """Whether it makes the turns itself; else it only names columns, and the shape is looked for."""
        return any(way in self.entry for way in WAYS) or bool(self.each)

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
