"""Diversity threshold: by hand, against one row at a time, blocks, zero vectors, the released filter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from tamis.core.errors import RequestError
from tamis.core.vectors import SparseVectors
from tamis.selections import choose, choose_ranked, diversity_threshold
from tamis.selections.diversity_threshold import diversity_threshold_slow
from tests.conftest import Conformance, shared

NAME = "diversity-threshold"


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


T8, SCORE = at(0, 20, 40, 60), np.array([4.0, 3.0, 2.0, 1.0])


@pytest.mark.parametrize(("tau", "kept"), [(0.9, [0, 2]), (0.7, [0, 3]), (0.95, [0, 1, 2, 3])])
def test_by_hand(tau: float, kept: list[int]) -> None:
    found = choose(NAME, SCORE, 4, vectors=T8, max_similarity=tau, allow_underflow=True)
    assert found.tolist() == kept == diversity_threshold_slow(SCORE, T8, 4, tau)


def test_the_released_batches_leave_out_more() -> None:
    found = choose(NAME, SCORE, 4, vectors=T8, max_similarity=0.9, judged=3, allow_underflow=True)
    assert found.tolist() == [0]  # rows 1 to 3 are judged together: 1 is near 0, 2 near 1, and 3 near 2


def test_underflow_is_an_error_or_raises_the_threshold() -> None:
    with pytest.raises(RequestError, match="can choose 2 of the 3"):
        choose(NAME, SCORE, 3, vectors=T8)
    choice = choose_ranked(NAME, SCORE, 3, vectors=T8, escalate=(0.92, 0.95, 1.0))
    # 0 and 2 pass at 0.9 and stay; 1 is 0.9397 from both.
    assert choice.positions.tolist() == [0, 2, 1] and choice.notes["max_similarity"] == 0.95
    with pytest.raises(RequestError, match="cosines that rise"):
        choose(NAME, SCORE, 3, vectors=T8, escalate=(0.8,))


@pytest.mark.parametrize("block", [1, 7, 512])
@pytest.mark.parametrize("sparse", [False, True])
def test_blocks_decide_as_one_row_at_a_time(
    block: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diversity_threshold, "BLOCK", block)
    rng = np.random.default_rng(0)
    vectors = np.abs(rng.normal(size=(200, 6))) * (rng.random((200, 6)) < 0.7) + 1e-3
    score = rng.permutation(200).astype(float)
    given: Any = SparseVectors([csr_array(vectors[:90]), csr_array(vectors[90:])]) if sparse else vectors
    for tau in (0.5, 0.8, 0.95, 1.0):
        for budget in (5, 200):
            expected = diversity_threshold_slow(score, vectors.astype(np.float32).astype(float), budget, tau)
            found = choose(NAME, score, budget, vectors=given, max_similarity=tau, allow_underflow=True)
            assert found.tolist() == expected


def test_a_cosine_at_the_threshold_is_kept() -> None:
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
    assert choose(NAME, SCORE[:3], 2, vectors=vectors, max_similarity=0.6).tolist() == [0, 1]
    assert choose(NAME, SCORE[:3], 1, vectors=vectors, max_similarity=0.6).tolist() == [0]


def test_rows_without_direction_are_left_out_and_counted() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    choice = choose_ranked(NAME, SCORE[:3], 2, vectors=vectors)
    assert choice.positions.tolist() == [1, 2] and choice.notes["zero_vectors"] == 1
    assert choose(NAME, SCORE[:3], 2, vectors=vectors, compatible=True).tolist() == [0, 1]


def test_duplicates_leave_one() -> None:
    vectors = np.repeat(at(0, 90), 3, axis=0)
    assert choose(NAME, np.arange(6.0), 6, vectors=vectors, allow_underflow=True).tolist() == [5, 2]


def test_golden_filter(conforms: Conformance) -> None:
    golden = shared("golden")
    vectors = np.load(golden / "deita.npz")["filter.embeddings"]
    cases = json.loads((golden / "deita.json").read_text(encoding="utf-8"))["filter"]
    compared = 0
    for case in cases.values():
        order = np.array(case["order"])
        score = np.empty(len(order))
        score[order] = -np.arange(len(order), dtype=float)  # the order of the reference, ties included
        for kept in case["kept"]:
            if kept["metric"] != "cosine":
                continue
            budget = len(order) if kept["data_size"] == -1 else kept["data_size"]
            found = choose(
                NAME, score, budget, vectors=vectors, max_similarity=kept["threshold"], tie_seed=None,
                compatible=True, judged=kept["batch_size"], allow_underflow=True,
            )  # fmt: skip
            conforms.exact("`diversity-threshold`, DEITA's filter", found.tolist(), kept["ids"])
            compared += 1
    assert compared > 20
