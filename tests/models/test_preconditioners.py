"""What an optimizer makes of a gradient: the worked examples, each form by hand, and missing moments."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tests.conftest import Conformance

torch = pytest.importorskip("torch")

from tamis.models.preconditioners import NEED_MOMENTS, PRECONDITIONERS, Constants, Moments  # noqa: E402

Rows = list[list[float]]
BIASED = ([0.1, -0.2], [0.04, 0.01], [[1.0, 2.0]])  # m, v, g
SMALL = ([0.0, 0.0], [1e-10, 1e-8], [[1e-5, 1e-4]])


def apply(name: str, first: list[float], second: list[float], g: Rows, **constants: float) -> np.ndarray:
    moments = Moments(torch.tensor(first), torch.tensor(second))
    found: np.ndarray = PRECONDITIONERS[name](torch.tensor(g), moments, Constants(**constants)).numpy()
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_bias_correction_is_one_factor_for_all_numbers_published() -> None:
    found = apply("less", *BIASED)[0]
    np.testing.assert_allclose(found, [0.938801, 0.169091], atol=1e-6)
    first, second = (np.array([0.19, 0.02]), np.array([0.04096, 0.01399]))
    corrected = (first / (1 - 0.9**10)) / (np.sqrt(second / (1 - 0.999**10)) + 1e-8)
    np.testing.assert_allclose(corrected, [0.143814, 0.025903], atol=1e-6)
    np.testing.assert_allclose(corrected / found, 0.153189, atol=1e-6)
    for other in np.random.default_rng(0).normal(size=(20, 2)):
        assert cosine(found, other) == pytest.approx(cosine(corrected, other), abs=1e-6)


def test_the_place_of_epsilon_changes_directions_published(conforms: Conformance) -> None:
    inside, outside = apply("less", *SMALL)[0], apply("adam", *SMALL)[0]
    np.testing.assert_allclose(inside, [0.009950, 0.070711], atol=1e-6)
    np.testing.assert_allclose(outside, [0.099900, 0.099990], atol=1e-6)
    ones = np.ones(2)
    cosines = [cosine(inside, ones), cosine(outside, ones)]
    conforms.close("`less`, epsilon inside and outside of the root", cosines, [0.798741, 1.0], atol=1e-6)


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_by_hand_number_by_number(name: str) -> None:
    draw = np.random.default_rng(1)
    g, m, v = draw.normal(size=(3, 4)), draw.normal(size=4), draw.random(4)
    b1, b2, eps = 0.8, 0.95, 1e-3

    def of(g: float, m: float, v: float) -> float:
        first, second = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return {
            "less": first / (second + eps) ** 0.5,
            "adam": first / (second**0.5 + eps),
            "rms": g / (v**0.5 + eps),
            "sign": 1 if g > 0 else -1,
            "none": g,
        }[name]

    wanted = [[of(*numbers) for numbers in zip(row, m, v, strict=True)] for row in g]
    given = torch.tensor(g, dtype=torch.float32)
    moments = Moments(torch.tensor(m, dtype=torch.float32), torch.tensor(v, dtype=torch.float32))
    before = moments.first.clone(), moments.second.clone()
    found = PRECONDITIONERS[name](given, moments, Constants(b1, b2, eps))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    assert torch.equal(moments.first, before[0]) and torch.equal(moments.second, before[1])


def test_usual_constants_are_those_of_adamw() -> None:
    wanted = (0.9 * 0.1 + 0.1 * 1) / (0.999 * 0.04 + 0.001 + 1e-8) ** 0.5
    assert apply("less", *BIASED)[0, 0] == pytest.approx(wanted, rel=1e-6)
    defaults = torch.optim.AdamW([torch.zeros(1)]).defaults
    assert (*defaults["betas"], defaults["eps"]) == (
        Constants().beta1,
        Constants().beta2,
        Constants().epsilon,
    )


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_missing_moments_are_an_error_where_they_are_needed(name: str) -> None:
    g = torch.tensor([[0.0, -2.0]])
    if name in NEED_MOMENTS:
        with pytest.raises(RequestError, match="needs the optimizer's moments"):
            PRECONDITIONERS[name](g, None, Constants())
    else:
        assert PRECONDITIONERS[name](g, None, Constants()).tolist() == [[0, -1 if name == "sign" else -2]]


def test_a_gradient_that_is_not_finite_stays_so() -> None:
    for name in PRECONDITIONERS:
        found = apply(name, [0.1, 0.1], [0.1, 0.1], [[float("nan"), 1.0], [float("inf"), 1.0]])
        assert np.isnan(found[0, 0]) and not np.isfinite(found[1, 0]), name
        assert np.isfinite(found[:, 1]).all(), name
