"""The learning-rate range test: the rate grows with every update, and the loss shows which rates train."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from har_pipeline.datasets import FeatureTable
from har_pipeline.fit import resolve_device
from har_pipeline.report.plots import save_lr_range
from har_pipeline.run_folder import write_json
from har_pipeline.video_config import VideoTrainConfig
from har_pipeline.video_fit import make_learner
from har_pipeline.video_loop import VideoBatch, arrange

LOWEST, HIGHEST, STEPS = 1e-6, 1e-1, 200
SMOOTHING = 0.9
MARGIN = 0.1
DIVERGED = 3.0


@dataclass(frozen=True, slots=True)
class LrRange:
    """A range test: rates (n,), growing; losses (n,) of each update, nats; smoothed (n,), see `smooth`.

    low, high: the bounds that `suggest_bounds` reads off, None where the loss never fell. n is below the steps asked for
    if the loss ran away before.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the test as a plain dict, ready for JSON."""
        curves = {name: getattr(self, name).tolist() for name in ("rates", "losses", "smoothed")}
        return {"low": self.low, "high": self.high, **curves}


def smooth(losses: np.ndarray, factor: float = SMOOTHING) -> np.ndarray:
    """Return (n,) float64 exponential means: each weighs `factor` times less than the next, weights sum to 1."""
    result, mean = np.empty(len(losses)), 0.0
    for step, loss in enumerate(losses):
        mean = factor * mean + (1 - factor) * float(loss)
        result[step] = mean / (1 - factor ** (step + 1))
    return result


def suggest_bounds(rates: np.ndarray, smoothed: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return the rates between which the smoothed loss falls: from its first tenth to its ninth tenth.

    The fall goes from the highest smoothed loss before the lowest one to that. low: the first rate after the highest at
    which a tenth of the fall is done; high: the first at which nine tenths are. Beyond it more rate gains no more. None
    where the lowest smoothed loss is the first, or less than 2 % below.
    Source: Sanchez-Caballero 2020, figure 5: "the interval of values where the loss function decreases"; the tenths
    are ours.
    """
    lowest = int(smoothed.argmin())
    highest = int(smoothed[: lowest + 1].argmax())
    top, fall = smoothed[highest], smoothed[highest] - smoothed[lowest]
    if fall <= 0.02 * abs(top):
        return None, None
    falling = smoothed[highest : lowest + 1]
    first = highest + int(np.argmax(falling <= top - MARGIN * fall))
    last = highest + int(np.argmax(falling <= top - (1 - MARGIN) * fall))
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
    """Train a fresh network on the rows for `steps` updates at rates from lowest to highest, growing by one factor.

    It ends early when the smoothed loss is 3 times its lowest so far, or not finite. on_step: called with the updates
    done and the last loss. torch's global random state is left as it was.
    Raises: ValueError unless 0 < lowest < highest and steps > 1; RunError if the device is absent.
    Source: Smith 2017; Sanchez-Caballero 2020, section 4.1 and figure 5.
    """
    if not 0 < lowest < highest or steps < 2:
        raise ValueError(f"rates from {lowest} to {highest} in {steps} steps")
    rates = np.geomspace(lowest, highest, steps)
    device = resolve_device(config.device)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        learner = make_learner(table, shape, num_classes, config)
        for batch in _endless(learner.network, table.lengths, rows, config):
            # A stateful batch may have more updates than are left: they stay at the last rate and are not counted.
            left = iter([*rates[len(losses) :], *[highest] * batch.indices.shape[1]])
            result = learner.train_batch(batch, left)
            losses += [float(loss) / len(batch.rows) for loss in result.losses]
            on_step(min(len(losses), steps), losses[-1])
            if len(losses) >= steps or _ran_away(losses):
                break
    count = next((k for k, loss in enumerate(losses[:steps]) if not math.isfinite(loss)), min(len(losses), steps))
    smoothed = smooth(np.array(losses[:count]))
    low, high = suggest_bounds(rates[:count], smoothed) if count else (None, None)
    return LrRange(rates[:count], np.array(losses[:count]), smoothed, low, high)


def _ran_away(losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smoothed = smooth(np.array(losses))
    return bool(smoothed[-1] > DIVERGED * smoothed.min())


def _endless(network: Any, lengths: np.ndarray, rows: np.ndarray, config: VideoTrainConfig) -> Iterator[VideoBatch]:
    rng = np.random.default_rng(config.seed)
    while True:
        yield from arrange(
            network, lengths, rows, config.videos_per_batch, whole=config.long_videos == "whole", rng=rng
        )


def write_range(result: LrRange, folder: Path) -> None:
    """Write lr_range.csv, lr_range.json and lr_range.png into `folder`, made where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "lr_range.json", result.to_dict())
    with open(folder / "lr_range.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["learning_rate", "loss", "smoothed_loss"])
        table.writerows(zip(result.rates.tolist(), result.losses.tolist(), result.smoothed.tolist(), strict=True))
    bounds = None if result.low is None or result.high is None else (result.low, result.high)
    save_lr_range(folder / "lr_range.png", result.rates, result.losses, result.smoothed, bounds)
