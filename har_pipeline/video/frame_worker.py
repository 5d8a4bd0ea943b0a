"""Preparing a whole video, in a child process, as the small frames that a raw-video network sees.

A video is sent as one message: prepared frames are small, and the crop of depth is known only at its end. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import Aspect, RawStream, ResizeMethod
from har_pipeline.video.decode import FrameReader, probe_again, tail_note, too_many_frames
from har_pipeline.video.depth import CausalDepth, prepare_depth, read_depth_span
from har_pipeline.video.person import PersonWindow, still_note
from har_pipeline.video.preprocess import Resize, fit_frame, parse_resize, resize_frame
from har_pipeline.video.process import Failed, Task, Worker, serve
from har_pipeline.video.seek import exactly
from har_pipeline.video.timing import Timing, in_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTask(Task):
    """One video to prepare; `stream` to `causal`, and `fps`, as in `RawOptions`."""

    stream: RawStream
    size: int
    aspect: Aspect
    causal: bool
    # The resize mode of windows of people, instead of size and aspect; empty: none.
    window: str = ""
    resize_method: ResizeMethod = "area"
    fps: float
    max_frames: int


@dataclass(frozen=True, slots=True)
class RawVideo:
    """A prepared video."""

    frames: np.ndarray  # (F, S, S) depth, (F, S, S, 3) RGB, or (F, H, W) windows of people; uint8
    numbers: np.ndarray  # numbers, fps, notes: as in `DepthVideo`
    fps: float
    times_s: np.ndarray  # (F, 2) float64, when each frame begins and ends, s from the start of the file
    notes: tuple[str, ...]

    @property
    def rows(self) -> np.ndarray:
        """(F, S * S * C) uint8, a frame each."""
        return self.frames.reshape(len(self.frames), -1)

    @property
    def bounds(self) -> np.ndarray:
        """(F, 2) int64, the number of each frame in the file and the next one."""
        return np.stack([self.numbers, self.numbers + 1], axis=1)

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.frames)


def prepare_video(task: RawTask) -> RawVideo:
    """Return the frames of one video as a network sees them. Raises: VideoError naming the file if there are none."""
    if task.stream == "rgb":
        return exactly(task.path, partial(_prepare_rgb, task))
    video = read_depth_span(task.path, task, fps=task.fps, max_frames=task.max_frames)
    try:
        frames = prepare_depth(video.frames, task.size, task.aspect)
    except VideoError as error:
        raise VideoError(f"{task.path}: {error}") from error
    if task.causal:
        frames = CausalDepth(task.size, task.aspect).push(video.frames)
    return RawVideo(frames, video.numbers, video.fps, _times_s(video.timing, video.numbers), video.notes)


def _prepare_rgb(task: RawTask, seek: bool) -> RawVideo:
    info = probe_again(task.path)
    task = in_frames(task, task.path, info.timing, info.packet_frames)
    reader = FrameReader(task.path, start=task.start_frame, stop=task.end_frame, info=info, seek=seek)
    numbers, frames = list[int](), list[np.ndarray]()
    mode = parse_resize(task.window) if task.window else None
    window = PersonWindow(mode) if mode and mode.person else None
    scaled = task.resize_method == "swscale"
    size = (task.size, task.size)
    for number, frame in ((n, one.rgb(size)) for n, one in reader.pictures()) if scaled else reader:
        if len(numbers) == task.max_frames:
            raise VideoError(too_many_frames(task.path, task.max_frames))
        numbers.append(number)
        if window is not None:
            frames += [one.window for one in window.push(number, frame)]
        elif mode and mode.fit:
            frames.append(fit_frame(frame, *mode.fit))
        else:
            frames.append(frame if scaled else scale_rgb(frame, task.size, task.aspect, task.resize_method))
    if window is not None:
        frames += [one.window for one in window.finish()]
    if not frames:
        raise VideoError(f"{task.path}: no frame could be decoded from frame {task.start_frame} on")
    whole = task.end_frame is None and reader.frames_decoded != info.packet_frames
    timing = info.timing_of_frames(reader.ticks) if whole else info.timing
    notes = [*info.notes, *reader.notes, *timing.notes, *tail_note(info, numbers[-1] + 1, task.end_frame)]
    if window is not None and (still := still_note(window.moving)):
        notes.append(still)
    found = np.array(numbers, np.int64)
    return RawVideo(np.stack(frames), found, timing.fps, _times_s(timing, found), tuple(notes))


def _times_s(timing: Timing, numbers: np.ndarray) -> np.ndarray:
    return np.stack([timing.begin_s(numbers), timing.begin_s(numbers + 1)], axis=1)


def scale_rgb(frame: np.ndarray, size: int, aspect: Aspect, method: ResizeMethod = "area") -> np.ndarray:
    """Return (size, size, 3) uint8: the whole frame (H, W, 3), stretched, or with 0 around it to keep its aspect.

    Interpolated as `preprocess.scale_frame` says.
    """
    if aspect == "keep":
        height, width = frame.shape[:2]
        top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
        bottom, right = max(height, width) - height - top, max(height, width) - width - left
        frame = cv2.copyMakeBorder(frame, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    return resize_frame(frame, Resize(size, (size, size), method=method))


def main(socket_fd: int) -> None:
    """Serve tasks until the parent closes the connection."""
    serve(Connection(socket_fd), prepare_video)


def raw_worker() -> Worker[RawTask, RawVideo | Failed]:
    """Return a started worker that prepares videos."""
    return Worker("har_pipeline.video.frame_worker")
