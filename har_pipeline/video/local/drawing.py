"""Pictures of what the handcrafted extractors found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from har_pipeline.video.local.points import Points

# Colours of interest points by octaves of sigma, from 2 px on.
_CIRCLES = ((255, 255, 0), (255, 150, 0), (255, 0, 60))
_LINE, _HEAD = (0, 230, 0), (255, 0, 0)
# A descriptor of an interest point reads so many tau.
_TAUS = 8
# OpenCV takes places as whole numbers of 1 / 2^4 px.
_SHIFT = 4
# Pictures of a sheet are at least so wide, and in rows of so many.
_WIDTH_PX, _COLUMNS = 320, 4


def draw_points(frame: np.ndarray, points: Points, number: int) -> np.ndarray:
    """Return a copy of a frame (H, W, 3) uint8 RGB with what is alive in it.

    number: of the frame, as `points.first` counts. An interest point is a circle of radius sigma (yellow below 4 px, orange
    below 8, then red) and lives for tau before and after its frame. A trajectory is a green line up to this frame, with a
    red dot at its head.
    """
    return _drawn(frame.copy(), points, number, 1)


def _drawn(drawn: np.ndarray, points: Points, number: int, factor: int) -> np.ndarray:
    """Draw on a frame that was enlarged by a factor, and return it."""
    # The centre of a px stays the centre of the square that it becomes.
    tracks = np.rint(((points.tracks + 0.5) * factor - 0.5) * 2**_SHIFT).astype(np.int32)
    lived = number - points.first
    if points.tracks.shape[1] == 1:
        middle = (points.first + points.end) // 2
        for index in np.nonzero(np.abs(middle - number) * _TAUS <= points.end - points.first)[0]:
            sigma = float(points.scales[index])
            colour = _CIRCLES[min(max(int(math.log2(max(sigma, 1))) - 1, 0), len(_CIRCLES) - 1)]
            x, y = tracks[index, 0].tolist()
            cv2.circle(drawn, (x, y), round(sigma * factor * 2**_SHIFT), colour, 1, cv2.LINE_AA, _SHIFT)
        return drawn
    alive = np.nonzero((lived >= 0) & (lived < points.tracks.shape[1]))[0]
    lines = [tracks[index, : lived[index] + 1] for index in alive]
    cv2.polylines(drawn, lines, False, _LINE, 1, cv2.LINE_AA, _SHIFT)
    for track in lines:
        x, y = track[-1].tolist()
        cv2.circle(drawn, (x, y), 3 * 2 ** (_SHIFT - 1), _HEAD, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    return drawn


def local_descriptor_sheet(frames: Sequence[np.ndarray], points: Points, count: int = 8) -> np.ndarray:
    """Return a contact sheet (h, w, 3) uint8 RGB: `count` frames, evenly spaced, with what is alive in them and their numbers.

    frames: (H, W, 3) uint8 RGB each, all frames of the video that the points are of, at least one; of a shorter video each
    is shown once. Small frames are enlarged by a whole factor until they are at least 320 px wide.
    """
    numbers = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int)).tolist()
    height, width = frames[0].shape[:2]
    factor = math.ceil(_WIDTH_PX / width)
    pictures = []
    for number in numbers:
        large = cv2.resize(frames[number], (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
        pictures.append(_numbered(_drawn(large, points, number, factor), number))
    columns = min(_COLUMNS, len(pictures))
    pictures += [np.zeros_like(pictures[0])] * (-len(pictures) % columns)
    return np.vstack([np.hstack(pictures[at : at + columns]) for at in range(0, len(pictures), columns)])


def _numbered(picture: np.ndarray, number: int) -> np.ndarray:
    """Write the number into the upper left corner, readable on any background."""
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, str(number), (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
    return picture
