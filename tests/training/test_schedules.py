"""Learning rates at the epochs that the paper names."""

from __future__ import annotations

import pytest

from har_pipeline.training.schedules import (
    fine_tune_rate,
    halvings,
    one_cycle_rate,
    stateful_rate,
    stateless_rate,
    triangle,
)


def test_stateful_steps_at_the_published_epochs() -> None:
    rates = [stateful_rate(epoch - 1) for epoch in range(1, 26)]
    assert rates[:3] == [9e-5] * 3
    assert rates[3:7] == [3e-5] * 4
    assert rates[7:14] == [8e-6] * 7
    assert rates[14:18] == [4e-6] * 4
    assert rates[18:22] == [2e-6] * 4
    assert rates[22:] == [1e-6] * 3
    assert stateful_rate(2.999) == 9e-5


def test_stateless_cycles_stay_between_the_published_bounds() -> None:
    first = [stateless_rate(k / 100) for k in range(2100)]
    second = [stateless_rate(21 + k / 100) for k in range(2300)]
    assert (min(first), max(first)) == (8e-5, pytest.approx(9.8e-4, rel=1e-9))
    assert (min(second), max(second)) == (1e-5, pytest.approx(1e-4, rel=1e-9))
    assert [stateless_rate(done) for done in (44, 45.5, 47.99)] == [1e-5] * 3
    assert stateless_rate(0) == stateless_rate(7) == stateless_rate(14) == 8e-5
    assert stateless_rate(1.75) == pytest.approx((8e-5 + 9.8e-4) / 2)
    assert stateless_rate(2, 4.0) == pytest.approx(9.8e-4)


def test_a_cycle_is_linear_up_and_down() -> None:
    assert [triangle(done, 1, 3, 4) for done in (0, 1, 2, 3, 4, 5)] == [1, 2, 3, 2, 1, 2]


def test_fine_tuning_halves_after_four_epochs_without_gain() -> None:
    assert [fine_tune_rate(k) for k in (0, 1, 2)] == [2e-4, 1e-4, 5e-5]
    assert halvings([]) == 0
    assert halvings([0.5, 0.4, 0.5, 0.5]) == 0
    assert halvings([0.5, 0.4, 0.5, 0.5, 0.5]) == 1
    assert halvings([0.5, 0.4, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6]) == 0
    # The count starts anew after each halving.
    assert halvings([0.5] * 8) == 1
    assert halvings([0.5] * 9) == 2
    assert halvings([0.5, 0.5, 0.5], patience=1) == 2


def test_one_cycle_goes_up_then_down() -> None:
    rates = [one_cycle_rate(k / 10, 10, 1.0) for k in range(101)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[30] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.01)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[65] == pytest.approx((1 + 0.01) / 2)
