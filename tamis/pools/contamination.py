"""Rows of a pool that hold text of a target: of test rows, which must not be trained on, or of query rows.

**Paper.** T. Brown et al., "Language models are few-shot learners", 2020, appendix C (n-gram overlap); the
share of a row's own n-grams after "The Llama 3 herd of models", 2024, section 5.1.4.
**Definition.** A target row has two parts: its *prompt* (all user turns) and its *answer* (the last assistant
turn). The n-grams of a part are the runs of `words` words within its turns (words as for near duplicates: no
case, no punctuation; where a script writes no spaces, a character, which counts as half a word wherever a
least length is asked for). A pool row matches a part when at least `share` of the part's distinct n-grams
occur in that one row. Short texts are no evidence: a prompt shorter than `whole` words must occur with all
its n-grams; one shorter than `words` must be a whole turn of the pool row, and have `least` words; an answer
shorter than `whole` words is not looked for. N-grams that occur in more than 2 rows of a target and in more
than 1 % of them are its template ("The answer is:") and do not count. A part of which nothing is left is
counted as not checked.
**Needs.** The text of the pool and of the targets.
**Gives.** One line for each pool row, target row and part that match: the share, and the longest common run.
**Cost.** One pass over the text of the pool, in memory a few windows of it and 24 bytes an n-gram of the
targets.
**Departs.** The share is of one target row in one pool row, so that common phrases of a long pool row do not
add up over target rows, nor over pool rows.
**Relations.** A paraphrase or a translation is not found; vectors (`embed`, `rds`) find some of those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.cost import booked
from tamis.core.progress import progress
from tamis.core.store import Store, shard_bounds
from tamis.core.words import kinds, splitter
from tamis.pools._shingles import Words, ngrams, normal, whole_turns, windows, words_of

if TYPE_CHECKING:
    from tamis.pools.pool import Message, Pool

PARTS = ("prompt", "answer")
_FIELDS = {
    "row": np.int64, "target": np.int32, "target_row": np.int32, "part": np.uint8, "share": np.float32,
}  # fmt: skip
_TABLE_BITS = 24
_EXCERPT = 300


@dataclass(frozen=True)
class Config:
    """`words` of an n-gram; `share` of a part's n-grams that must occur in one row; `whole`: words below
    which all of them must, and answers are left out; `least`: words of a prompt found as a whole turn."""

    words: int = 8
    share: float = 0.5
    whole: int = 13
    least: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share}: expected a number in (0, 1]")
        if not 1 <= self.least <= self.words <= self.whole:
            raise ValueError(
                f"least {self.least}, words {self.words}, whole {self.whole}: "
                "expected 1 <= least <= words <= whole"
            )


@dataclass(frozen=True)
class Matches:
    """Matches in order of the pool row, all (k,): `row` int64, `target` int32 index of `targets`,
    `target_row` int32, `part` uint8 index of `PARTS`, `share` float32. `summary`: of each target its rows,
    the prompts and answers that can be found, and the rows of which neither can."""

    targets: tuple[str, ...]
    row: np.ndarray
    target: np.ndarray
    target_row: np.ndarray
    part: np.ndarray
    share: np.ndarray
    summary: dict[str, Any]
    digest: str = ""

    def __len__(self) -> int:
        return len(self.row)


def contamination(
    pool: Pool, targets: Mapping[str, Pool], store: Path, config: Config | None = None, quiet: bool = True
) -> Matches:
    """Matches of the rows of `pool` with those of every target: found, or read from the store."""
    config = config or Config()
    recipe = {
        "check": "contamination",
        "version": 1,
        "pool": pool.digest,
        "targets": [target.digest for target in targets.values()],
        "parameters": asdict(config),
    }
    bounds = shard_bounds(len(pool))
    thing = Store(store).open("hygiene", recipe, shards=len(bounds))
    if thing.state != "complete":
        thing.begin()
        index = Index(targets.values(), config)
        with progress(len(pool), "rows", "contamination", quiet) as advance:
            for shard, (start, stop) in enumerate(bounds):
                if shard in thing.missing():
                    with booked(store, "hygiene", thing.digest, "contamination", shard=shard) as entry:
                        thing.write_shard(shard, _matched(pool, start, stop, index))
                        entry["rows"] = stop - start
                advance(stop - start)
        thing.finish({"rows": len(pool), "targets": index.counts})
    columns = {name: thing.joined(name) for name in _FIELDS}
    checked = dict(zip(targets, thing.summary["targets"], strict=True))
    return Matches(tuple(targets), **columns, summary=checked, digest=thing.digest)


# --- targets --------------------------------------------------------------------------------------------


class Index:
    """Distinct n-grams of all parts of all targets, and which part each belongs to.

    `grams` (g,) uint64 sorted; those of `grams[i]` are `parts[bounds[i]:bounds[i + 1]]`. Of each part:
    `target`, `row`, `kind`, `size` (its distinct n-grams that count) and `needed` (how many must occur).
    """

    def __init__(self, targets: Any, config: Config) -> None:
        self.config = config
        self.counts: list[dict[str, int]] = []
        values, owners, described = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], []
        known = 0
        for number, target in enumerate(targets):
            rows: list[tuple[int, int, float]] = []  # row, part, least share
            grams: list[np.ndarray] = []
            for start, stop in windows(target, 0, len(target)):
                for at, turns in enumerate(target.conversations(start, stop), start):
                    for part, (found, least) in enumerate(parts_of(turns, config)):
                        if found is not None:
                            rows.append((at, part, least))
                            grams.append(found)
            owner = np.repeat(np.arange(len(rows)), [len(found) for found in grams])
            value = np.concatenate([np.empty(0, np.uint64), *grams])
            common = _template(value, np.array([at for at, _, _ in rows], np.int64)[owner], len(target))
            value, owner = value[~common], owner[~common]
            left = np.bincount(owner, minlength=len(rows)) > 0
            self.counts.append(_counts(len(target), [rows[i] for i in np.flatnonzero(left)]))
            values.append(value)
            owners.append(owner + known)
            described += [(number, *row) for row in rows]
            known += len(rows)
        owner, value = np.concatenate(owners), np.concatenate(values)
        order = np.lexsort((owner, value))
        value, self.parts = value[order], owner[order]
        self.grams, first = np.unique(value, return_index=True)
        self.bounds = np.append(first, len(value))
        self.target, self.row, self.kind = (
            np.array([part[i] for part in described], dtype)
            for i, dtype in ((0, np.int32), (1, np.int32), (2, np.uint8))
        )
        self.size = np.bincount(owner, minlength=known)
        shares = np.array([part[3] for part in described])
        self.needed = np.maximum(np.ceil(shares * self.size - 1e-9), 1).astype(np.int64)
        self.table = np.zeros(1 << _TABLE_BITS, bool)
        self.table[self._place(self.grams)] = True

    @staticmethod
    def _place(grams: np.ndarray) -> np.ndarray:
        place: np.ndarray = grams >> np.uint64(64 - _TABLE_BITS)
        return place

    def held(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of `grams` are n-grams of a target, their numbers)."""
        at = np.flatnonzero(self.table[self._place(grams)])
        if not len(at):
            return at, at
        place = np.minimum(np.searchsorted(self.grams, grams[at]), len(self.grams) - 1)
        same = self.grams[place] == grams[at]
        return at[same], place[same]


def parts_of(turns: list[Message], config: Config) -> list[tuple[np.ndarray | None, float]]:
    """(distinct n-grams, least share of them) of the prompt and the answer; None for what is too short."""
    asked = [turn for turn in turns if turn.role == "user"]
    answers = [turn for turn in turns if turn.role == "assistant"][-1:]
    found: list[tuple[np.ndarray | None, float]] = []
    for kind, part in zip(PARTS, (asked, answers), strict=True):
        words = words_of([part])
        sizes = _sizes(part, words)
        grams, _ = ngrams(words, config.words)
        short = sum(sizes) < config.whole
        if kind == "prompt" and (short or not len(grams)):
            fits = np.array([size >= config.words for size in sizes], bool)
            whole = np.flatnonzero(~fits & (np.array(sizes) >= config.least))
            keep = grams if fits.any() else grams[:0]
            grams = np.concatenate([keep, whole_turns(words, whole)])
        elif short:
            grams = grams[:0]
        least = 1.0 if short else config.share
        found.append((np.unique(grams) if len(grams) else None, least))
    return found


def _sizes(turns: list[Message], words: Words) -> list[float]:
    """Words of each turn, where a single character outside ASCII is half a word."""
    found = []
    for turn, (first, last) in zip(turns, zip(words.bounds[:-1], words.bounds[1:], strict=True), strict=True):
        text = normal(turn.content)
        spans = words.spans[first:last].tolist()
        alone = 0 if text.isascii() else sum(b - a == 1 and not text[a].isascii() for a, b in spans)
        found.append(len(spans) - alone / 2)
    return found


def _template(grams: np.ndarray, rows: np.ndarray, total: int) -> np.ndarray:
    """Which of the n-grams (of the target's `rows`) are in more than 2 rows and more than 1 % of them."""
    if not len(grams):
        return np.zeros(0, bool)
    _, number = np.unique(grams, return_inverse=True)
    pairs = np.unique(number.astype(np.int64) * total + rows)  # a prompt and its answer are one row
    held = np.bincount(pairs // total)
    common: np.ndarray = held[number] > max(2, total // 100)
    return common


def _counts(rows: int, parts: list[tuple[int, int, float]]) -> dict[str, int]:
    prompts = sum(part == 0 for _, part, _ in parts)
    answers = sum(part == 1 for _, part, _ in parts)
    unchecked = rows - len({row for row, _, _ in parts})
    return {"rows": rows, "prompts": prompts, "answers": answers, "rows_not_checked": unchecked}


# --- the pool -------------------------------------------------------------------------------------------


def _matched(pool: Pool, start: int, stop: int, index: Index) -> dict[str, np.ndarray]:
    """Matches of the pool rows [start, stop)."""
    parts: list[dict[str, np.ndarray]] = []
    for first, last in windows(pool, start, stop):
        words = words_of(pool.conversations(first, last))
        row, gram = _hits(words, index)
        owners = np.diff(index.bounds)[gram]
        at = np.repeat(index.bounds[gram] - np.cumsum(owners) + owners, owners) + np.arange(owners.sum())
        codes = np.repeat(row, owners) * max(len(index.size), 1) + index.parts[at]
        pairs, found = np.unique(codes, return_counts=True)
        row, part = np.divmod(pairs, max(len(index.size), 1))
        enough = found >= index.needed[part]
        row, part, found = row[enough], part[enough], found[enough]
        parts.append(
            {
                "row": row + first, "target": index.target[part], "target_row": index.row[part],
                "part": index.kind[part], "share": found / index.size[part],
            }
        )  # fmt: skip
    return {
        name: np.concatenate([np.empty(0, dtype), *(part[name] for part in parts)]).astype(dtype)
        for name, dtype in _FIELDS.items()
    }


def _hits(words: Words, index: Index) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (row, n-gram of a target) of some rows."""
    grams, at = ngrams(words, index.config.words)
    turns = np.flatnonzero(np.diff(words.bounds) > 0)
    here, number = index.held(grams)
    there, whole = index.held(whole_turns(words, turns))
    turn = np.searchsorted(words.bounds, at[here], side="right") - 1
    row = np.concatenate([words.row[turn], words.row[turns[there]]])
    codes = np.unique(row * max(len(index.grams), 1) + np.concatenate([number, whole]))
    return np.divmod(codes, max(len(index.grams), 1))


# --- the text that matched ------------------------------------------------------------------------------


def excerpt(turns: list[Message], target: list[Message], part: int, config: Config) -> str:
    """The longest run of the pool row's own text whose n-grams are in a part of the target row, cut at 300
    characters."""
    role = "user" if PARTS[part] == "prompt" else "assistant"
    side = [turn for turn in target if turn.role == role]
    side = side if part == 0 else side[-1:]
    theirs, ours = words_of([side]), words_of([turns])
    grams, at = ngrams(ours, config.words)
    begins = at[np.isin(grams, ngrams(theirs, config.words)[0])]
    if not len(begins):
        whole = whole_turns(theirs, np.arange(len(side)))
        same = np.flatnonzero(np.isin(whole_turns(ours, np.arange(len(turns))), whole))
        return _cut(turns[int(same[0])].content) if len(same) else ""
    turn = np.searchsorted(ours.bounds, begins, side="right") - 1
    breaks = np.flatnonzero((np.diff(begins) > 1) | (np.diff(turn) > 0))
    starts, ends = np.append(0, breaks + 1), np.append(breaks, len(begins) - 1)
    best = int(np.argmax(begins[ends] - begins[starts]))
    first, last = begins[starts[best]], begins[ends[best]] + config.words - 1
    said = turns[int(turn[starts[best]])].content
    text = normal(said)
    shown = said if len(said) == len(text) else text  # where lower case has other lengths, show that
    return _cut(shown[ours.spans[first, 0] : ours.spans[last, 1]])


def _cut(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def contamination_slow(
    rows: list[list[Message]], target: list[list[Message]], config: Config
) -> set[tuple[int, int, int, float]]:
    """{(row, target row, part, share)} from sets of word tuples, every pool row with every target row."""

    def cut(text: str) -> tuple[str, ...]:
        return tuple(word for word in splitter("words")(text) if kinds()[ord(word[0])])

    def length(words: tuple[str, ...]) -> float:
        return sum(0.5 if len(word) == 1 and not word.isascii() else 1 for word in words)

    def grams(words: tuple[str, ...]) -> set[Any]:
        return {words[i : i + config.words] for i in range(len(words) - config.words + 1)}

    held = []
    for turns in target:
        asked = [cut(turn.content) for turn in turns if turn.role == "user"]
        answer = [cut(turn.content) for turn in turns if turn.role == "assistant"][-1:]
        for part, side in enumerate((asked, answer)):
            found = set().union(*map(grams, side))
            if sum(map(length, side)) < config.whole or (not found and part == 0):
                long = [words for words in side if length(words) >= config.words]
                found = set().union(*map(grams, side)) if long else set()
                found |= {("whole", w) for w in side if config.least <= length(w) < config.words}
                found = found if part == 0 else set()
            held.append(found)
    often = Counter(gram for both in zip(held[::2], held[1::2], strict=True) for gram in both[0] | both[1])
    result = set()
    for i, turns in enumerate(rows):
        here = [cut(turn.content) for turn in turns]
        mine = set().union(*map(grams, here)) | {("whole", words) for words in here}
        for number, all_grams in enumerate(held):
            found = {gram for gram in all_grams if often[gram] <= max(2, len(target) // 100)}
            at, part = divmod(number, 2)
            role = ("user", "assistant")[part]
            side = [cut(turn.content) for turn in target[at] if turn.role == role][-1 if part else 0 :]
            least = 1.0 if sum(map(length, side)) < config.whole else config.share
            share = len(found & mine) / len(found) if found else 0.0
            if found and share >= least:
                result.add((i, at, part, share))
    return result
