"""Frames as they come, from a file, a camera or a URL: all of them in order, or the newest while others are dropped."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import RawStream
from har_pipeline.video.stream_worker import read_frames
from har_pipeline.video.timing import DEFAULT_FPS

# Beyond this what a camera says of its frame rate is not one.
_HIGHEST_FPS = 1000.0
# How long to wait for the last frame of a camera that hangs, s.
_PATIENCE_S = 2.0


def is_camera(source: str) -> bool:
    """Return whether a source is a camera's number or a URL, whose frames do not wait, and not a file."""
    return not Path(source).expanduser().exists() and (source.isdigit() or "://" in source)


def live_frames(
    source: str,
    stream: RawStream,
    on_note: Callable[[str], None] = lambda text: None,
    on_open: Callable[[float], None] = lambda fps: None,
) -> Iterator[np.ndarray]:
    """Return the frames of a file, a depth folder, a camera's number such as `0`, or a URL such as `rtsp://...`, in order.

    rgb: (H, W, 3) uint8; depth: (H, W) uint16 mm; see `read_frames`, which reads files.
    on_note: called with what is odd about the file, such as a damaged frame that is left out; for RGB at its end. on_open:
    called with the frames/s before the first frame, 25 where they are not known.
    Raises: VideoError if it cannot be read, or a camera is asked for depth, for which there is no common driver.
    """
    if is_camera(source):
        number = source.isdigit()
        what = f"camera {source}" if number else source
        if stream == "depth":
            raise VideoError(f"{what} gives colour, this run reads depth: give a depth file or folder")
        way_out = "it is connected and not in use" if number else "the address is right and video is sent there"
        return _camera_frames(
            int(source) if number else source, f"{what} cannot be opened: check that {way_out}", on_open
        )
    return read_frames(Path(source).expanduser(), stream, on_note=on_note, on_open=on_open)


def _camera_frames(source: int | str, unopened: str, on_open: Callable[[float], None]) -> Iterator[np.ndarray]:
    # What they print of their own goes around Python's streams; the error says it.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    camera = cv2.VideoCapture(source)
    if not camera.isOpened():
        raise VideoError(unopened)
    try:
        fps = camera.get(cv2.CAP_PROP_FPS)
        on_open(fps if 0 < fps < _HIGHEST_FPS else DEFAULT_FPS)
        while True:
            found, frame = camera.read()
            if not found:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        camera.release()


def opened(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Return the same frames after the first one was read, so that what there is to say of their source was said."""

    def both(first: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        yield from first
        yield from frames

    return both(list(itertools.islice(frames, 1)))


def paced(frames: Iterator[np.ndarray], fps: float) -> Iterator[np.ndarray]:
    """Yield frames no faster than `fps`, as a camera does."""
    begun = time.perf_counter()
    for number, frame in enumerate(frames):
        if (early := begun + number / fps - time.perf_counter()) > 0:
            time.sleep(early)
        yield frame


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A frame that came, or what was kept of it."""

    number: int  # among all frames of the source, from 0
    image: np.ndarray
    came_s: float  # when, by `time.perf_counter`
    dropped: int = 0  # frames so far that were wanted and had to make room for newer ones


# What is kept of a frame, given its number; None: nothing.
Keep = Callable[[int, np.ndarray], np.ndarray | None]


def every_frame(frames: Iterator[np.ndarray], keep: Keep) -> Generator[LiveFrame, None, None]:
    """Yield what `keep` keeps of each frame, in order; the source waits."""
    for number, frame in enumerate(frames):
        came = time.perf_counter()
        if (image := keep(number, frame)) is not None:
            yield LiveFrame(number, image, came)


def newest_frames(frames: Iterator[np.ndarray], keep: Keep, capacity: int) -> Generator[LiveFrame, None, None]:
    """Yield what `keep` keeps of each frame, in order; the source does not wait.

    A thread reads the source and keeps; where more than `capacity` frames wait, the oldest is dropped, and counted. Raises
    what the source raises, after the frames before.
    """
    waiting: deque[tuple[int, np.ndarray, float]] = deque()
    changed = threading.Condition()
    state: dict[str, Any] = {"dropped": 0, "ended": False, "stopped": False, "error": None}

    def read() -> None:
        try:
            for number, frame in enumerate(frames):
                came = time.perf_counter()
                image = keep(number, frame)
                with changed:
                    if state["stopped"]:
                        break
                    if image is not None:
                        waiting.append((number, image, came))
                        if len(waiting) > capacity:
                            waiting.popleft()
                            state["dropped"] += 1
                        changed.notify()
        except BaseException as error:  # it is raised where the frames are taken
            state["error"] = error
        finally:
            # A generator is closed where it runs.
            with suppress(Exception), closing(frames):  # type: ignore[type-var]
                pass
            with changed:
                state["ended"] = True
                changed.notify()

    reader = threading.Thread(target=read, name="har-camera", daemon=True)
    reader.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or state["ended"])
                if not waiting:
                    break
                found, dropped = waiting.popleft(), state["dropped"]
            yield LiveFrame(*found, dropped)
        if state["error"] is not None:
            raise state["error"]
    finally:
        state["stopped"] = True
        reader.join(_PATIENCE_S)
