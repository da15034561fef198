"""Every listed method: its card, its parameters, and its place in the documents."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tamis.cli.methods import TABLE_BEGIN, TABLE_END, families, markdown_table
from tamis.core.method import CARD_FIELDS, Method
from tamis.study.strategies import named_strategies, resolve

ROOT = Path(__file__).resolve().parents[1]
LISTED = [(family, method) for family, methods in families().items() for method in methods]


def _name(value: object) -> str | None:
    return value.name if isinstance(value, Method) else None


@pytest.mark.parametrize(("family", "method"), LISTED, ids=_name)
def test_the_card_is_complete(family: str, method: Method) -> None:
    card = method.card
    assert list(card) == list(CARD_FIELDS), f"{method.name}: fields {list(card)}"
    assert all(card.values()) and method.summary.endswith(".")
    assert re.search(r"arXiv|none:|19\d\d|20\d\d", card["Paper"]), f"{method.name}: a paper or 'none: …'"


@pytest.mark.parametrize(("family", "method"), LISTED, ids=_name)
def test_the_config_is_frozen_with_defaults(family: str, method: Method) -> None:
    config = method.config()
    assert dataclasses.is_dataclass(config)
    assert type(config).__dataclass_params__.frozen
    assert config == method.configure(vars(config))


def test_names_are_unique_over_families() -> None:
    """`--set method.parameter` and `tamis methods NAME` need one meaning for a name."""
    names = [method.name for _, method in LISTED]
    assert len(names) == len(set(names))


def test_named_strategies_resolve() -> None:
    names = list(named_strategies())
    assert [strategy.name for strategy in resolve(names)] == names
    assert all(strategy.recipe()["selection"] for strategy in resolve(names))


def test_the_readme_table_is_the_cards() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert TABLE_BEGIN in readme and TABLE_END in readme
    inside = readme.split(TABLE_BEGIN)[1].split(TABLE_END)[0]
    assert inside.strip() == markdown_table().strip()
