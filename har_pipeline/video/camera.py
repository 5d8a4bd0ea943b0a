"""Frames as they come, from a file or a camera, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import RawStream
from har_pipeline.video.decode import FrameReader, probe, tail_note
from har_pipeline.video.depth import read_depth


def live_frames(
    source: str, stream: RawStream, on_note: Callable[[str], None] = lambda text: None
) -> Iterator[np.ndarray]:
    """Return the frames of a file, a depth folder, or a camera's number such as `0`, in order.

    rgb: (H, W, 3) uint8, read frame by frame; depth: (H, W) uint16 mm, read as a whole first.
    on_note: called with what is odd about the file, such as a damaged frame that is left out; for RGB at its end.
    Raises: VideoError if it cannot be read, or a camera is asked for depth, for which there is no common driver.
    """
    if source.isdigit() and not Path(source).exists():
        if stream == "depth":
            raise VideoError(f"camera {source} gives colour, this run reads depth: give a depth file or folder")
        return _camera_frames(int(source))
    path = Path(source).expanduser()
    if stream == "depth":
        video = read_depth(path)
        for text in video.notes:
            on_note(text)
        return iter(video.frames)
    return _rgb_frames(path, on_note)


def _rgb_frames(path: Path, on_note: Callable[[str], None]) -> Iterator[np.ndarray]:
    info = probe(path)
    reader = FrameReader(path, info=info)
    for _, frame in reader:
        yield frame
    for text in [*reader.notes, *tail_note(info, reader.frames_decoded)]:
        on_note(text)


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
