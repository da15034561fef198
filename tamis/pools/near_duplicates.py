"""Rows that say nearly the same as an earlier row of the pool.

**Paper.** A. Broder, "On the resemblance and containment of documents", 1997 (shingles, MinHash); banding
after A. Gionis, P. Indyk, R. Motwani, "Similarity search in high dimensions via hashing", VLDB 1999.
Signatures are made by the library rensa.
**Definition.** Shingles of a row: the runs of `words` words within each of its turns; a turn of fewer words
is one shingle. Words are lower-cased runs of letters and digits, and single characters of scripts that write
no spaces, so case, punctuation and white space change nothing. Rows in pool order: a row is dropped when the
Jaccard similarity |A ∩ B| / |A ∪ B| of its shingles and those of a kept earlier row is at least `threshold`;
of several such rows the most similar one is named, then the earliest.
**Needs.** The text of the pool.
**Gives.** For each dropped row the kept row it repeats, and their similarity.
**Cost.** Time is linear in the text for the signatures, and in the candidate pairs for the comparisons. On
disk while it works 8 bytes a shingle and 8 a row and band; in memory a shard of the pool, and 8 bytes a
candidate pair.
**Departs.** Every candidate is compared by its shingles, not by its signature, so that what is named is
similar by definition; pairs that share no band are missed (at the threshold fewer than 1 in 100). No chains:
a row is never dropped for its likeness to a row that was itself dropped. In a bucket a row is compared with
`most` rows: the first ones and those just before it; what remains is counted as `pairs_not_compared`.
**Relations.** Exact duplicates were merged when the pool was read. `diversity-threshold` does the same with
the vectors of a representation, among chosen rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.cost import booked
from tamis.core.extras import need
from tamis.core.progress import progress
from tamis.core.store import Store, Thing, shard_bounds
from tamis.pools._shingles import mixed, shingles, windows, words_of

if TYPE_CHECKING:
    from tamis.pools.pool import Pool

_FOUND_AT_THRESHOLD = 0.99
_STEP = 1 << 16


@dataclass(frozen=True)
class Config:
    """`threshold`: least similarity of a near duplicate; `words`: words of a shingle; `permutations`: numbers
    of a signature; `most`: comparisons of a row within one bucket."""

    threshold: float = 0.8
    words: int = 3
    permutations: int = 128
    most: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold}: expected a number in (0, 1]")
        if min(self.words, self.permutations, self.most) < 1 or self.seed < 0:
            raise ValueError("words, permutations and most must be at least 1, seed at least 0")

    @property
    def bands(self) -> tuple[int, int]:
        """Bands of a signature and the rows of each: the longest bands that find 99 % at the threshold."""
        for rows in range(self.permutations, 1, -1):
            bands = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** bands >= _FOUND_AT_THRESHOLD:
                return bands, rows
        return self.permutations, 1


@dataclass(frozen=True)
class NearDuplicates:
    """Repeating rows in pool order: `rows` (k,) int64, the kept rows `of` (k,) int64, `similarity` (k,)
    float32. `summary`: counts of what was compared.
    """

    rows: np.ndarray
    of: np.ndarray
    similarity: np.ndarray
    summary: dict[str, Any]
    digest: str = ""


def near_duplicates(
    pool: Pool, store: Path, config: Config | None = None, quiet: bool = True
) -> NearDuplicates:
    """Near duplicates of a pool: found, or read from the store."""
    config = config or Config()
    recipe = {
        "check": "near-duplicates",
        "version": 1,
        "pool": pool.digest,
        "parameters": asdict(config),
    }
    thing = Store(store).open("hygiene", recipe, shards=1)
    if thing.state != "complete":
        work = _signatures(pool, store, config, quiet, thing.digest)
        thing.begin()
        with booked(store, "hygiene", thing.digest, "near-duplicates") as entry:
            sketches = Sketches(work, len(pool))
            pairs, skipped = candidates(sketches.bands(), config.most)
            rows, of, similarity = kept_first(sketches, pairs, config.threshold, quiet)
            thing.write_shard(0, {"rows": rows, "of": of, "similarity": similarity})
            entry["rows"] = len(pool)
        thing.finish(
            {
                "rows": len(pool),
                "near_duplicates": len(rows),
                "groups": len(np.unique(of)),
                "candidate_pairs": len(pairs),
                "pairs_not_compared": skipped,
            }
        )
        Store(store).remove(work)
    rows, of, similarity = (np.asarray(thing.array(0, name)) for name in ("rows", "of", "similarity"))
    return NearDuplicates(rows, of, similarity, thing.summary, thing.digest)


# --- signatures -----------------------------------------------------------------------------------------


def _signatures(pool: Pool, store: Path, config: Config, quiet: bool, paid_for: str) -> Thing:
    """Shingles and band keys of every row as a stored thing, made shard by shard."""
    rensa = need("rensa", extra="hygiene")
    recipe = {
        "check": "near-duplicates: shingles",
        "version": 1,
        "pool": pool.digest,
        "words": config.words,
        "signature": ["rensa", rensa.RMinHash.ALGORITHM_VERSION, config.permutations, config.seed],
        "bands": list(config.bands),
    }
    bounds = shard_bounds(len(pool))
    work = Store(store).open("hygiene-shingles", recipe, shards=len(bounds))
    work.begin()
    with progress(len(pool), "rows", "near duplicates: signatures", quiet) as advance:
        for shard, (start, stop) in enumerate(bounds):
            if shard in work.missing():
                with booked(store, "hygiene", paid_for, "near-duplicates", shard=shard) as entry:
                    work.write_shard(shard, _sketch(pool, start, stop, config, rensa))
                    entry["rows"] = stop - start
            advance(stop - start)
    work.finish({"rows": len(pool)})
    return work


def _sketch(pool: Pool, start: int, stop: int, config: Config, rensa: Any) -> dict[str, np.ndarray]:
    """`shingles`: sorted, distinct, row after row; `sizes` of the rows; `bands` (rows, bands) of keys."""
    bands, width = config.bands
    values, sizes, keys = [], [], [np.empty((0, bands), np.uint64)]
    for first, last in windows(pool, start, stop):
        found, bounds = shingles(words_of(pool.conversations(first, last)), config.words, last - first)
        found, bounds = _distinct(found, bounds)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            found, bounds.astype(np.uint64), config.permutations, config.seed
        )
        signature = np.array(matrix.to_rows(), np.uint64).reshape(last - first, config.permutations)
        key = np.zeros((last - first, bands), np.uint64)
        for i in range(width):
            key = mixed(key ^ signature[:, i : bands * width : width])
        keys.append(key)
        values.append(found)
        sizes.append(np.diff(bounds))
    return {
        "shingles": np.concatenate([np.empty(0, np.uint64), *values]),
        "sizes": np.concatenate([np.empty(0, np.int64), *sizes]).astype(np.int32),
        "bands": np.concatenate(keys),
    }


def _distinct(values: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of each row in order of size, and where each row's begin."""
    row = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    order = np.argsort(values, kind="stable")
    order = order[np.argsort(row[order].astype(np.uint32), kind="stable")]
    values, row = values[order], row[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (row[1:] != row[:-1])
    return values[new], np.searchsorted(row[new], np.arange(len(bounds)))


class Sketches:
    """The stored shingles and band keys of all rows, memory-mapped."""

    def __init__(self, thing: Thing, rows: int) -> None:
        self.thing, self.rows = thing, rows
        self.parts = [part.view(np.ndarray) for part in thing.arrays("shingles")]  # sliced a million times
        self.sizes = thing.joined("sizes").astype(np.int64)
        counts = [len(part) for part in thing.arrays("sizes")]
        self.first = np.cumsum([0, *counts])
        self.bounds = self.first.tolist()
        self.begins = np.concatenate(
            [np.cumsum(part) - part for part in np.split(self.sizes, self.first[1:-1])]
        )

    def bands(self) -> Iterator[np.ndarray]:
        """Keys (n,) of one band after the other; a row without words has a key of its own in each."""
        none = np.flatnonzero(self.sizes == 0)
        parts = self.thing.arrays("bands")
        for band in range(parts[0].shape[1]):
            keys = np.concatenate([part[:, band] for part in parts])
            keys[none] = mixed(none.astype(np.uint64))
            yield keys

    def of(self, row: int) -> np.ndarray:
        """The shingles of a row, sorted."""
        shard = bisect_right(self.bounds, row) - 1
        begin = int(self.begins[row])
        return self.parts[shard][begin : begin + int(self.sizes[row])]


# --- pairs ----------------------------------------------------------------------------------------------


def candidates(bands: Iterator[np.ndarray], most: int) -> tuple[np.ndarray, int]:
    """Pairs (p, 2) int64 of rows, the earlier first, that share a band's key, in order of the later row.

    In a bucket of equal keys a row goes with the first most/2 and the last most/2 rows before it; the second
    result counts the pairs that this leaves out (in every band anew).
    """
    found = np.empty(0, np.uint64)
    skipped = 0
    for keys in bands:
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(keys) else order
        lengths = np.diff(np.append(starts, len(keys)))
        place = np.arange(len(keys)) - np.repeat(starts, lengths)  # of a row in its bucket
        near, far = most - most // 2, most // 2
        codes = []
        for back in range(1, near + 1):
            here = np.flatnonzero(place >= back)
            if not len(here):
                break
            codes.append(_code(order[here - back], order[here]))
        for ahead in range(far):
            here = np.flatnonzero(place - near > ahead)
            if not len(here):
                break
            codes.append(_code(order[here - place[here] + ahead], order[here]))
        skipped += int(np.maximum(place - most, 0).sum())
        found = np.concatenate([found, *codes])
        found.sort(kind="stable")  # in place, and merges what is sorted already
        found = found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found
    return np.stack([found & np.uint64(0xFFFFFFFF), found >> np.uint64(32)], axis=1).astype(np.int64), skipped


def _code(early: np.ndarray, late: np.ndarray) -> np.ndarray:
    made: np.ndarray = (late.astype(np.uint64) << np.uint64(32)) | early.astype(np.uint64)
    return made


def kept_first(
    sketches: Sketches, pairs: np.ndarray, threshold: float, quiet: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dropped rows, the kept row of each, similarity) among candidate pairs in order of the later row.

    When a row is reached, what becomes of all rows before it is known: pairs with a dropped one are skipped.
    """
    sizes = sketches.sizes[pairs]
    pairs = pairs[sizes.min(1) >= threshold * sizes.max(1)]  # |A ∩ B| ≤ the smaller, |A ∪ B| ≥ the greater
    dropped: dict[int, tuple[int, float]] = {}
    held, mine, near = -1, np.empty(0, np.uint64), (-1, 0.0)
    with progress(len(pairs), "pairs", "near duplicates: comparisons", quiet) as advance:
        for start in range(0, len(pairs), _STEP):
            step = pairs[start : start + _STEP]
            for early, late in step.tolist():
                if late != held:
                    if near[1]:
                        dropped[held] = near
                    held, mine, near = late, sketches.of(late), (-1, 0.0)
                if early not in dropped:
                    value = jaccard(sketches.of(early), mine)
                    if value >= threshold and value > near[1]:
                        near = (early, value)
            advance(len(step))
    if near[1]:
        dropped[held] = near
    rows = np.fromiter(dropped, np.int64, len(dropped))
    of = np.array([early for early, _ in dropped.values()], np.int64)
    return rows, of, np.array([value for _, value in dropped.values()], np.float32)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted arrays of distinct values; 0 when both are empty."""
    both = np.concatenate([a, b])
    both.sort(kind="stable")
    shared = int((both[1:] == both[:-1]).sum())
    return shared / (len(both) - shared) if len(both) else 0.0


def near_duplicates_slow(sets: list[set[Any]], threshold: float) -> dict[int, tuple[int, float]]:
    """Every row against every kept earlier one, from sets of shingles: {dropped: (kept, similarity)}."""
    kept: list[int] = []
    dropped: dict[int, tuple[int, float]] = {}
    for late, mine in enumerate(sets):
        best = (-1, 0.0)
        for early in kept:
            union = len(mine | sets[early])
            value = len(mine & sets[early]) / union if union else 0.0
            if value >= threshold and value > best[1]:
                best = (early, value)
        if best[0] < 0:
            kept.append(late)
        else:
            dropped[late] = best
    return dropped
