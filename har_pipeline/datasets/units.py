"""Videos of one origin: which sources they share, and drawing a share of them without separating any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from har_pipeline.core.errors import SplitError
from har_pipeline.core.records import VideoRecord

if TYPE_CHECKING:
    import numpy as np

Source = Literal["subject", "group", "group of class", "file"]

# What two parts of a split do not share. Several rows of a manifest may be cut from one file.
SOURCES: tuple[Source, ...] = ("subject", "group", "file")
# Videos: a difference of distances below it may be a rounding error.
CLEAR_GAIN = 1e-3


def source_of(record: VideoRecord, source: Source) -> str | None:
    """Return a video's subject, group or file, or None if the manifest does not tell."""
    if source == "file":
        return record.file
    if source == "group of class":
        return f"{record.label}/{record.group}" if record.group else None
    return record.subject if source == "subject" else record.group


def units(records: Sequence[VideoRecord], sources: Sequence[Source]) -> list[int]:
    """Return each record's unit number; records that share a source, directly or through others, are one unit."""
    unit = list(range(len(records)))

    def top(i: int) -> int:
        while unit[i] != i:
            unit[i] = unit[unit[i]]
            i = unit[i]
        return i

    for source in sources:
        first: dict[str, int] = {}
        for i, record in enumerate(records):
            value = source_of(record, source)
            if value is not None and (other := first.setdefault(value, i)) != i:
                unit[top(i)] = top(other)
    number: dict[int, int] = {}
    return [number.setdefault(top(i), len(number)) for i in range(len(records))]


def take_share(
    side: Sequence[VideoRecord], fraction: float, seed: int, where: str, sources: Sequence[Source], way_out: str
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Return (kept, taken): whole units, drawn at random, near the wanted share of every class.

    A unit is taken if that brings the counts per class nearer to `fraction` of each and leaves every class a kept
    video; if none does, the best of them is taken. Nothing is taken for 0.
    where, way_out: for the message of an error.
    Raises: SplitError if the share is outside [0, 1), or every unit is the only one of a class.
    """
    import numpy as np  # here: the CLI lists the protocols in its help, which waits for no numpy

    if not 0 <= fraction < 1:
        raise SplitError(f"{where}: the share must be in [0, 1), not {fraction:g}")
    side = sorted(side, key=lambda r: r.video_id)
    if fraction == 0:
        return side, []
    unit = np.array(units(side, sources))
    counts = _Counts(unit, [r.label for r in side], fraction)
    order = np.random.default_rng(seed).permutation(len(counts)).tolist()
    chosen = [i for i in order if counts.take_if_nearer(i)]
    if not chosen:
        possible = [i for i in order if counts.may_take(i)]
        if not possible:
            raise SplitError(
                f"{where}: cannot divide {len(counts)} subjects, groups or files: each is the only one of a class; "
                f"use {way_out}"
            )
        chosen = [min(possible, key=counts.distance_with)]
    out = np.isin(unit, chosen)
    return [side[i] for i in np.flatnonzero(~out)], [side[i] for i in np.flatnonzero(out)]


class _Counts:
    """Videos per class of each unit, how many of each class are taken, and how many are wanted.

    A unit has videos of few classes, and there may be as many units as videos: what concerns its own classes only is
    computed from these. `taken` and `wanted` are (K,) float64 of all classes.
    """

    def __init__(self, unit: np.ndarray, labels: Sequence[str], fraction: float) -> None:
        import numpy as np

        number = {label: k for k, label in enumerate(sorted(set(labels)))}
        classes = np.fromiter((number[label] for label in labels), np.int64, len(labels))
        pairs, videos = np.unique(unit * len(number) + classes, return_counts=True)
        self._starts = np.searchsorted(pairs, len(number) * np.arange(unit.max() + 2)).tolist()
        self._classes, self._videos = (pairs % len(number)).tolist(), videos.tolist()
        self._total = np.bincount(classes, minlength=len(number)).astype(np.float64)
        self.wanted = fraction * self._total
        self.taken = np.zeros_like(self.wanted)
        # Plain numbers: those of numpy are slow one by one.
        self._totals, self._wanted, self._taken = self._total.tolist(), self.wanted.tolist(), self.taken.tolist()
        # Classes and videos of a unit -> whether it was nearer, where that took sums over all classes; of this `taken`.
        self._answers: dict[tuple[int, ...], bool] = {}

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _of(self, i: int) -> tuple[list[int], list[int]]:
        """Return the classes of a unit and their videos."""
        own = slice(self._starts[i], self._starts[i + 1])
        return self._classes[own], self._videos[own]

    def may_take(self, i: int) -> bool:
        """Whether every class keeps a video without the unit."""
        return all(self._taken[k] + count < self._totals[k] for k, count in zip(*self._of(i), strict=True))

    def take_if_nearer(self, i: int) -> bool:
        """Take a unit if it may be taken, and that brings `taken` nearer to `wanted`; returns whether it was."""
        if not self.may_take(i):
            return False
        classes, videos = self._of(i)
        gain = 0.0
        for k, count in zip(classes, videos, strict=True):
            missing = self._wanted[k] - self._taken[k]
            gain += abs(missing) - abs(missing - count)
        # The sums over all classes decide, as they always did; near a tie their rounding does.
        if abs(gain) > CLEAR_GAIN:
            nearer = gain > 0
        else:
            key = (*classes, *videos)
            if key not in self._answers:
                self._answers[key] = self.distance_with(i) < self._distance(self.taken)
            nearer = self._answers[key]
        if nearer:
            for k, count in zip(classes, videos, strict=True):
                self._taken[k] += count
                self.taken[k] += count
            self._answers.clear()
        return nearer

    def distance_with(self, i: int) -> float:
        """Return the sum over the classes of the distance to `wanted` with the unit."""
        classes, videos = self._of(i)
        taken = self.taken.copy()
        taken[classes] += videos
        return self._distance(taken)

    def _distance(self, taken: np.ndarray) -> float:
        import numpy as np

        return float(np.abs(taken - self.wanted).sum())
