"""Vectors that were made elsewhere: a .npy matrix, or the gradient index that bergson builds.

**Paper.** none: it computes nothing; the card of an import is the paper of whoever made the vectors.
**Definition.** v_j = the file's row whose id is j's row id (a hash of the turns), or the j-th row with
`by_position`; of length 1 (cosines) unless `normalise` is off (inner products as the vectors are).
**Needs.** `file`: a .npy of floating-point numbers (rows, d), or the folder of a bergson index; `ids`: a
file of its rows' ids (text, .json, .npy, .parquet), or `by_position`. `query`, `query_ids`: the same for
the rows of the query sets. Or `name`: an import that `tamis import --name` keeps in the store.
**Gives.** vectors (n, d); float16 when the file holds 16-bit numbers, else float32. Not scored: `failed`, a
row that the file has no vector for; `non_finite`; `no_target_tokens`, a vector of zeros where a length is
needed (bergson writes zeros for a row without a supervised token).
**Cost.** Reading and copying; memory of one shard, for the file is mapped. n x d x 2 or 4 bytes kept.
**Departs.** Ids of the file that the pool lacks, or that repeat earlier ones, are an error unless
`allow_unknown`, `allow_repeated` (the first is taken). Two sides that differ in width, modules or projection
are refused. The recipe holds the contents of the files, not their paths.
**Relations.** With the gradients of a warmed-up adapter, normalised, and `round-robin` it selects as LESS at
one checkpoint, for what bergson's gradients are worth: it does not fold the optimiser's first moment in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.digest import bytes_digest
from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.outside import Kept, Match, Rules, matched, read_ids
from tamis.core.status import code
from tamis.core.vectors import unit
from tamis.representations._context import Context, Encoded
from tamis.representations._outside_rows import places
from tamis.representations._outside_vectors import Matrix, check_sides, open_matrix

if TYPE_CHECKING:
    from tamis.pools.pool import Message

MISSING = "the imported file has no vector for this row"
_TEXTS = ("file", "ids", "query", "query_ids", "name")


@dataclass(frozen=True)
class Config:
    """`file`, `ids`: vectors of the pool and the ids of their rows; `query`, `query_ids`: of the queries.
    `by_position`: rows are in the pool's (and the query set's) order where no ids are given. `name`: an
    import kept in the store, in place of files. See the card for the rest."""

    file: str = ""
    ids: str = ""
    query: str = ""
    query_ids: str = ""
    name: str = ""
    by_position: bool = False
    normalise: bool = True
    allow_unknown: bool = False
    allow_repeated: bool = False

    def __post_init__(self) -> None:
        for field in _TEXTS:
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"{field}={getattr(self, field)!r}: expected a text; quote it")
        if self.name and (self.file or self.query):
            raise ValueError("give name, or files, not both")

    @property
    def rules(self) -> Rules:
        return Rules(self.by_position, self.allow_unknown, self.allow_repeated)


class OutsideVectors:
    """Vectors of one side, matched to the rows of a pool."""

    flops_per_token = 0.0

    def __init__(self, config: Config, role: str) -> None:
        given, ids = (config.query, config.query_ids) if role == "query" else (config.file, config.ids)
        side = "query" if role == "query" else "file"
        if not given:
            raise RequestError(
                f"import needs the vectors of the {'queries' if role == 'query' else 'pool'}: "
                f"give --set import.{side}=FILE, or --set import.name=NAME of an earlier `tamis import`"
            )
        self.config = config
        self.matrix: Matrix = open_matrix(given)
        if config.file and config.query:
            check_sides(open_matrix(config.file), open_matrix(config.query))
        self.ids = read_ids(Path(ids)) if ids else None
        if self.ids is None and not config.by_position:
            raise RequestError(
                f"{given}: give the ids of its rows with --set import.{'query_' if role == 'query' else ''}"
                "ids=FILE, or --set import.by_position=true if they are in the order of the pool"
            )
        narrow = np.dtype(np.uint16).itemsize == self.matrix.mapped.dtype.itemsize
        half = narrow and (config.normalise or self.matrix.dtype == "float16")
        self.dtype = np.float16 if half else np.float32
        self.dimensions = self.matrix.d
        self.found: Match | None = None

    @property
    def execution(self) -> Mapping[str, Any]:
        """The file, and how its rows met those of the pool."""
        counts = {} if self.found is None else {"matched": self.found.counts}
        return {"file": str(self.matrix.path), **counts}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Contents of the files and what is done with them; no path."""
        ids = None if self.ids is None else bytes_digest(f"{text}\n".encode() for text in self.ids.tolist())
        return {
            "numbers": self.matrix.content,
            "ids": "position" if ids is None else ids,
            "normalise": self.config.normalise,
            "dtype": np.dtype(self.dtype).name,
        }

    def match(self, ids: np.ndarray) -> dict[str, int]:
        """Match the file to the rows of a pool by their ids (n,); the counts. Raises RequestError."""
        self.found = matched(ids, self.ids, self.matrix.n, self.config.rules, str(self.matrix.path))
        return self.found.counts

    def rows(self, start: int, stop: int) -> Encoded:
        """Vectors of the pool's rows [start, stop), after `match`."""
        if self.found is None:
            raise RuntimeError("match the rows of the pool first")
        return self._taken(self.found.row[start:stop])

    def encode(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Encoded:
        """Vectors of rows given by their text; by position, they are the first of the pool."""
        return self._taken(places(conversations, self.ids, self.matrix.n))

    def _taken(self, at: np.ndarray) -> Encoded:
        there = np.flatnonzero(at >= 0)
        status = np.full(len(at), code("failed"), np.uint8)
        reasons = {int(row): MISSING for row in np.flatnonzero(at < 0)}
        vectors = np.zeros((len(at), self.dimensions), self.dtype)
        taken = self.matrix.take(at[there])
        finite, zero = np.isfinite(taken).all(axis=1), ~taken.any(axis=1)
        kept = finite & ~zero if self.config.normalise else finite
        vectors[there[kept]] = unit(taken[kept]) if self.config.normalise else taken[kept]
        status[there] = np.where(
            kept, code("ok"), np.where(finite, code("no_target_tokens"), code("non_finite"))
        )
        reasons |= {int(row): "a number is not finite" for row in there[~finite]}
        reasons |= {int(row): "the vector is zero" for row in there[finite & ~kept]}
        return Encoded({"vectors": vectors}, status, np.full(len(at), -1, np.int32), reasons)


def prepare(config: Config, context: Context) -> OutsideVectors | Kept:
    """The vectors of the context's side; raises RequestError when its files are not what they should be."""
    if config.name:
        return Kept(context.store, config.name, "representation", context.role)
    return OutsideVectors(config, context.role)


METHOD = Method(
    "import",
    prepare,
    Config,
    __doc__ or "",
    needs=("file",),
    paths=("file", "ids", "query", "query_ids", "name"),
)
