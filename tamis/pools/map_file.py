"""Reading a map from a command line or a mapping file, with every fault named by its key path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import jinja2
import yaml

from tamis.core.errors import RequestError, unknown_name
from tamis.pools.mapping import WAYS, compiled
from tamis.pools.shapes import ROLES, named, shape_of_keys

FIELDS = (
    "instruction", "input", "context", "output", "response", "history", "prompt", "completion", "question",
    "answer", "explanation", "system", "messages", "conversations", "conversation", "chosen", "rejected",
    "source",
)  # fmt: skip
_KEYS = ("match", *WAYS, "each", "source", "columns", "header", "delimiter", "quoted")


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
            raise RequestError(
                f"--map {text}: expected field=column,field=column or the path of a mapping file"
            )
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
    ways = [way for way in WAYS if way in entry]
    if len(ways) > 1:
        yield f"{at} has {' and '.join(ways)}; one of them is enough"
    types: dict[str, Any] = {"match": str, "each": (str, list), "messages_from": str, "source": str}
    types |= {"header": bool}
    types |= {
        "delimiter": str,
        "quoted": bool,
        "columns": list,
        "turns": list,
        "fields": dict,
        "tokens": dict,
    }
    if "match" not in entry:
        yield f"{at} has no match"
    for key, expected in types.items():
        if key in entry and (
            not isinstance(entry[key], expected) or (not entry[key] and entry[key] is not False)
        ):
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
        compiled(text)
    except jinja2.TemplateError as error:
        yield f"{at}: {error}"
