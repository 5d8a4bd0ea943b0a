"""Classes over the time of a long video: windows that slide over it, what they say of each moment, and the segments of that."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.evaluation.tables import write_csv
from har_pipeline.video.timing import Timing

# Two times that are nearer than this, in s, are the same.
_SAME_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of a length, one every hop. Raises: RunError unless 0 < hop <= length."""

    length_s: float
    hop_s: float

    def __post_init__(self) -> None:
        if not 0 < self.hop_s <= self.length_s < np.inf:
            raise RunError(
                f"windows of {self.length_s:g} s every {self.hop_s:g} s: both must be above 0, and the hop no longer than the "
                "window, or else parts of the video are in none"
            )

    def spans(self, num_frames: int, timing: Timing) -> np.ndarray:
        """Return (W, 2) int64: each window's first frame and the one after its last; the last window ends with the video.

        A video that is shorter than a window is one window.
        """
        begins = timing.begin_s(np.arange(num_frames + 1))
        room = max(0.0, float(begins[-1]) - self.length_s)
        starts = np.arange(0, room + _SAME_S, self.hop_s)
        if room - starts[-1] > self.hop_s / 100:
            starts = np.append(starts, room)
        first = np.searchsorted(begins[:-1], starts - _SAME_S)
        last = np.searchsorted(begins[:-1], starts + self.length_s - _SAME_S)
        first = np.minimum(first, num_frames - 1)
        return np.unique(np.stack([first, np.clip(last, first + 1, num_frames)], axis=1), axis=0)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a video with one class."""

    start_s: float  # from the first frame
    end_s: float
    label: str
    probability: float  # mean over the stretch


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The class probabilities of each moment of a video: in each of M stretches, the mean of the windows that hold it."""

    classes: tuple[str, ...]  # K
    edges_s: np.ndarray  # (M + 1,) float64, where the stretches begin and end, s from the first frame
    probabilities: np.ndarray  # (M, K) float64; NaN where no window could be read

    @property
    def mean(self) -> np.ndarray:
        """(K,) probabilities of the whole video: the mean over its time."""
        known = ~np.isnan(self.probabilities[:, 0])
        return np.average(self.probabilities[known], axis=0, weights=np.diff(self.edges_s)[known])

    def place(self, time_s: float) -> int:
        """Return the number of the stretch that a moment is in; the first or last one before and after the video."""
        place = int(np.searchsorted(self.edges_s, time_s + _SAME_S, side="right")) - 1
        return min(max(place, 0), len(self.probabilities) - 1)

    def spans(self) -> list[tuple[float, float, str]]:
        """Return (start in s, end, class) of the segments."""
        return [(one.start_s, one.end_s, one.label) for one in self.segments()]

    def segments(self) -> list[Segment]:
        """Return the video's segments: neighbouring stretches with the same best class, joined."""
        lengths, found = np.diff(self.edges_s), list[Segment]()
        known = ~np.isnan(self.probabilities[:, 0])
        best = np.where(known, np.where(known[:, None], self.probabilities, 0).argmax(axis=1), -1)
        bounds = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
        for start, stop in itertools.pairwise(bounds):
            if (label := int(best[start])) >= 0:
                probability = np.average(self.probabilities[start:stop, label], weights=lengths[start:stop])
                times = float(self.edges_s[start]), float(self.edges_s[stop])
                found.append(Segment(*times, self.classes[label], float(probability)))
        return found


def timeline_of(classes: Sequence[str], spans_s: np.ndarray, probabilities: np.ndarray) -> Timeline:
    """Return the timeline of W windows: spans_s (W, 2), when they begin and end in s; probabilities (W, K)."""
    ordered = np.sort(spans_s, axis=None)
    edges = ordered[np.concatenate([[True], np.diff(ordered) > _SAME_S])]
    first, last = (np.searchsorted(edges, spans_s[:, side] - _SAME_S) for side in (0, 1))
    # What each window adds where it begins, and takes away where it ends.
    change = np.zeros((len(edges), probabilities.shape[1] + 1))
    counted = np.concatenate([probabilities, np.ones((len(probabilities), 1))], axis=1)
    np.add.at(change, first, counted)
    np.add.at(change, last, -counted)
    sums = np.cumsum(change, axis=0)[:-1]
    count = np.rint(sums[:, -1:])
    means = np.divide(sums[:, :-1], count, out=np.full((len(sums), len(classes)), np.nan), where=count > 0)
    return Timeline(classes=tuple(classes), edges_s=edges, probabilities=np.clip(means, 0, 1))


def write_segments(path: Path, timelines: Sequence[tuple[Path, Timeline]]) -> None:
    """Write the segments of videos as CSV: video, start_s, end_s, label, probability. Missing folders are created."""
    rows = (
        [str(video), f"{one.start_s:.3f}", f"{one.end_s:.3f}", one.label, f"{one.probability:.4f}"]
        for video, timeline in timelines
        for one in timeline.segments()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, ["video", "start_s", "end_s", "label", "probability"], rows)
