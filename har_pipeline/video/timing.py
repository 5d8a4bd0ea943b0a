"""When a video's frames are on screen: the frame rate by the frames' time stamps, whatever the header says. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import Span, seconds_text

DEFAULT_FPS = 25.0
# No file plays faster; high-speed cameras record faster.
_HIGHEST_FPS = 10_000.0
# How far, in frames, a frame of constant rate may be from its place: time stamps are rounded to ticks, and some cameras
# jitter; by number and by time such a frame is on screen within the same interval.
_JITTER = 0.25
# Times are compared with a slack for rounding of at most this share of a frame.
_MOST_SLACK = 0.1
# Times of annotations, and time stamps of Matroska, are rounded to milliseconds: together they may be so much apart.
_WRITTEN_S = 0.001
# Longer than any file: numbers of frames stay within what indices hold.
_LONGEST_S = 1e9
# A fitted rate that is this near to one in use may be that one: 29.97 for 30000/1001.
_NEAR = 0.01
_USUAL_RATES = tuple(
    rate
    for base in (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)
    for rate in ((base, base * 1000 / 1001) if base % 6 == 0 else (base,))
)
# Transport and program streams are joined without new time stamps; players take a longer jump for such a joint.
_LONGEST_GAP_S = 10.0
_JOINED = ("mpeg", "mpegts")


@dataclass(frozen=True, slots=True)
class Timing:
    """The frame rate, and the time stamps where the rate is not constant."""

    fps: float  # frames/s, the mean where it varies
    # (F,) float64, when each frame begins, s from the first one; None: frame k begins at k / fps.
    times_s: np.ndarray | None = None
    # By how much a time stamp may be rounded, s.
    slack_s: float = 0.0
    notes: tuple[str, ...] = ()
    # (F,) float64, the frames' own time stamps, also where the rate is constant, s from the first one; None: not known.
    stamps_s: np.ndarray | None = field(default=None, compare=False, repr=False)

    def first_from(self, time_s: float) -> int:
        """Return the first frame that begins at `time_s` or later, s from the first one, by its own time stamp.

        Beyond the last frame, and where there are no time stamps, frames are `fps` apart.
        """
        slack_s, time_s = min(_WRITTEN_S, _MOST_SLACK / self.fps), min(time_s, _LONGEST_S)
        count, end_s = 0, 0.0
        if self.stamps_s is not None:
            count, end_s = len(self.stamps_s), float(self.stamps_s[-1]) + 1 / self.fps
            if time_s - slack_s <= self.stamps_s[-1]:
                return int(np.searchsorted(self.stamps_s, time_s - slack_s))
        return max(count, count + int(np.ceil((time_s - slack_s - end_s) * self.fps)))

    def begin_s(self, frames: np.ndarray) -> np.ndarray:
        """Return when frames begin, s from the first one; the number of frames stands for the end of the last one."""
        if self.times_s is None:
            return np.asarray(frames) / self.fps
        times = np.append(self.times_s, self.times_s[-1] + 1 / self.fps)
        return times[np.minimum(frames, len(self.times_s))]

    def part(self, start: int, stop: int) -> Timing:
        """Return the timing of the frames [start, stop), timed from the first one of them."""
        if self.times_s is None:
            return replace(self, stamps_s=None)
        times = self.times_s[start:stop]
        return replace(self, times_s=times - times[0], stamps_s=None)


S = TypeVar("S", bound=Span)


def in_frames(span: S, path: Path, timing: Timing, frames: int) -> S:
    """Return a row of the file `path` with its times, if it has any, replaced by the numbers of the frames they mean.

    A row covers the frames that begin at start_s or later and before end_s, seconds from the first frame. Times are
    compared with a slack of 1 ms, at most a tenth of a frame, as 0.067 is what is written of the frame at 2/30 s.
    frames: how many the file has. Raises: VideoError if the row has none of them.
    """
    if not span.timed:
        return span
    start = timing.first_from(span.start_s or 0.0)
    end = None if span.end_s is None else timing.first_from(span.end_s)
    if start >= frames:
        last = seconds_text(round(float(timing.begin_s(np.array(frames))), 3))
        raise VideoError(f"{path}: the row starts at {seconds_text(span.start_s or 0.0)} s, the file ends at {last} s")
    if end is not None and end <= start:
        raise VideoError(f"{path}: the row has no frame: none begins {span.describe_span()}")
    return replace(span, start_frame=start, end_frame=end, start_s=None, end_s=None)


def timing_of(ticks: Sequence[int | None], tick_s: float, header_fps: float) -> Timing:
    """Return the timing of frames with these time stamps.

    ticks: of each frame in the order of display, in units of tick_s seconds, as `display_ticks` returns them; with any None,
    the header is believed. header_fps: 0 if it does not say.
    A constant rate is the header's if the time stamps allow it, else a usual rate, else the fitted one.
    """
    said = f"the header says {header_fps:.6g} frames/s" if header_fps > 0 else "the header says no frame rate"
    if header_fps > _HIGHEST_FPS:
        header_fps = 0.0
    if len(ticks) < 2 or None in ticks or tick_s <= 0:
        return Timing(header_fps) if header_fps > 0 else _assumed(said)
    times = (np.array(ticks, np.int64) - int(ticks[0] or 0)) * tick_s
    if times[-1] <= 0:
        return Timing(header_fps) if header_fps > 0 else _assumed(said)
    return replace(_fitting(times, tick_s, header_fps, said), stamps_s=times)


def _fitting(times: np.ndarray, tick_s: float, header_fps: float, said: str) -> Timing:
    """Return the timing of frames at these times (F,), s from the first one, which do not all begin at once."""
    if header_fps > 0 and _deviation(times, header_fps, fixed=True) <= _allowed(header_fps, tick_s):
        return Timing(header_fps)
    if header_fps > 0 and (skipped := _skipped(times, header_fps)):
        text = f"the time stamps skip {skipped} frames at {header_fps:.6g} frames/s; times follow the time stamps"
        return Timing(header_fps, times, min(tick_s, _MOST_SLACK / header_fps), (text,))
    numbers = np.arange(len(times))
    fitted = 1 / float(np.polyfit(numbers, times, 1)[0])
    if not fitted < _HIGHEST_FPS:
        return _assumed(said)
    near = [rate for rate in _USUAL_RATES if abs(rate / fitted - 1) < _NEAR]
    fps = min(near, key=lambda rate: _deviation(times, rate), default=fitted)
    # Over a short clip, coarse time stamps do not tell 29.97 from 30 frames/s: then it is what cameras have used for longer.
    fps = next((rate for rate in near if rate % 1 and _deviation(times, rate) <= tick_s * rate), fps)
    if _deviation(times, fps) > _allowed(fps, tick_s):
        fps = fitted
    if _deviation(times, fps) <= _allowed(fps, tick_s):
        return Timing(fps, notes=(f"{said}, the time stamps {fps:.6g}, which is used",))
    gaps = np.diff(times) * 1000
    mean = (len(times) - 1) / times[-1]
    text = (
        f"the frame rate varies: frames are {gaps.min():.4g} to {gaps.max():.4g} ms apart, {mean:.6g} frames/s on average "
        f"({said}); times follow the time stamps"
    )
    return Timing(mean, times, min(tick_s, _MOST_SLACK / mean), (text,))


def _assumed(said: str) -> Timing:
    return Timing(DEFAULT_FPS, notes=(f"{said}: {DEFAULT_FPS:g} frames/s are assumed",))


def _allowed(fps: float, tick_s: float) -> float:
    # Ticks as long as a frame are no rounding: they number the frames.
    return max(_JITTER, 1.0001 * tick_s * fps if tick_s * fps < 0.9 else 0.0)


def _deviation(times: np.ndarray, fps: float, *, fixed: bool = False) -> float:
    """Return how far in frames a frame is at most from its place. fixed: the first frame is at its place."""
    off = times * fps - np.arange(len(times))
    return float(np.abs(off).max() if fixed else (off.max() - off.min()) / 2)


def _skipped(times: np.ndarray, fps: float) -> int:
    """Return how many frames are missing between others, which are in their places; 0 where that is not what there is."""
    places = times * fps
    steps = np.diff(np.rint(places))
    in_place = np.abs(places - np.rint(places)).max() <= _JITTER and steps.min() >= 1
    return int(steps.sum()) - len(steps) if in_place and np.median(steps) == 1 else 0


def display_ticks(
    pts: Sequence[int | None], dts: Sequence[int | None], container: str, tick_s: float
) -> list[int | None]:
    """Return the time stamps of packets, which are in the order of decoding, in the order of display.

    Where the clock starts again, because recordings were joined, the later part is moved to follow the earlier one.
    """
    parts: list[list[int]] = [[]]
    last: int | None = None
    longest = _LONGEST_GAP_S / tick_s if tick_s > 0 and container in _JOINED else None
    for shown, decoded in zip(pts, dts, strict=True):
        if shown is None:
            return [None] * len(pts)
        clock = shown if decoded is None else decoded
        if decoded is not None:
            if last is not None and (clock < last or (longest is not None and clock - last > longest)):
                parts.append([])
            last = clock
        parts[-1].append(shown)
    return list(_joined([sorted(part) for part in parts]))


def joined_ticks(pts: Sequence[int | None], container: str, tick_s: float) -> list[int | None]:
    """Return the time stamps of decoded frames, which are in the order of display, moved as `display_ticks` does."""
    parts: list[list[int]] = [[]]
    longest = _LONGEST_GAP_S / tick_s if tick_s > 0 and container in _JOINED else None
    for shown in pts:
        if shown is None:
            return [None] * len(pts)
        if parts[-1] and (shown < parts[-1][-1] or (longest is not None and shown - parts[-1][-1] > longest)):
            parts.append([])
        parts[-1].append(shown)
    return list(_joined(parts))


def _joined(parts: list[list[int]]) -> list[int]:
    """Return the parts one after the other, each beginning one mean interval after the end of the one before."""
    whole = parts[0]
    for part in parts[1:]:
        interval = max(1, round((whole[-1] - whole[0]) / max(1, len(whole) - 1)))
        shift = whole[-1] + interval - part[0]
        whole = whole + [stamp + shift for stamp in part]
    return whole
