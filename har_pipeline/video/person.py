"""A window of fixed size that follows the one person of a video, found by movement and by what stands out: no training.

Two things are seen in a frame. Movement: how much each px differs from the frame before and after. Foreground: how much it
differs from its row, for fields, walls and floors look alike along a row. Where there is movement, in the frames around as
well, the foreground is weighted by it, so that a body counts whose arms alone move; its centre is the person's. Changes
that a whole row shares (light, a zoom, the horizon in a shaking picture) are no movement.

Without movement the window stays where it was, at first in the middle of the frame. So an empty frame, of which KTH's long
sequences have many, shows the place that the person left, and somebody who stands still is kept.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from har_pipeline.video.preprocess import Resize, scale_frame, scale_to

# Frames before and after a frame whose movement counts in it, and over which the centre is averaged.
REACH, SMOOTHED = 4, 4
# Grey levels of 255 that a px must differ by.
MOVED, STANDS_OUT = 4.0, 8.0
# More than this does not make a px more foreground: dark clothes count no more than grey ones.
MOST = 40.0
# What px count that do not stand out, in grey levels: somebody dressed like the background is found by movement alone.
LEAST = 0.1
# Share of a frame's px that must move.
MOVING_SHARE = 1e-3
# How far around a movement the foreground is looked for: the deviation of a Gaussian, as a share of the short side.
AROUND = 0.1


@dataclass(frozen=True, slots=True)
class PersonFrame:
    """What the window shows of one frame."""

    number: int  # as given to `push`
    window: np.ndarray  # (height, width) uint8, grey
    moving: bool  # whether anything moves in the frame


class PersonWindow:
    """Cuts the window of one video's frames, which come in order; it answers `delay` frames late. Memory is constant.

    resize: with a `person` window. A frame that is scaled to another size than the first one is stretched to that.
    """

    delay = REACH + SMOOTHED

    def __init__(self, resize: Resize) -> None:
        assert resize.person is not None
        self.resize = resize
        self.width, self.height = resize.person
        self.moving = 0  # frames with movement, of those returned
        # Frames that were not returned yet: number and scaled frame; of them, how many are located.
        self._frames: deque[tuple[int, np.ndarray]] = deque()
        self._located = 0
        # How much each px changes from frame t to t + 1, for t around the next frame to locate.
        self._changes: deque[np.ndarray] = deque(maxlen=2 * REACH)
        # Centres (x, y) of frames around the next one to return; None: nothing moves.
        self._centres: deque[tuple[float, float] | None] = deque([None] * SMOOTHED, maxlen=2 * SMOOTHED + 1)
        self._place: tuple[float, float] | None = None

    def push(self, number: int, frame: np.ndarray) -> list[PersonFrame]:
        """Take the next frame (H, W, 3) uint8 RGB and return what has become certain, in order."""
        grey = cv2.cvtColor(scale_frame(frame, self.resize), cv2.COLOR_RGB2GRAY)
        found: list[PersonFrame] = []
        if self._frames:
            before = self._frames[-1][1]
            if grey.shape != before.shape:
                grey = scale_to(grey, *before.shape)
            found = self._add_change(_beyond_row(np.abs(_blurred(grey) - _blurred(before)), MOVED))
        else:
            self._changes.extend([np.zeros(grey.shape, np.float32)] * REACH)
        self._frames.append((number, grey))
        return found

    def finish(self) -> list[PersonFrame]:
        """Return what is left after the last frame."""
        found: list[PersonFrame] = []
        for _ in range(REACH) if self._frames else ():
            found += self._add_change(np.zeros(self._changes[0].shape, np.float32))
        for _ in range(SMOOTHED):
            found += self._add_centre(None)
        return found

    def _add_change(self, change: np.ndarray) -> list[PersonFrame]:
        """Locate the person in the next frame, if with this change all those around it are known."""
        self._changes.append(change)
        if len(self._changes) < 2 * REACH or self._located == len(self._frames):
            return []
        grey = self._frames[self._located][1]
        self._located += 1
        moving = np.count_nonzero(self._changes[REACH - 1] + self._changes[REACH]) >= MOVING_SHARE * grey.size
        return self._add_centre(_centre(grey, np.sum(self._changes, axis=0)) if moving else None)

    def _add_centre(self, centre: tuple[float, float] | None) -> list[PersonFrame]:
        """Cut the window of the next frame, if with this centre all those around it are known."""
        self._centres.append(centre)
        if len(self._centres) < 2 * SMOOTHED + 1 or not self._located:
            return []
        self._located -= 1
        number, grey = self._frames.popleft()
        moving = self._centres[SMOOTHED] is not None
        if moving:
            around = np.array([one for one in self._centres if one is not None])
            x, y = around.mean(axis=0).tolist()
            self._place = x, y
        self.moving += moving
        x, y = self._place or ((grey.shape[1] - 1) / 2, (grey.shape[0] - 1) / 2)
        top, left = (
            min(max(round(at - (size - 1) / 2), 0), room - size)
            for at, size, room in ((y, self.height, grey.shape[0]), (x, self.width, grey.shape[1]))
        )
        return [PersonFrame(number, grey[top : top + self.height, left : left + self.width], moving)]


def still_note(moving: int) -> str:
    """Return what is to be said of a video where nothing ever moves; empty if something does, in some frames."""
    return "" if moving else "nothing moves: the window around the person shows the middle of the frame"


def _blurred(grey: np.ndarray) -> np.ndarray:
    return cv2.blur(grey, (3, 3)).astype(np.float32)


def _beyond_row(values: np.ndarray, least: float) -> np.ndarray:
    """Return by how much each px is above the median of its row and `least`, 0 where it is not."""
    return np.maximum(values - np.median(values, axis=1, keepdims=True) - np.float32(least), 0)


def _centre(grey: np.ndarray, movement: np.ndarray) -> tuple[float, float]:
    """Return (x, y) in px, the centre of the foreground near movement (H, W), which is not all 0."""
    blurred = _blurred(grey)
    apart = np.abs(blurred - np.median(blurred, axis=1, keepdims=True)) - STANDS_OUT
    near = cv2.GaussianBlur(movement, (0, 0), AROUND * min(grey.shape))
    weight = near * (apart.clip(0, MOST) + LEAST)
    total = float(weight.sum())
    x = float((weight.sum(axis=0) * np.arange(grey.shape[1])).sum()) / total
    y = float((weight.sum(axis=1) * np.arange(grey.shape[0])).sum()) / total
    return x, y
