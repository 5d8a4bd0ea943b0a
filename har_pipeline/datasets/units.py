"""Videos of one origin: which sources they share, and drawing a share of them without separating any."""

from __future__ import annotations

import functools
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


class Columns:
    """What the videos of a manifest share, as numbers, made once for all splits of it. V: number of videos."""

    def __init__(self, records: Sequence[VideoRecord]) -> None:
        self.records = records
        self._sources: dict[Source, np.ndarray] = {}

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each id."""
        return {record.video_id: row for row, record in enumerate(self.records)}

    @functools.cached_property
    def by_id(self) -> np.ndarray:
        """(V,) int64 the rows in the order of their ids."""
        import numpy as np  # here: the CLI lists the protocols in its help, which waits for no numpy

        ids = [record.video_id for record in self.records]
        return np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """(V,) object, the ids."""
        import numpy as np

        return np.array([record.video_id for record in self.records], object)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(V,) int64 numbers of the labels in their order, -1 of none."""
        import numpy as np

        texts = [record.label for record in self.records]
        number = {text: place for place, text in enumerate(sorted(set(texts) - {""}))} | {"": -1}
        return np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))

    def source(self, source: Source) -> np.ndarray:
        """Return (V,) int64 that are equal for videos which share a source, -1 where the manifest does not tell."""
        import numpy as np

        if source not in self._sources:
            texts = [source_of(record, source) for record in self.records]
            number = {text: place for place, text in enumerate(dict.fromkeys(texts))} | {None: -1}
            self._sources[source] = np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))
        return self._sources[source]

    def in_order(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n,) int64, all of them others, in the order of their ids."""
        import numpy as np

        chosen = np.zeros(len(self.records), bool)
        chosen[rows] = True
        return self.by_id[chosen[self.by_id]]

    def units(self, rows: np.ndarray, sources: Sequence[Source]) -> np.ndarray:
        """Return (n,) int64 unit numbers of rows (n,), in the order of their first ones.

        Rows that share a source, directly or through others, are one unit.
        """
        import numpy as np

        unit = np.arange(len(rows))
        for place, source in enumerate(sources):
            numbers = self.source(source)[rows]
            # At first each is a unit of its own.
            alone = numbers.max(initial=0) + 1 + unit
            unit = _joined(unit, numbers) if place else np.where(numbers < 0, alone, numbers)
        _, first, unit = np.unique(unit, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[unit]


def _joined(unit: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return (n,) int64 units after those with an equal number, -1 apart, were made one."""
    import numpy as np

    known, most = numbers >= 0, numbers.max(initial=0) + 1
    pairs = np.unique(unit[known] * most + numbers[known])
    first, second = pairs // most, pairs % most
    several = np.bincount(second, minlength=most)[second] > 1
    top_of: dict[int, int] = {}

    def top(one: int) -> int:
        while (above := top_of.get(one, one)) != one:
            top_of[one] = top_of.get(above, above)
            one = above
        return one

    met: dict[int, int] = {}
    for one, number in zip(first[several].tolist(), second[several].tolist(), strict=True):
        if (other := met.setdefault(number, one)) != one:
            top_of[top(one)] = top(other)
    if not top_of:
        return unit
    moved = np.array(sorted(top_of))
    place = np.minimum(np.searchsorted(moved, unit), len(moved) - 1)
    return np.where(moved[place] == unit, np.array([top(one) for one in moved.tolist()])[place], unit)


def units(records: Sequence[VideoRecord], sources: Sequence[Source]) -> list[int]:
    """Return each record's unit number, see `Columns.units`."""
    import numpy as np

    found: list[int] = Columns(records).units(np.arange(len(records)), sources).tolist()
    return found


def take_share(
    columns: Columns,
    side: np.ndarray,
    fraction: float,
    seed: int,
    where: str,
    sources: Sequence[Source],
    way_out: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (kept, taken) of the rows `side` (n,) int64: whole units, drawn at random, near the wanted share of every class.

    A unit is taken if that brings the counts per class nearer to `fraction` of each and leaves every class a kept
    video; if none does, the best of them is taken. Nothing is taken for 0. Both are in the order of the ids.
    where, way_out: for the message of an error.
    Raises: SplitError if the share is outside [0, 1), or every unit is the only one of a class.
    """
    import numpy as np

    if not 0 <= fraction < 1:
        raise SplitError(f"{where}: the share must be in [0, 1), not {fraction:g}")
    side = columns.in_order(side)
    if fraction == 0:
        return side, side[:0]
    unit = columns.units(side, sources)
    counts = _Counts(unit, columns.labels[side], fraction)
    order = np.random.default_rng(seed).permutation(len(counts)).tolist()
    chosen = counts.take_nearer(order)
    if not chosen:
        possible = [i for i in order if counts.may_take(i)]
        if not possible:
            why = (
                "they are of one subject, group or file, which is not divided"
                if len(counts) == 1
                else f"of their {len(counts)} subjects, groups or files each is the only one of a class"
            )
            raise SplitError(f"{where}: cannot divide the videos: {why}; use {way_out}")
        chosen = [min(possible, key=counts.distance_with)]
    out = np.zeros(len(counts), bool)
    out[chosen] = True
    return side[~out[unit]], side[out[unit]]


class _Counts:
    """Videos per class of each unit, how many of each class are taken, and how many are wanted.

    A unit has videos of few classes, and there may be as many units as videos: what concerns its own classes only is
    computed from these. `taken` and `wanted` are (K,) float64 of all classes.
    """

    def __init__(self, unit: np.ndarray, labels: np.ndarray, fraction: float) -> None:
        """unit, labels: (n,) int64 of each video."""
        import numpy as np

        there, classes = np.unique(labels, return_inverse=True)
        pairs, videos = np.unique(unit * len(there) + classes, return_counts=True)
        self._starts = np.searchsorted(pairs, len(there) * np.arange(unit.max() + 2)).tolist()
        self._classes, self._videos = (pairs % len(there)).tolist(), videos.tolist()
        self._total = np.bincount(classes, minlength=len(there)).astype(np.float64)
        self.wanted = fraction * self._total
        self.taken = np.zeros_like(self.wanted)
        # Plain numbers: those of numpy are slow one by one.
        self._totals, self._wanted, self._taken = self._total.tolist(), self.wanted.tolist(), self.taken.tolist()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _of(self, i: int) -> tuple[list[int], list[int]]:
        """Return the classes of a unit and their videos."""
        own = slice(self._starts[i], self._starts[i + 1])
        return self._classes[own], self._videos[own]

    def may_take(self, i: int) -> bool:
        """Whether every class keeps a video without the unit."""
        return all(self._taken[k] + count < self._totals[k] for k, count in zip(*self._of(i), strict=True))

    def take_nearer(self, order: Sequence[int]) -> list[int]:
        """Take of the units, in this order, each that may be taken and brings `taken` nearer to `wanted`; returns them."""
        starts, taken, wanted, totals = self._starts, self._taken, self._wanted, self._totals
        chosen = []
        # Classes and videos of a unit -> whether it was nearer, where that took sums over all classes; of this `taken`.
        answers: dict[tuple[int, ...], bool] = {}
        for i in order:
            own = slice(starts[i], starts[i + 1])
            classes, videos, gain = self._classes[own], self._videos[own], 0.0
            for k, count in zip(classes, videos, strict=True):
                if taken[k] + count >= totals[k]:
                    break
                missing = wanted[k] - taken[k]
                gain += abs(missing) - abs(missing - count)
            else:
                # The sums over all classes decide, as they always did; near a tie their rounding does.
                if abs(gain) > CLEAR_GAIN:
                    nearer = gain > 0
                else:
                    key = (*classes, *videos)
                    if key not in answers:
                        answers[key] = self.distance_with(i) < self._distance(self.taken)
                    nearer = answers[key]
                if nearer:
                    chosen.append(i)
                    answers.clear()
                    for k, count in zip(classes, videos, strict=True):
                        taken[k] += count
                        self.taken[k] += count
        return chosen

    def distance_with(self, i: int) -> float:
        """Return the sum over the classes of the distance to `wanted` with the unit."""
        classes, videos = self._of(i)
        taken = self.taken.copy()
        taken[classes] += videos
        return self._distance(taken)

    def _distance(self, taken: np.ndarray) -> float:
        import numpy as np

        return float(np.abs(taken - self.wanted).sum())
