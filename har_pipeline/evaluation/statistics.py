"""Confidence intervals and paired tests of accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A value in [0, 1] with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def describe(self) -> str:
        """Return it in words, as in `91.3 % (87.2 to 94.2)`."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of values and their sample standard deviation, None of a single one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_interval(shares: Sequence[float] | np.ndarray, videos: int) -> Interval:
    """Return the mean of shares of the same number of videos, with Wilson's interval for that number."""
    # Rounded, because a mean times a count may end a hair above the count.
    return wilson_interval(round(float(np.mean(shares)) * videos, 9), videos)


def wilson_interval(successes: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """Return the share of successes with Wilson's score interval, which stays in [0, 1] and is not empty at 0 or 1.

    `successes` may be a mean over repeats on the same videos; the interval is then conservative. `trials` may be what a
    weighted mean is worth.
    Raises: ValueError unless 0 <= successes <= trials and trials > 0.
    Source: Wilson 1927.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


@dataclass(frozen=True, slots=True)
class PairedTest:
    """McNemar's test of two classifiers, or a sign test where videos repeat."""

    first_only: int  # videos that only the first gets right, or that it gets right more often
    second_only: int  # the same of the second
    p_value: float  # two-sided

    def describe_p(self) -> str:
        """Return the p-value in words, as in `p = 0.031` or `p < 0.0001`."""
        return "p < 0.0001" if self.p_value < 1e-4 else f"p = {self.p_value:.2g}"


def mcnemar(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Return McNemar's exact test of two classifiers on the same videos.

    first, second: (V,) bool, whether each video was right; or int, in how many repeats: the video then counts for the
    classifier that is right more often (a sign test over videos, since repeats on one video are not independent).
    Raises: ValueError if the shapes differ. Source: McNemar 1947; the exact form is binomial.
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} videos cannot be paired")
    from scipy.stats import binomtest  # most of the import time of this room

    difference = first.astype(np.int64) - second.astype(np.int64)
    more, less = int((difference > 0).sum()), int((difference < 0).sum())
    return PairedTest(more, less, float(binomtest(more, more + less).pvalue) if more + less else 1.0)


def mean_class_accuracy(confusion: np.ndarray) -> Interval:
    """Return the mean of the classes' accuracies with a 95 % interval; classes without videos do not count.

    The interval is Wilson's for as many videos as the mean is worth: of K classes with n_k videos K^2 / sum(1 / n_k), all of
    them if each class has as many as the others, when it is the interval of the video accuracy, and fewer else, because each
    video of a small class weighs more. Where classes differ in accuracy it is on the wide side. It assumes independent
    videos; for clips cut from one recording it is too narrow.
    Source: Wilson 1927, with the effective number of Korn and Graubard 1998.
    """
    videos = confusion.sum(axis=1)
    seen = videos > 0
    mean = float(np.mean(np.diag(confusion)[seen] / videos[seen]))
    worth = float(seen.sum() ** 2 / np.sum(1 / videos[seen]))
    interval = wilson_interval(min(mean * worth, worth), worth)
    return Interval(mean, min(mean, interval.low), max(mean, interval.high))
