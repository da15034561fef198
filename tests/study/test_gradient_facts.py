"""Norms by length, shares of picks by length, and how many queries had a say."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.study.gradient_facts import gradient_facts


def test_fifths_and_correlation_by_hand() -> None:
    tokens = np.array([10, 50, 20, 40, 30, 5, 60, 70, 80, 90], np.int32)
    norms = 1.0 / tokens
    usable = np.ones(10, bool)
    found = gradient_facts(norms, tokens, usable, np.array([5, 0, 9]), np.array([-1, -1, -1]))
    assert found["rows"] == 10 and found["spearman"] == pytest.approx(-1.0)
    assert [part["tokens"] for part in found["fifths"]] == [[5, 10], [20, 30], [40, 50], [60, 70], [80, 90]]
    assert [part["chosen"] for part in found["fifths"]] == [2, 0, 0, 0, 1]
    assert found["fifths"][0]["norm"] == pytest.approx((1 / 5 + 1 / 10) / 2)
    assert found["queries"] is None


def test_rows_without_a_gradient_do_not_count() -> None:
    tokens = np.arange(1, 8, dtype=np.int32)
    norms = np.array([1, np.nan, 2, 3, 4, 5, 6])
    usable = np.array([True, True, True, False, True, True, True])
    found = gradient_facts(norms, tokens, usable, np.array([0]), np.array([3]))
    assert found["rows"] == 5 and sum(part["rows"] for part in found["fifths"]) == 5
    assert found["queries"] == {"effective": pytest.approx(1.0), "any": 1}


def test_queries_of_equal_say_and_one_that_has_it_all() -> None:
    norms, tokens, usable = np.ones(12), np.full(12, 9), np.ones(12, bool)
    even = gradient_facts(norms, tokens, usable, np.arange(8), np.repeat([0, 1, 2, 3], 2))["queries"]
    assert even == {"effective": pytest.approx(4.0), "any": 4}
    skewed = gradient_facts(norms, tokens, usable, np.arange(10), np.array([0] * 9 + [1]))["queries"]
    assert skewed["any"] == 2 and 1.0 < skewed["effective"] < 1.5
    assert gradient_facts(norms, tokens, usable, np.arange(2), np.zeros(2, int))["spearman"] is None
