"""Controls that look at other strategies' subsets: the one that is matched in length; rows that strict-random
passes over (subsets of the request and in folders); subsets that random-redrawn may share few rows with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tamis.core.digest import digest
from tamis.core.errors import RequestError
from tamis.study.budget import Budget
from tamis.study.strategies import Strategy

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.study.subset import Subset

LENGTH_MATCHED, STRICT_RANDOM, REDRAWN = "random-length-matched", "strict-random", "random-redrawn"


def in_order(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Strategies with the controls last that need the subsets of others."""
    last = (LENGTH_MATCHED, STRICT_RANDOM, REDRAWN)
    return sorted(strategies, key=lambda strategy: strategy.name in last)


def matched_strategy(strategies: Sequence[Strategy]) -> Strategy:
    """The strategy whose lengths the length-matched control has; raises RequestError where there is none."""
    for strategy in strategies:
        if strategy.signal is not None:
            return strategy
    raise RequestError(
        f"{LENGTH_MATCHED} is the control of another strategy: name that one first, "
        f"for example --strategy rds/round-robin,{LENGTH_MATCHED}"
    )


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


def check_redrawn(strategies: Sequence[Strategy], budgets: Sequence[Budget], within: str | None) -> None:
    """Raise RequestError where random-redrawn has nothing to be compared with."""
    if all(strategy.name != REDRAWN for strategy in strategies):
        return
    if all(strategy.signal is None for strategy in strategies):
        raise RequestError(
            f"{REDRAWN} is drawn again while it shares too many rows with other strategies: name one beside "
            f"it, for example --strategy rds/round-robin,{REDRAWN}"
        )
    if within is not None or any(budget.unit == "tokens" for budget in budgets):
        raise RequestError(f"{REDRAWN} compares subsets of as many rows: it takes no tokens and no groups")


def compared_subsets(strategies: Sequence[Strategy], made: Sequence[Subset]) -> list[np.ndarray]:
    """Positions of every subset of `made` whose strategy scores rows."""
    scored = [strategy for strategy in strategies if strategy.signal is not None]
    return [subset.positions for subset in made if any(subset.strategy is one for one in scored)]


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
