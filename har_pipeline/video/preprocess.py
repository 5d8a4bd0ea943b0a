"""Resizing and cropping of uint8 frames, in the decode workers: numpy and OpenCV only."""

from __future__ import annotations

import re
from dataclasses import dataclass

import cv2
import numpy as np

_STRETCH = re.compile(r"stretch-(\d+)")
_SHORT_SIDE = re.compile(r"short(\d+)-center(\d+)")

# One thread: a worker shares its core with the net.
cv2.setNumThreads(1)


@dataclass(frozen=True, slots=True)
class Resize:
    """A parsed resize mode: `short_side` None stretches to size x size, else it is kept and the centre is cut out."""

    size: int
    short_side: int | None = None


def parse_resize(text: str) -> Resize:
    """Return the mode written as `stretch-224` (aspect ratio ignored) or `short256-center224`.

    Raises: ValueError if it is written otherwise, or the crop is larger than the short side.
    """
    if match := _STRETCH.fullmatch(text):
        return Resize(int(match[1]))
    if match := _SHORT_SIDE.fullmatch(text):
        short, size = int(match[1]), int(match[2])
        if size > short:
            raise ValueError(f"resize {text!r}: the crop of {size} px does not fit into a short side of {short} px")
        return Resize(size, short)
    raise ValueError(f"resize {text!r}: write stretch-<size> or short<side>-center<size>, as in short256-center224")


def resize_frame(frame: np.ndarray, resize: Resize) -> np.ndarray:
    """Return (size, size, 3) uint8 from a frame (H, W, 3) uint8.

    Bilinear where a side grows; where both shrink, the mean over the area that each new pixel covers, so that fine
    texture does not alias. The same pixels come out on every machine with the same OpenCV.
    """
    if resize.short_side is None:
        return _scale(frame, resize.size, resize.size)
    height, width = frame.shape[:2]
    factor = resize.short_side / min(height, width)
    scaled = _scale(frame, max(resize.short_side, round(height * factor)), max(resize.short_side, round(width * factor)))
    top, left = (scaled.shape[0] - resize.size) // 2, (scaled.shape[1] - resize.size) // 2
    return scaled[top : top + resize.size, left : left + resize.size]


def _scale(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
