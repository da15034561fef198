"""Subsets in the store: what every selection on it chose, so that rows can be traced and overlaps counted.

<store>/subset/<digest>/selection.parquet     the columns of design §5, in order of choice
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.files import read_json
from tamis.core.store import Store

if TYPE_CHECKING:
    from tamis.study.subset import Subset

FILE = "selection.parquet"


@dataclass(frozen=True, eq=False)
class StoredSubset:
    """One subset of the store; arrays are (k,), in order of choice."""

    digest: str
    recipe: Mapping[str, Any]
    positions: np.ndarray  # int64 row of the pool
    score: np.ndarray  # float32
    task: list[str]
    query: np.ndarray  # int32

    @property
    def pool(self) -> str:
        """Digest of the pool."""
        return str(self.recipe["pool"])

    @property
    def strategy(self) -> str:
        """Name of the strategy."""
        return str(self.recipe["strategy"]["name"])

    @property
    def budget(self) -> str:
        """The budget as folders name it."""
        return str(self.recipe["budget"])

    @property
    def seed(self) -> int:
        """Seed of the selection."""
        return int(self.recipe["seed"])

    @property
    def signals(self) -> list[str]:
        """Digests of the stored signals that it was chosen by."""
        return list(self.recipe["signals"])


def keep_subset(subset: Subset, store: Path, recipe: Mapping[str, Any], signals: tuple[str, ...]) -> str:
    """Put a subset into the store under what determines it; returns its digest.

    `recipe` is that of the whole request. Other strategies and budgets in it stay part of the identity only
    where the method looks at them.
    """
    import pyarrow.parquet as pq

    method = subset.strategy.methods()[-1]
    looks_at_others = "exclude" in method.needs
    foreign = ("strategies", "budgets") if looks_at_others else ("strategies", "budgets", "exclude")
    own = {key: value for key, value in recipe.items() if key not in foreign}
    if contents := {k: v for k, v in own.pop("contents", {}).items() if k == subset.strategy.name}:
        own["contents"] = contents
    if not set(method.needs) <= {"similarity", "vectors", "sources"} or method.name == "random-redrawn":
        own["beside"] = recipe["strategies"]
    elif not subset.strategy.needs_query:
        own["queries"] = {}
    if looks_at_others or not method.nested:
        own["budgets"] = recipe["budgets"]
    own |= {
        "strategy": subset.strategy.recipe(),
        "budget": subset.budget.folder,
        "signals": list(signals),
    }
    thing = Store(store).open("subset", own)
    if thing.state != "complete":
        thing.begin()
        with thing.new_file(FILE) as path:
            pq.write_table(subset.table(), path, compression="zstd")
        thing.finish({"rows": len(subset)})
    return thing.digest


def stored_subsets(store: str | Path, pool: str | None = None) -> list[StoredSubset]:
    """Every complete subset of the store, of one pool (its digest) or of all, in order of digest."""
    import pyarrow.parquet as pq

    found = []
    for kind, digest, state in Store(store).things():
        if kind != "subset" or state != "complete":
            continue
        folder = Path(store) / kind / digest
        recipe = read_json(folder / "meta.json")["recipe"]
        if pool is not None and recipe["pool"] != pool:
            continue
        table = pq.read_table(folder / FILE)
        found.append(
            StoredSubset(
                digest,
                recipe,
                table["row"].to_numpy(),
                table["score"].to_numpy(),
                table["task"].to_pylist(),
                table["query"].to_numpy(),
            )
        )
    return found
