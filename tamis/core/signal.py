"""What representations and scores have in common once they are stored: rows, statuses, tokens, a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.core import status as statuses
from tamis.core.method import Method
from tamis.core.store import Thing, shard_rows_of


@dataclass(frozen=True)
class StoredSignal:
    """A stored signal of one pool: a status and a token count for each of its n rows."""

    method: Method
    config: Any
    thing: Thing
    ids: np.ndarray  # (n,) '<U32'
    execution: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """Name of the stored thing."""
        return self.thing.digest

    @property
    def codes(self) -> np.ndarray:
        """Status codes (n,) uint8."""
        return self.thing.joined("status")

    @property
    def status(self) -> np.ndarray:
        """Status words (n,)."""
        return statuses.words(self.codes)

    @property
    def tokens(self) -> np.ndarray:
        """Tokens (n,) int32 that the method read of each row after truncation; −1 where it counts none."""
        return self.thing.joined("tokens")


def signal_recipe(method: Method, made_by: Mapping[str, Any], pool: str, rows: int) -> dict[str, Any]:
    """Everything that determines a stored signal. `made_by` is the recipe of the configured method;
    parameters that only matter when rows are compared are not in it, so that they share what is stored, and
    methods that derive their numbers from the same columns name those in its `stored_as`."""
    return {
        "method": made_by.get("stored_as", method.name),
        "version": method.version,
        "made_by": dict(made_by),
        "pool": pool,
        "rows": rows,
        "shard_rows": shard_rows_of(rows),
    }
