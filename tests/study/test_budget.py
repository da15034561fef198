"""Budgets as text."""

from __future__ import annotations

import pytest

from tamis.core.errors import RequestError
from tamis.study.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "budget", "folder"),
    [
        ("500", Budget(500, "rows"), "500"),
        (500, Budget(500, "rows"), "500"),
        ("1_000_000", Budget(1_000_000, "rows"), "1000000"),
        ("5%", Budget(5, "percent"), "5pct"),
        ("0.5%", Budget(0.5, "percent"), "0.5pct"),
        ("200000tok", Budget(200_000, "tokens"), "200000tok"),
        ("12345678tok", Budget(12_345_678, "tokens"), "12345678tok"),
    ],
)
def test_forms_and_folders(text: str | int, budget: Budget, folder: str) -> None:
    assert parse_budget(text) == budget
    assert budget.folder == folder


@pytest.mark.parametrize("text", ["", "many", "-5", "0", "1.5", "101%", "5 %%", "10kb", "tok", "0tok"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="budget"):
        parse_budget(text)


def test_a_share_is_rounded_down_to_rows() -> None:
    assert parse_budget("5%").rows_of(86_115) == 4305
    assert parse_budget("10%").rows_of(30) == 3  # 3.0000000000000004 in floating point
    assert parse_budget("0.1%").rows_of(999) == 0
