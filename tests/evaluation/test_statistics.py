"""Measures of one and of two sets of answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from har_pipeline.evaluation.statistics import mcnemar


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first, second = np.array([1, 1, 1, 1, 1, 0, 1, 0]), np.array([1, 0, 0, 0, 0, 1, 0, 0])
    test = mcnemar(first, second)
    assert (test.first_only, test.second_only) == (5, 1)
    # 2 * (C(6, 0) + C(6, 1)) / 2^6
    assert test.p_value == pytest.approx(14 / 64)
    assert mcnemar(second, first).p_value == pytest.approx(14 / 64)
    assert mcnemar(first, first).p_value == 1
    assert test.describe_p() == "p = 0.22"
    assert mcnemar(np.ones(100), np.zeros(100)).describe_p() == "p < 0.0001"
    assert mcnemar(first.astype(bool), second.astype(bool)) == test
    with pytest.raises(ValueError, match="paired"):
        mcnemar(first, second[:4])


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_agrees_with_scipy(more: int, less: int) -> None:
    test = mcnemar(np.array([1] * more + [0] * less + [1, 0]), np.array([0] * more + [1] * less + [1, 0]))
    assert (test.first_only, test.second_only) == (more, less)
    assert test.p_value == pytest.approx(binomtest(more, more + less).pvalue if more + less else 1)
