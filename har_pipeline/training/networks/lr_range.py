"""The learning-rate range test: the rate grows with every batch, and the loss shows which rates train."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from har_pipeline.core.files import write_json
from har_pipeline.evaluation.plots import save_lr_range
from har_pipeline.evaluation.tables import write_csv
from har_pipeline.features.table import FeatureTable
from har_pipeline.models.convlstm.networks import RawNetwork
from har_pipeline.models.device import pick_device
from har_pipeline.training.networks.fit import make_learner
from har_pipeline.training.networks.loop import VideoBatch, arrange, sampling_of
from har_pipeline.training.options import VideoTrainConfig

LOWEST, HIGHEST, STEPS = 1e-6, 1e-1, 200
SMOOTHING = 0.9

# Share of the fall of the loss that lies outside the suggested bounds, on each side.
MARGIN = 0.1

# The test ends when the smoothed loss exceeds its minimum by this factor.
DIVERGED = 3.0


@dataclass(frozen=True, slots=True)
class LrRange:
    """A range test of n batches, fewer than asked for if the loss diverged before."""

    # (n,) growing.
    rates: np.ndarray
    # (n,) of each batch, nats.
    losses: np.ndarray
    # (n,) see `smooth`.
    smoothed: np.ndarray
    # The bounds of `suggest_bounds`, None if the loss never fell.
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the test as a plain dict, ready for JSON."""
        curves = {name: getattr(self, name).tolist() for name in ("rates", "losses", "smoothed")}
        return {"low": self.low, "high": self.high, **curves}


def smooth(losses: np.ndarray, factor: float = SMOOTHING) -> np.ndarray:
    """Return (n,) float64 exponential means: each loss weighs `factor` times the next one, weights sum to 1."""
    result, mean = np.empty(len(losses)), 0.0
    for step, loss in enumerate(losses):
        mean = factor * mean + (1 - factor) * float(loss)
        result[step] = mean / (1 - factor ** (step + 1))
    return result


def suggest_bounds(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return the rates between which the smoothed loss falls: from its first tenth to its ninth tenth.

    The fall goes from the median smoothed loss of the first tenth of the test, whose rates are too small to train, to the
    lowest smoothed loss. low: the first rate after which at least a tenth of the fall is always done; high: the first
    rate at which nine tenths are. None if the lowest loss is in the first tenth, or if the fall is below 2 % or below 4
    standard deviations of a smoothed loss, estimated from the differences of successive losses.
    Source: Sanchez-Caballero 2020, figure 5: "the interval of values where the loss function decreases"; the tenths
    and the 4 deviations are ours.
    """
    smoothed = smooth(losses)
    lowest = int(smoothed.argmin())
    tenth = max(1, len(smoothed) // 10)
    if lowest < tenth:
        return None, None
    start = float(np.median(smoothed[:tenth]))
    fall = start - smoothed[lowest]
    noise = float(np.std(np.diff(losses))) / 2**0.5 * ((1 - SMOOTHING) / (1 + SMOOTHING)) ** 0.5
    if fall <= max(0.02 * abs(start), 4 * noise):
        return None, None
    above = np.flatnonzero(smoothed[:lowest] > start - MARGIN * fall)
    first = int(above[-1]) + 1 if len(above) else 0
    last = first + int(np.argmax(smoothed[first : lowest + 1] <= start - (1 - MARGIN) * fall))
    return float(rates[first]), float(rates[last])


def range_test(
    table: FeatureTable,
    shape: tuple[int, int, int],
    rows: np.ndarray,
    num_classes: int,
    config: VideoTrainConfig,
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    steps: int = STEPS,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> LrRange:
    """Train a fresh network on the rows for `steps` batches at rates from lowest to highest, growing by one factor.

    All updates of a stateful batch use one rate, and their mean is its loss. Batches below the full size, whose losses
    vary more, are skipped if there are full ones. The test ends early when the smoothed loss is 3 times its lowest so far,
    or not finite. on_step: called with the batches done and the last loss. torch's global random state is restored.
    Raises: ValueError unless 0 < lowest < highest and steps > 1; RunError if the device is absent.
    Source: Smith 2017; Sanchez-Caballero 2020, section 4.1 and figure 5.
    """
    if not 0 < lowest < highest or steps < 2:
        raise ValueError(f"rates from {lowest} to {highest} in {steps} steps")
    rates = np.geomspace(lowest, highest, steps)
    device = pick_device(config.device)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        learner = make_learner(table, shape, num_classes, config)
        batches = _endless(learner.network, table.lengths, rows, config)
        for rate, batch in zip(rates.tolist(), batches, strict=False):
            result = learner.train_batch(batch, itertools.repeat(rate))
            loss = float(torch.stack(result.losses).mean()) / len(batch.rows)
            on_step(len(losses) + 1, loss)
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smoothed = smooth(np.array(losses))
            if smoothed[-1] > DIVERGED * smoothed.min():
                break
    found, rates = np.array(losses), rates[: len(losses)]
    low, high = suggest_bounds(rates, found) if losses else (None, None)
    return LrRange(rates, found, smooth(found), low, high)


def _endless(
    network: RawNetwork, lengths: np.ndarray, rows: np.ndarray, config: VideoTrainConfig
) -> Iterator[VideoBatch]:
    rng, size = np.random.default_rng(config.seed), config.videos_per_batch
    while True:
        sampling = sampling_of(config)
        batches = list(arrange(network, lengths, rows, size, sampling=sampling, rng=rng, augment=config.augment))
        full = [batch for batch in batches if len(batch.rows) == size]
        yield from full or batches


def write_range(result: LrRange, folder: Path) -> None:
    """Write lr_range.csv, lr_range.json and lr_range.png into `folder`, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "lr_range.json", result.to_dict())
    columns = (result.rates.tolist(), result.losses.tolist(), result.smoothed.tolist())
    write_csv(folder / "lr_range.csv", ["learning_rate", "loss", "smoothed_loss"], zip(*columns, strict=True))
    bounds = None if result.low is None or result.high is None else (result.low, result.high)
    save_lr_range(folder / "lr_range.png", result.rates, result.losses, result.smoothed, bounds)
