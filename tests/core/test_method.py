"""Cards, configs and tables of methods."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tamis.core.errors import RequestError
from tamis.core.method import Family, Method

DOC = """Doubles a number.

**Paper.** none: an example.
**Definition.** y = 2 x,
on two lines.
**Needs.** x.
"""


@dataclass(frozen=True)
class Config:
    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor is {self.factor}, expected at least 1")


def _method(name: str = "double") -> Method:
    return Method(name, lambda x: 2 * x, Config, DOC)


def test_the_card_is_the_docstring() -> None:
    card = _method().card
    assert card == {"Paper": "none: an example.", "Definition": "y = 2 x, on two lines.", "Needs": "x."}
    assert _method().summary == "Doubles a number."


def test_parameters_are_checked_by_name_and_domain() -> None:
    assert _method().configure({"factor": 3}) == Config(3)
    with pytest.raises(RequestError, match=r"did you mean 'factor'.*known: factor"):
        _method().configure({"facter": 3})
    with pytest.raises(RequestError, match="double: factor is 0, expected at least 1"):
        _method().configure({"factor": 0})


def test_a_table_refuses_two_of_a_name_and_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="two example methods are named 'double'"):
        Family("example", [_method(), _method()])
    with pytest.raises(RequestError, match="unknown example 'dubble'; did you mean 'double'"):
        Family("example", [_method()])["dubble"]
