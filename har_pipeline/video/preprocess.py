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
    """A parsed resize mode, in px.

    `short_side` None stretches the frame to size x size; else its shorter side is brought to that length, the aspect ratio
    kept, and the centre of size x size cut out.
    """

    size: int
    short_side: int | None = None


def parse_resize(text: str) -> Resize:
    """Return the mode written as `stretch-224` (aspect ratio ignored) or `short256-center224`.

    Raises: ValueError if it is written otherwise, or the crop is larger than the short side.
    """
    match = _STRETCH.fullmatch(text)
    if match and int(match[1]) > 0:
        return Resize(int(match[1]))
    match = _SHORT_SIDE.fullmatch(text)
    if match and int(match[2]) > 0:
        short, size = int(match[1]), int(match[2])
        if size > short:
            raise ValueError(f"resize {text!r}: the crop of {size} px does not fit into a short side of {short} px")
        return Resize(size, short)
    raise ValueError(f"resize {text!r}: write stretch-<size> or short<side>-center<size>, as in short256-center224")


def resize_frame(frame: np.ndarray, resize: Resize) -> np.ndarray:
    """Return (size, size, 3) uint8 from a frame (H, W, 3) uint8; it may be a view of that frame.

    A side that grows is interpolated linearly; along one that shrinks each new pixel is the mean over the stretch that it
    covers, so that fine texture does not alias. On natural images this is within two levels (mean absolute difference) of
    Pillow's and torchvision's antialiased bilinear. The long side is rounded to whole px, the crop's offset down.
    """
    if resize.short_side is None:
        return _scale(frame, resize.size, resize.size)
    height, width = frame.shape[:2]
    factor = resize.short_side / min(height, width)
    scaled = _scale(
        frame, max(resize.short_side, round(height * factor)), max(resize.short_side, round(width * factor))
    )
    top, left = (scaled.shape[0] - resize.size) // 2, (scaled.shape[1] - resize.size) // 2
    return scaled[top : top + resize.size, left : left + resize.size]


def _scale(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    # OpenCV takes one method for both sides, so a frame that shrinks along one and grows along the other goes twice.
    for size, method in (
        ((min(height, frame.shape[0]), min(width, frame.shape[1])), cv2.INTER_AREA),
        ((height, width), cv2.INTER_LINEAR),
    ):
        if frame.shape[:2] != size:
            frame = cv2.resize(frame, size[::-1], interpolation=method)
    return frame
