"""Transport: POT as the oracle, the published masses, the limits, and what the shortlist leaves out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.selections import choose, choose_ranked, transport
from tamis.selections.transport import transport_slow
from tests.conftest import Conformance, shared
from tests.selections.draws import Stream, both

F1 = np.array(
    [[0.9, 0.8, 0.7, 0.1, 0.2, 0.3], [0.85, 0.4, 0.75, 0.2, 0.1, 0], [0.1, 0.2, 0.3, 0.6, 0.5, 0.05]]
)
CASES = ("plain", "ties", "duplicates", "wide", "degenerate", "peaked", "rds")


def masses(scores: Any, **parameters: Any) -> np.ndarray:
    choice = choose_ranked("transport", scores, scores.shape[1], **parameters)
    found = np.empty(scores.shape[1])
    found[choice.positions] = choice.gain
    return found


def clustered(seed: int, m: int, n: int, spread: float) -> np.ndarray:
    """Cosines (m, n) float32 of queries and rows around a few common directions."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((5, 32))
    both = rng.standard_normal((m + n, 32)) * spread + centres[rng.integers(0, 5, m + n)]
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    scores: np.ndarray = (both[:m] @ both[m:].T).astype(np.float32)
    return scores


def test_by_hand() -> None:
    choice = choose_ranked("transport", F1, 6)
    assert choice.positions.tolist() == [0, 3, 2, 1, 4, 5]
    expected = [0.661932, 0.002359, 0.002375, 0.330990, 0.002343, 0]
    np.testing.assert_allclose(masses(F1), expected, atol=1e-6)
    assert choice.query.tolist()[:3] == [1, 2, 1]
    assert choice.notes["clipped"] == 0 and choice.notes["mass_error"] == [0]


def test_without_a_pull_on_the_rows_it_is_the_mean_of_softmaxes() -> None:
    np.testing.assert_allclose(
        masses(F1, m2=0), [0.662190, 0.002231, 0.002246, 0.331102, 0.002231, 0], atol=1e-6
    )
    scores = clustered(0, 7, 400, 0.5).astype(np.float64)
    weights = np.exp(scores / 0.02)
    softmax = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
    for m2, close in ((0.0, 1e-6), (1e-12, 1e-6), (1e-8, 1e-4)):
        np.testing.assert_allclose(masses(scores, m2=m2), softmax, rtol=close)


def recorded(case: str) -> tuple[np.ndarray, dict[str, Any], Any]:
    described = json.loads(shared("golden/selection.json").read_text())[case]
    arrays = np.load(shared("golden/selection.npz"))
    if case == "rds":
        return np.load(shared("golden/representations.npz"))["rds_similarity"], described, arrays
    return arrays[f"{case}.sim"], described, arrays


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", ["float32", "float64"])
def test_the_published_masses_and_their_order(case: str, width: str, conforms: Conformance) -> None:
    scores, described, arrays = recorded(case)
    expected = arrays[f"{case}.uot_mass_{width}"]
    for source in both(scores, block_rows=50):
        whole = choose("transport", source, len(expected))
        conforms.close("`transport`, masses", masses(source.scores), expected, atol=1e-7)
        # The same order where their masses differ by more than the tolerance.
        later = np.maximum.accumulate(expected[whole][::-1])[::-1]
        assert (later - expected[whole]).max() <= 2e-7
        for budget, ids in described["ids"][f"dcml.uot.{width}"].items():
            ours = choose("transport", source, int(budget))
            np.testing.assert_allclose(np.sort(expected[ours]), np.sort(expected[ids]), rtol=0, atol=2e-7)
            clear = [row for row in ids if expected[row] > expected[ids].min() + 2e-7]
            assert set(clear) <= set(ours.tolist())


@pytest.mark.parametrize("case", CASES)
def test_pot_run_to_its_end(case: str) -> None:
    ot = pytest.importorskip("ot", reason="POT, of the extra dev")
    scores = recorded(case)[0].astype(np.float64)
    m, n = scores.shape
    plan = ot.unbalanced.sinkhorn_unbalanced(
        np.full(m, 1 / m), np.full(n, 1 / n), (1 - scores.clip(-1, 1)) / 2, reg=0.01,
        reg_m=(float("inf"), 1e-4), reg_type="kl", numItermax=1000, stopThr=1e-14,
    )  # fmt: skip
    np.testing.assert_allclose(masses(scores), plan.sum(axis=0), rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize(("eps", "m2"), [(0.01, 1e-4), (0.05, 0.02), (0.02, 0.1)])
def test_the_slow_definition_agrees(eps: float, m2: float) -> None:
    scores = clustered(1, 6, 150, 0.6)
    expected = transport_slow(scores, eps, m2)
    for source in both(scores, block_rows=11):
        choice = choose_ranked("transport", source, 150, eps=eps, m2=m2)
        np.testing.assert_allclose(choice.gain, expected[choice.positions], rtol=1e-6)
        assert (np.diff(choice.gain) <= 0).all()


@pytest.mark.parametrize("spread", [0.2, 0.6, 3.0])
@pytest.mark.parametrize("budget", [20, 100, 900])
def test_a_shortlist_changes_the_masses_by_less_than_it_says(
    spread: float, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = clustered(2, 12, 1500, spread)
    exact = choose_ranked("transport", scores, 1500)
    mass = np.empty(1500)
    mass[exact.positions] = exact.gain
    monkeypatch.setattr(transport, "LIST_ENTRIES", 12 * 200)
    for tolerance in (1e-3, 1e-7, 1e-9):
        found = choose_ranked("transport", Stream(scores, block_rows=400), budget, tolerance=tolerance)
        bound = found.notes["mass_error"][0]
        assert bound <= tolerance
        # Gains are float32.
        error = np.abs(found.gain - mass[found.positions]) - 1.2e-7 * mass[found.positions]
        assert error.max() <= bound
    # Budgets are prefixes of one order though some take a pass more.
    more = choose("transport", Stream(scores, block_rows=400), 1500, tolerance=tolerance)
    assert more[:budget].tolist() == found.positions.tolist()
    assert more.tolist() == exact.positions.tolist()


def test_far_rows_and_small_temperatures_do_not_underflow() -> None:
    scores = np.array([[1.0, 0.5, -1.0, -1.0], [1.0, -1.0, 0.9, -1.0]])
    choice = choose_ranked("transport", scores, 4, eps=1e-4)
    assert choice.positions.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(choice.gain[0], 1, atol=1e-6)


def test_scores_beyond_one_are_cut_off_and_counted_or_refused() -> None:
    scores = np.array([[1.002, 1.0, 0.5], [0.2, 0.2, 0.1]])
    choice = choose_ranked("transport", scores, 3)
    assert choice.notes["clipped"] == 1
    assert choice.gain[0] == choice.gain[1] and choice.positions.tolist() == [0, 1, 2]
    with pytest.raises(RequestError, match=r"cosines, from -1 to 1; found scores from 0.5 to 30"):
        choose("transport", np.array([[30.0, 0.5]]), 1)


def test_rows_that_are_not_finite_stay_out() -> None:
    scores = F1.astype(np.float32)
    scores[1, 0] = np.nan
    for source in both(scores, block_rows=2):
        choice = choose_ranked("transport", source, 5)
        assert 0 not in choice.positions and choice.notes["nan_count"] == 1
        np.testing.assert_allclose(choice.gain.sum(), 1, rtol=1e-6)


def test_tasks_name_the_task_of_the_query() -> None:
    choice = choose_ranked("transport", F1, 2, task_of=["a", "b", "c"])
    assert choice.task.tolist() == choice.query.tolist() == [1, 2]


@pytest.mark.parametrize("wrong", [{"eps": 0}, {"m2": -1}, {"tolerance": 0}])
def test_parameters_outside_their_domain_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        choose("transport", F1, 1, **wrong)
