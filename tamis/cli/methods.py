"""`tamis methods`: the tables of methods, and cards in full."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.text import Text

from tamis.cli.tables import console, table
from tamis.core.errors import unknown_name
from tamis.core.method import CARD_FIELDS, Method

TABLE_BEGIN, TABLE_END = "<!-- methods: made by `make table` -->\n", "<!-- /methods -->"


def families() -> dict[str, list[Method]]:
    """Every listed method, by family."""
    from tamis.representations import REPRESENTATIONS
    from tamis.scores import SCORES
    from tamis.selections import SELECTIONS

    tables = (REPRESENTATIONS, SCORES, SELECTIONS)
    return {family.kind: list(family.values()) for family in tables}


def run(name: str | None, as_json: bool) -> None:
    """Print all methods and named strategies, or one card."""
    from tamis.study.strategies import named_strategies

    strategies = named_strategies()
    if name is None:
        _all(strategies, as_json)
        return
    listed = [(family, method) for family, methods in families().items() for method in methods]
    cards = [(family, method) for family, method in listed if method.name == name]
    if not cards and name not in strategies:
        raise unknown_name("method or strategy", name, [m.name for _, m in listed] + list(strategies))
    if as_json:
        found = [_described(family, method) for family, method in cards]
        print(json.dumps({"methods": found, "strategy": strategies.get(name)}, ensure_ascii=False))
        return
    for family, method in cards:
        _card(family, method)
    if name in strategies:
        print(f"{name} (strategy)")
        for key, value in strategies[name].items():
            print(f"  {key}: {value}")


def _described(family: str, method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "family": family,
        "version": method.version,
        "summary": method.summary,
        "parameters": vars(method.config()),
        "seeded": method.seeded,
        "nested": method.nested,
        "needs": list(method.needs),
        **method.card,
    }


def _all(strategies: dict[str, Any], as_json: bool) -> None:
    if as_json:
        found = [_described(family, method) for family, methods in families().items() for method in methods]
        print(json.dumps({"methods": found, "strategies": strategies}, ensure_ascii=False))
        return
    screen = console()
    for family, methods in families().items():
        made = table(f"\n{family}s", "name", "what it does")
        made.columns[1].justify = "left"
        for method in methods:
            made.add_row(method.name, Text(method.summary))
        screen.print(made)
    made = table("\nnamed strategies (any other is written signal/selection)", "name", "what it does")
    made.columns[1].justify = "left"
    for name, entry in strategies.items():
        made.add_row(name, Text(entry["about"]))
    screen.print(made)


def _card(family: str, method: Method) -> None:
    screen = console()
    screen.print(Text(f"{method.name} ({family}, version {method.version})", style="bold"))
    screen.print(Text(method.summary))
    card = method.card
    for field in CARD_FIELDS:
        screen.print(Text.assemble((f"{field}. ", "bold"), card.get(field, "")))
    for parameter, default in vars(method.config()).items():
        screen.print(Text(f"--set {method.name}.{parameter}={default}"))


def markdown_table() -> str:
    """The methods as the README shows them; a test holds the README to it."""
    lines = ["| method | what it does | paper | needs |", "|---|---|---|---|"]
    for family, methods in families().items():
        for method in methods:
            needs = ", ".join(method.needs) or "-"
            paper = method.card["Paper"].rstrip(".")
            lines.append(f"| `{method.name}` ({family}) | {method.summary} | {paper} | {needs} |")
    return "\n".join(lines) + "\n"


def write_table(readme: Path) -> None:
    """Replace the table between the marks of `readme`."""
    head, rest = readme.read_text(encoding="utf-8").split(TABLE_BEGIN)
    tail = rest.split(TABLE_END)[1]
    readme.write_text(f"{head}{TABLE_BEGIN}{markdown_table()}{TABLE_END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
