"""A subset: chosen rows in order, with why each was chosen; and the files it is written to (design §5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.files import read_json, replacing
from tamis.study.budget import Budget
from tamis.study.strategies import Strategy

if TYPE_CHECKING:
    import pyarrow as pa

    from tamis.pools.pool import Pool

NO_TOKENS = -1


@dataclass(frozen=True)
class Subset:
    """Chosen rows of one pool, in order of choice; arrays are (k,)."""

    strategy: Strategy
    budget: Budget
    seed: int
    pool: Pool
    positions: np.ndarray  # int64 row of the pool
    score: np.ndarray  # float32 gain at the moment of choice, higher is better
    task: np.ndarray  # object: name of the task, "" if none
    query: np.ndarray  # int32 row of the task's query set that chose it, −1 if none
    tokens: np.ndarray  # int32 rendered tokens after truncation, −1 where nothing was rendered
    facts: dict[str, Any]  # counts, shares, lengths, warnings: see summary.py and diagnostics.py
    folder: Path | None = None
    elsewhere: list[dict[str, Any]] = field(default_factory=list)  # overlap with others of the store
    following: tuple[np.ndarray, np.ndarray] | None = None  # the next rows of the order and their gains

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def ids(self) -> np.ndarray:
        """Ids (k,) in order of choice."""
        chosen: np.ndarray = self.pool.ids[self.positions]
        return chosen

    @property
    def relative(self) -> Path:
        """Folder below OUT: strategy, budget, seed."""
        return Path(self.strategy.folder, self.budget.folder, f"seed{self.seed}")

    def table(self) -> pa.Table:
        """The columns of `selection.parquet` (design §5)."""
        import pyarrow as pa

        columns = {
            "rank": pa.array(np.arange(len(self), dtype=np.int32)),
            "id": pa.array(self.ids.tolist(), pa.string()),
            "row": pa.array(self.positions.astype(np.int64)),
            "source": pa.array(self.pool.sources[self.positions].tolist(), pa.string()),
            "score": pa.array(self.score.astype(np.float32)),
            "task": pa.array(self.task.tolist(), pa.string()),
            "query": pa.array(self.query.astype(np.int32)),
            "tokens": pa.array(self.tokens.astype(np.int32)),
        }
        return pa.table(columns)

    def write(self, out: Path) -> None:
        """Write `selection.parquet` and `subset.jsonl` (original rows in rank order) below `out`."""
        import pyarrow.parquet as pq

        folder = out / self.relative
        with replacing(folder / "selection.parquet") as temporary:
            pq.write_table(self.table(), temporary, compression="zstd")
        with replacing(folder / "subset.jsonl") as temporary, open(temporary, "wb") as file:
            for original in self.pool.originals(self.positions):
                file.write(original.rstrip(b"\r\n") + b"\n")


@dataclass(frozen=True)
class Chosen:
    """A subset as it was written: its pool, positions in order of choice, and the other columns by name."""

    pool: Pool
    positions: np.ndarray
    columns: dict[str, np.ndarray]


def read_chosen(folder: Path) -> Chosen:
    """Read back a folder that `Subset.write` wrote; its pool must still be in the store."""
    import pyarrow.parquet as pq

    from tamis.pools.pool import Pool

    path, manifest = folder / "selection.parquet", folder.resolve().parents[2] / "manifest.json"
    for needed in (path, manifest):
        if not needed.exists():
            raise RequestError(
                f"{folder} is not a subset: {needed} is missing; "
                "give a folder such as OUT/rds-round-robin/500/seed0"
            )
    pool_folder = Path(read_json(manifest)["execution"]["pool"])
    if not (pool_folder / "meta.json").exists():
        raise RequestError(f"the pool of {folder} is no longer at {pool_folder}; run the selection again")
    table = pq.read_table(path)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return Chosen(Pool(pool_folder), columns.pop("row"), columns)
