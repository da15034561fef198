"""Budgets: how many rows or tokens may be chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tamis.core.errors import RequestError

_FORM = re.compile(r"(\d+(?:\.\d+)?)(%|tok)?")


@dataclass(frozen=True)
class Budget:
    """An amount and a unit, as given: rows (`500`), a share of the pool (`5%`) or tokens (`200000tok`)."""

    amount: float
    unit: str  # "rows", "percent" or "tokens"

    @property
    def folder(self) -> str:
        """Name of the folder that `select` writes."""
        suffix = {"rows": "", "percent": "pct", "tokens": "tok"}[self.unit]
        return f"{self.amount:g}{suffix}" if self.amount < 1e6 else f"{int(self.amount)}{suffix}"

    def rows_of(self, pool_rows: int) -> int:
        """Rows that a row or percent budget allows in a pool of `pool_rows`, rounded down."""
        share = self.amount * pool_rows / 100 if self.unit == "percent" else self.amount
        return int(share + 1e-9)


def parse_budget(text: str | int) -> Budget:
    """`500`, `5%` or `200000tok` → Budget; anything else is a RequestError."""
    match = _FORM.fullmatch(str(text).replace(",", "").replace("_", "").strip())
    if not match:
        raise RequestError(f"budget {text!r}: expected rows (500), a share (5%) or tokens (200000tok)")
    amount = float(match[1])
    unit = {None: "rows", "%": "percent", "tok": "tokens"}[match[2]]
    if unit != "percent" and amount != int(amount):
        raise RequestError(f"budget {text!r}: rows and tokens are whole numbers")
    if amount <= 0 or (unit == "percent" and amount > 100):
        raise RequestError(
            f"budget {text!r}: must be above 0" + (" and at most 100%" if "%" in str(text) else "")
        )
    return Budget(amount, unit)
