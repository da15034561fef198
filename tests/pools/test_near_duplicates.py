"""Near duplicates: by hand, against all pairs, planted in the laboratory and in a real pool."""

from __future__ import annotations

import gzip
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import tamis
from tamis.core.store import Store
from tamis.lab import write_lab
from tamis.pools import near_duplicates as private
from tamis.pools._shingles import shingles, words_of
from tamis.pools.near_duplicates import Config, candidates, jaccard, near_duplicates, near_duplicates_slow
from tests.conftest import ROOT, shared
from tests.pools.rows import lines, put


def pool_of(folder: Path, *rows: str | tuple[str, str]):
    """A pool of rows given by prompt, or prompt and answer."""
    pairs = [(row, "yes") if isinstance(row, str) else row for row in rows]
    data = lines({"instruction": prompt, "input": "", "output": answer} for prompt, answer in pairs)
    return tamis.read_pool([put(folder / "pool.jsonl", data)], store=folder / "store")


def sets_of(pool, words: int) -> list[set[int]]:
    values, bounds = shingles(words_of(pool.conversations()), words, len(pool))
    return [set(values[a:b].tolist()) for a, b in pairwise(bounds.tolist())]


def found(pool, tmp_path, **parameters) -> dict[int, tuple[int, float]]:
    near = near_duplicates(pool, tmp_path / "store", Config(**parameters))
    return {
        row: (of, value)
        for row, of, value in zip(*(a.tolist() for a in (near.rows, near.of, near.similarity)), strict=True)
    }


def test_similarity_by_hand(tmp_path):
    # runs of 2 words: ab bc cd de + yes; with f at the end one more, so 5 of 6
    pool = pool_of(tmp_path, "a b c d e", "A, b. c d e f", "a  b c d e!", "x y")
    assert found(pool, tmp_path, words=2) == {1: (0, pytest.approx(5 / 6)), 2: (0, 1.0)}
    assert found(pool, tmp_path, words=2, threshold=0.9) == {2: (0, 1.0)}


def test_a_row_is_dropped_for_a_kept_row_only(tmp_path):
    # A ~ B and B ~ C, but not A ~ C: B goes, C stays
    chain = ["a b c d e f g h", "a b c d e f g h i j", "c d e f g h i j"]
    pool = pool_of(tmp_path, *chain)
    sets = sets_of(pool, 1)
    threshold = 0.75
    assert len(sets[0] & sets[2]) / len(sets[0] | sets[2]) < threshold
    assert found(pool, tmp_path, words=1, threshold=threshold) == {1: (0, pytest.approx(9 / 11))}


def test_the_most_similar_kept_row_is_named_then_the_earliest(tmp_path):
    pool = pool_of(tmp_path, "a b c d e x", "a b c d e f y", "a b c d e f", "a b c d e f!")
    dropped = found(pool, tmp_path, words=1, threshold=0.6)
    assert dropped == near_duplicates_slow_as_found(pool, 1, 0.6)
    pool = pool_of(tmp_path / "2", "p q r s 1", "p q r s 2", "p q r s")
    assert found(pool, tmp_path / "2", words=1, threshold=0.81) == {2: (0, pytest.approx(5 / 6))}


def near_duplicates_slow_as_found(pool, words, threshold):
    slow = near_duplicates_slow(sets_of(pool, words), threshold)
    return {row: (of, pytest.approx(value)) for row, (of, value) in slow.items()}


def test_rows_without_words_and_scripts_without_spaces(tmp_path):
    pool = pool_of(
        tmp_path, ("?", "!"), ("??", "!!"), ("…", ""),
        ("请把这个句子翻译成英语好吗", "好"), ("请把这个句子翻译成英语好吗？", "好。"),
    )  # fmt: skip
    assert found(pool, tmp_path) == {4: (3, 1.0)}


def edited(chance: random.Random, text: str, share: float, vocabulary: list[str]) -> str:
    return " ".join(chance.choice(vocabulary) if chance.random() < share else w for w in text.split())


def test_against_all_pairs(tmp_path):
    """Everything that is named is right; of what is similar at most 1 in 100 is missed at the threshold."""
    chance = random.Random(5)
    vocabulary = [f"w{i}" for i in range(500)]
    texts = [" ".join(chance.choices(vocabulary, k=chance.randrange(5, 80))) for _ in range(400)]
    texts += [edited(chance, chance.choice(texts), chance.random() * 0.04, vocabulary) for _ in range(800)]
    pool = pool_of(tmp_path, *texts)
    slow = near_duplicates_slow(sets_of(pool, 3), 0.8)
    fast = found(pool, tmp_path)
    assert len(slow) > 200
    assert len(set(slow) - set(fast)) <= 0.01 * len(slow)
    assert all(slow[row] == (of, pytest.approx(value)) for row, (of, value) in fast.items() if row in slow)
    assert not set(fast) - set(slow)


def test_candidates_share_a_band_and_a_full_bucket_is_counted():
    bands = np.array([[1, 2], [1, 3], [4, 3], [5, 6]], np.uint64)
    pairs, skipped = candidates(iter(bands.T.copy()), 64)
    assert pairs.tolist() == [[0, 1], [1, 2]] and skipped == 0
    same = np.zeros((10, 1), np.uint64)
    pairs, skipped = candidates(iter(same.T.copy()), 4)
    every = {(i, j) for j in range(10) for i in range(j)}
    expected = {(i, j) for i, j in every if j - i <= 2 or i < 2}
    assert {tuple(pair) for pair in pairs.tolist()} == expected and skipped == len(every) - len(expected)


def test_bands_find_the_threshold():
    assert Config().bands == (21, 6)
    for threshold in (0.3, 0.5, 0.8, 0.9, 1.0):
        bands, rows = Config(threshold=threshold).bands
        assert 1 - (1 - threshold**rows) ** bands >= 0.99 and bands * rows <= 128


@pytest.mark.parametrize("faulty", [{"threshold": 0}, {"threshold": 1.1}, {"words": 0}, {"most": 0}])
def test_faulty_parameters(faulty):
    with pytest.raises(ValueError, match=r"expected|at least"):
        Config(**faulty)


def test_jaccard_of_nothing():
    none = np.empty(0, np.uint64)
    assert jaccard(none, none) == 0.0 and jaccard(none, np.array([1], np.uint64)) == 0.0


def test_the_same_bytes_after_a_stop_and_nothing_is_left_over(tmp_path, monkeypatch):
    write_lab(tmp_path, rows=1200, seed=1)
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / "store")
    whole = near_duplicates(pool, tmp_path / "one")
    made = []
    sketch = private._sketch

    def stopping(*given):
        made.append(given[1])
        if len(made) == 2:
            raise KeyboardInterrupt
        return sketch(*given)

    monkeypatch.setattr(private, "_sketch", stopping)
    with pytest.raises(KeyboardInterrupt):
        near_duplicates(pool, tmp_path / "two")
    again = near_duplicates(pool, tmp_path / "two")
    assert made == sorted([0, 512, 512, 1024]) and again.digest == whole.digest
    for name in ("rows", "of", "similarity"):
        assert np.array_equal(getattr(again, name), getattr(whole, name))
    assert [kind for kind, _, _ in Store(tmp_path / "two").things()] == ["hygiene"]


def test_planted_in_the_laboratory(tmp_path):
    """Every near duplicate that the generator planted is found, with the row that it copies."""
    write_lab(tmp_path, rows=2000, seed=3)
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / "store")
    lines_of_truth = (tmp_path / "truth.jsonl").read_text().splitlines()
    truth = [json.loads(line) for line in lines_of_truth]
    position = {row.line - 1: row.position for row in pool.iter_rows()}
    planted = {
        position[entry["line"]]: position[entry["duplicate_of"]]
        for entry in truth
        if entry["fault"] == "near-duplicate"
    }
    dropped = found(pool, tmp_path)
    assert len(planted) == 60
    assert len(planted.keys() & dropped.keys()) >= 0.95 * len(planted)
    assert sum(dropped[row][0] == of for row, of in planted.items() if row in dropped) >= 0.9 * len(planted)


def test_recall_on_real_rows(tmp_path):
    """Of all rows of a real source that repeat an earlier one, all but 1 in 100 are found."""
    first = gzip.decompress(shared("data/pool/mawps_train.jsonl.gz").read_bytes()).splitlines(True)[:900]
    path = put(tmp_path / "mawps_train.jsonl", b"".join(first))
    pool = tamis.read_pool([path], map=ROOT / "examples/maps/shared-pool.yaml", store=tmp_path / "store")
    slow = near_duplicates_slow(sets_of(pool, 3), 0.8)
    fast = found(pool, tmp_path)
    assert len(slow) > 20 and not set(fast) - set(slow)
    assert len(fast) >= 0.99 * len(slow)


def test_fewer_real_rows_are_left_at_lower_thresholds(tmp_path):
    """As in a published filtering of this source (of 7,673 rows 5,959 at 0.9 and 4,709 at 0.8)."""
    pool = tamis.read_pool([shared("data/pool/gpteacher_toolformer.jsonl.gz")], store=tmp_path / "store")
    left = [len(pool) - len(found(pool, tmp_path, threshold=threshold)) for threshold in (0.9, 0.8)]
    assert left == [7311, 6054]
