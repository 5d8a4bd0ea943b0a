"""Frames as they come, from a file or a camera, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import RawStream
from har_pipeline.video.stream_worker import read_frames


def live_frames(
    source: str, stream: RawStream, on_note: Callable[[str], None] = lambda text: None
) -> Iterator[np.ndarray]:
    """Return the frames of a file, a depth folder, or a camera's number such as `0`, in order.

    rgb: (H, W, 3) uint8; depth: (H, W) uint16 mm; see `read_frames`, which reads files.
    on_note: called with what is odd about the file, such as a damaged frame that is left out; for RGB at its end.
    Raises: VideoError if it cannot be read, or a camera is asked for depth, for which there is no common driver.
    """
    if source.isdigit() and not Path(source).exists():
        if stream == "depth":
            raise VideoError(f"camera {source} gives colour, this run reads depth: give a depth file or folder")
        return _camera_frames(int(source))
    return read_frames(Path(source).expanduser(), stream, on_note=on_note)


def _camera_frames(number: int) -> Iterator[np.ndarray]:
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        raise VideoError(f"camera {number} cannot be opened: check that it is connected and not in use")
    try:
        while True:
            found, frame = camera.read()
            if not found:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        camera.release()
