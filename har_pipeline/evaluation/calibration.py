"""Whether probabilities can be believed: accuracy against confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from har_pipeline.core.records import Scores
from har_pipeline.evaluation.scores import predicted_classes
from har_pipeline.evaluation.statistics import Interval, wilson_interval

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The rows whose confidence, the probability of the predicted class, is in [low, high), the last bin closed."""

    low: float
    high: float
    rows: int
    confidence: float  # mean, in [0, 1]
    accuracy: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Accuracy against confidence, for the bins that have rows."""

    bins: Sequence[Bin]
    expected_error: float  # mean of |accuracy - confidence| over the rows, each by its bin, in [0, 1]


def reliability(scores: Scores, bins: int = BINS) -> Reliability:
    """Return the reliability of (V, K) scores in bins of equal width, and their expected calibration error.

    Raises: ValueError if there is no row. Source: Guo et al. 2017, equations 2 and 3.
    """
    if not scores.video_ids:
        raise ValueError("no scores")
    right = np.array(predicted_classes(scores)) == np.array(scores.labels)
    confidence = scores.probabilities.max(axis=1)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    found = []
    for number in range(bins):
        own = place == number
        if own.any():
            found.append(
                Bin(
                    low=number / bins,
                    high=(number + 1) / bins,
                    rows=int(own.sum()),
                    confidence=float(confidence[own].mean()),
                    accuracy=wilson_interval(int(right[own].sum()), int(own.sum())),
                )
            )
    error = sum(one.rows * abs(one.accuracy.value - one.confidence) for one in found) / len(right)
    return Reliability(bins=found, expected_error=float(error))
