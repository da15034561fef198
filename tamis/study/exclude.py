"""Rows that strict-random passes over: the other strategies' subsets, and subsets in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tamis.core.digest import digest
from tamis.core.errors import RequestError
from tamis.study.strategies import Strategy

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.study.subset import Subset

STRICT_RANDOM = "strict-random"


def check_exclude(strategies: Sequence[Strategy], folders: Sequence[Path]) -> None:
    """Raise RequestError if strict-random has nothing to exclude, or folders are given without it."""
    asked = any(strategy.name == STRICT_RANDOM for strategy in strategies)
    if folders and not asked:
        raise RequestError(
            f"--exclude is for {STRICT_RANDOM}, which is not among the strategies; add it or drop the folders"
        )
    if asked and not folders and all(strategy.signal is None for strategy in strategies):
        raise RequestError(
            f"{STRICT_RANDOM} draws from what other strategies leave: name one beside it, for example "
            f"--strategy rds/round-robin,{STRICT_RANDOM}, or give --exclude FOLDER of a subset"
        )
    for folder in folders:
        _ids(folder)


def exclude_recipe(folders: Sequence[Path]) -> list[str]:
    """What the folders hold, whatever they are called: digests of their rows' ids, sorted."""
    return sorted({digest(sorted(_ids(folder))) for folder in folders})


def excluded_rows(
    pool: Pool, strategies: Sequence[Strategy], made: Sequence[Subset], folders: Sequence[Path]
) -> np.ndarray:
    """Positions of the union: each scored strategy's largest subset of `made`, and the folders' rows."""
    mask = np.zeros(len(pool), bool)
    for strategy in strategies:
        own = [subset for subset in made if subset.strategy is strategy and strategy.signal is not None]
        if own:
            mask[max(own, key=len).positions] = True
    ids = pool.ids if folders else ()
    for folder in folders:
        wanted = _ids(folder)
        found = np.fromiter((i in wanted for i in ids), bool, len(pool))
        if not found.any():
            raise RequestError(f"--exclude {folder}: none of its {len(wanted)} rows is in this pool")
        mask |= found
    return np.flatnonzero(mask)


def _ids(folder: Path) -> set[str]:
    import pyarrow.parquet as pq

    path = Path(folder) / "selection.parquet"
    if not path.exists():
        raise RequestError(
            f"--exclude {folder} is not a subset: {path} is missing; "
            "give a folder such as OUT/rds-round-robin/500/seed0"
        )
    return set(pq.read_table(path, columns=["id"])["id"].to_pylist())
