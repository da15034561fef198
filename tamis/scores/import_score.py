"""Scores that were made elsewhere: a column of a CSV, JSON lines or Parquet file.

**Paper.** none: it computes nothing; the card of an import is the paper of whoever made the scores.
**Definition.** s_j = the number in `column` of the file's row whose id is j's row id (a hash of the turns),
or of the j-th row with `by_position`; with `better="lower"` its negative, for in store higher is better.
**Needs.** `file` and `column`, and the column of ids (`id`), or `by_position`. Or `name`: an import that
`tamis import --name` keeps in the store.
**Gives.** float64 (n,), higher is better. Not scored: `failed`, a row that the file lacks or whose cell is
empty; `parse_error`, a cell that is no number; `non_finite`.
**Cost.** Reading the two columns into memory, some 100 bytes a row.
**Departs.** Ids of the file that the pool lacks, or that repeat earlier ones, are an error unless
`allow_unknown`, `allow_repeated` (the first is taken). The recipe holds ids and numbers, not the file's path.
**Relations.** `import` does the same for vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.digest import bytes_digest
from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.outside import Kept, Match, Rules, matched
from tamis.core.status import code
from tamis.representations._context import Context
from tamis.representations._outside_rows import places
from tamis.scores._context import Scored
from tamis.scores._score_table import numbers_of, read_scores

if TYPE_CHECKING:
    from tamis.pools.pool import Message

_TEXTS = ("file", "id", "column", "name", "better")
_REASONS = {
    "failed": "the imported file has no score for this row",
    "parse_error": "the cell of the imported file is no number",
    "non_finite": "the score is not finite",
}


@dataclass(frozen=True)
class Config:
    """`file` with the columns `id` and `column`; `better`: "higher" or "lower"; `by_position`: rows are in
    the pool's order, and no ids are read. `name`: an import kept in the store, in place of a file."""

    file: str = ""
    id: str = "id"
    column: str = ""
    name: str = ""
    better: str = "higher"
    by_position: bool = False
    allow_unknown: bool = False
    allow_repeated: bool = False

    def __post_init__(self) -> None:
        for field in _TEXTS:
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"{field}={getattr(self, field)!r}: expected a text; quote it")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better={self.better!r}: expected 'higher' or 'lower'")
        if self.name and self.file:
            raise ValueError("give name, or a file, not both")


class OutsideScores:
    """Scores of a file, matched to the rows of a pool."""

    def __init__(self, config: Config) -> None:
        if not config.file or not config.column:
            raise RequestError(
                "import-score needs a file and the column of its numbers: give --set import-score.file=FILE "
                "--set import-score.column=NAME, or --set import-score.name=NAME of an earlier `tamis import`"
            )
        self.config = config
        self._ids, values = read_scores(
            Path(config.file).expanduser(), "" if config.by_position else config.id, config.column
        )
        numbers, self._missing, self._wrong = numbers_of(values)
        self._values = -numbers if config.better == "lower" else numbers
        ids = None if self._ids is None else bytes_digest(f"{text}\n".encode() for text in self._ids.tolist())
        kinds = self._missing + 2 * self._wrong.astype(np.uint8)
        self.recipe: dict[str, Any] = {
            "numbers": bytes_digest([self._values.astype("<f8").tobytes(), kinds.astype(np.uint8).tobytes()]),
            "ids": "position" if ids is None else ids,
        }
        self.found: Match | None = None

    @property
    def execution(self) -> Mapping[str, Any]:
        """The file, and how its rows met those of the pool."""
        counts = {} if self.found is None else {"matched": self.found.counts}
        return {"file": self.config.file, **counts}

    def match(self, ids: np.ndarray) -> dict[str, int]:
        """Match the file to the rows of a pool by their ids (n,); the counts. Raises RequestError."""
        config = self.config
        rules = Rules(config.by_position, config.allow_unknown, config.allow_repeated)
        self.found = matched(ids, self._ids, len(self._values), rules, config.file)
        return self.found.counts

    def rows(self, start: int, stop: int) -> Scored:
        """Scores of the pool's rows [start, stop), after `match`."""
        if self.found is None:
            raise RuntimeError("match the rows of the pool first")
        return self._taken(self.found.row[start:stop])

    def score(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Scored:
        """Scores of rows given by their text; by position, they are the first of the pool."""
        return self._taken(places(conversations, self._ids, len(self._values)))

    def _taken(self, at: np.ndarray) -> Scored:
        there = at >= 0
        values = np.full(len(at), np.nan)
        values[there] = self._values[at[there]]
        words = np.full(len(at), "ok", dtype=object)
        words[~np.isfinite(values)] = "non_finite"
        words[~there] = "failed"
        words[np.flatnonzero(there)[self._missing[at[there]]]] = "failed"
        words[np.flatnonzero(there)[self._wrong[at[there]]]] = "parse_error"
        values[words != "ok"] = np.nan
        reasons = {row: _REASONS[word] for row, word in enumerate(words) if word != "ok"}
        status = np.array([code(word) for word in words], dtype=np.uint8)
        return Scored(values, status, np.full(len(at), -1, np.int32), reasons)


def prepare(config: Config, context: Context) -> OutsideScores | Kept:
    """The scores of `config`; raises RequestError when the file is not what it should be."""
    if config.name:
        return Kept(context.store, config.name, "scores")
    return OutsideScores(config)


METHOD = Method("import-score", prepare, Config, __doc__ or "", needs=("file",), paths=("file", "name"))
