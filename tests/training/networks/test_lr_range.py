"""The learning-rate range test: what it does to the rate, and the bounds that it reads off."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from raw_sets import SIZE, drawn_videos, table_of

from har_pipeline.training.networks import lr_range
from har_pipeline.training.networks.loop import BatchResult, Learner, VideoBatch
from har_pipeline.training.networks.lr_range import range_test, smooth, suggest_bounds
from har_pipeline.training.options import VideoTrainConfig

SHAPE = (1, SIZE, SIZE)
FAST = VideoTrainConfig(width=0.05, batch_size=4, device="cpu", precision="fp32")


def test_smoothing_by_hand() -> None:
    found = smooth(np.array([2.0, 4.0, 0.0]), 0.5)
    assert found.tolist() == [2.0, pytest.approx((1 + 4) / 1.5), pytest.approx((0.5 + 2 + 0) / 1.75)]
    assert smooth(np.full(9, 3.0)).tolist() == pytest.approx([3.0] * 9)


def test_bounds_of_a_loss_that_falls_and_rises() -> None:
    rates = np.geomspace(1e-6, 1e-1, 401)
    losses = np.interp(np.arange(401), [0, 120, 240, 400], [3.0, 3.0, 1.0, 9.0])
    low, high = suggest_bounds(rates, losses)
    assert low is not None
    assert high is not None
    # A tenth of the fall is done at step 132, nine tenths at 228, and a mean over about ten steps is as late.
    assert rates[132] < low < rates[142]
    assert rates[228] < high < rates[240]
    # A dip before does not count: the loss does not stay low.
    losses[40:60] = 1.5
    assert suggest_bounds(rates, losses) == (low, high)


def test_a_loss_that_never_falls_has_no_bounds() -> None:
    rates = np.geomspace(1e-6, 1e-1, 200)
    assert suggest_bounds(rates, np.linspace(1, 4, 200)) == (None, None)
    assert suggest_bounds(rates, np.full(200, 2.0)) == (None, None)
    noise = [np.random.default_rng(seed).normal(3, 0.5, 200) for seed in range(20)]
    assert sum(suggest_bounds(rates, losses) != (None, None) for losses in noise) <= 2


def scripted(losses: Iterator[float], rates: list[float], sizes: list[int]):  # type: ignore[no-untyped-def]
    def train_batch(learner: Learner, batch: VideoBatch, given: Iterator[float]) -> BatchResult:
        rates.append(next(given))
        sizes.append(len(batch.rows))
        loss = next(losses) * len(batch.rows)
        return BatchResult((torch.tensor(loss - 0.5), torch.tensor(loss + 0.5)), torch.tensor(0))

    return train_batch


def test_every_batch_has_the_next_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {"0-1": 24, "1-1": 25, "0-2": 26, "1-2": 27, "0-3": 28, "1-3": 8}
    table = table_of(drawn_videos(lengths)[0])
    rates: list[float] = []
    sizes: list[int] = []
    monkeypatch.setattr(Learner, "train_batch", scripted(iter([1.0] * 100), rates, sizes))
    steps: list[tuple[int, float]] = []
    result = range_test(
        table, SHAPE, np.arange(6), 2, FAST, lowest=1e-4, highest=1e-2, steps=21, on_step=lambda *s: steps.append(s)
    )
    assert rates == result.rates.tolist() == np.geomspace(1e-4, 1e-2, 21).tolist()
    assert set(sizes) == {4}, "the rests of one and two videos are left out"
    assert result.losses.tolist() == pytest.approx([1.0] * 21)
    assert steps[-1] == (21, pytest.approx(1.0))
    sizes.clear()
    monkeypatch.setattr(Learner, "train_batch", scripted(iter([1.0] * 100), [], sizes))
    range_test(table, SHAPE, np.arange(3), 2, FAST, steps=5)
    assert set(sizes) == {3}


def test_a_loss_that_runs_away_ends_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(drawn_videos({"0-1": 8, "1-1": 8})[0])
    losses = [2.0] * 30 + [1.0] * 30 + [float(2**k) for k in range(20)]
    monkeypatch.setattr(Learner, "train_batch", scripted(iter(losses), [], []))
    result = range_test(table, SHAPE, np.arange(2), 2, FAST, steps=100)
    assert 61 < len(result.rates) < 75
    assert result.low is not None
    assert result.high is not None
    assert result.rates[29] < result.low < result.high < result.rates[60]
    monkeypatch.setattr(Learner, "train_batch", scripted(iter([1.0, 0.9, float("nan"), 1.0]), [], []))
    result = range_test(table, SHAPE, np.arange(2), 2, FAST, steps=60)
    assert result.losses.tolist() == pytest.approx([1.0, 0.9])


@pytest.mark.usefixtures("pictures_drawn")
def test_a_real_test_finds_rates_that_train(tmp_path) -> None:  # type: ignore[no-untyped-def]
    lengths = {f"{k}-{i}": 16 for k in range(2) for i in range(4)}
    table = table_of(drawn_videos(lengths)[0])
    before = torch.random.get_rng_state()
    result = range_test(table, SHAPE, np.arange(8), 2, FAST, lowest=1e-5, highest=3e-2, steps=40)
    assert torch.equal(before, torch.random.get_rng_state())
    assert result.low is not None
    assert result.high is not None
    assert 1e-5 < result.low < result.high <= 3e-2
    lr_range.write_range(result, tmp_path)
    assert (tmp_path / "lr_range.png").read_bytes().startswith(b"\x89PNG")


def test_rates_that_do_not_grow_are_refused() -> None:
    table = table_of(drawn_videos({"0-1": 8})[0])
    with pytest.raises(ValueError, match="rates from"):
        range_test(table, SHAPE, np.arange(1), 2, FAST, lowest=1e-2, highest=1e-3)
