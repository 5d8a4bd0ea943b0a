"""Preparing a whole video, in a child process, as the small frames that a raw-video network sees.

A video is sent as one message: prepared frames are small, and the crop of depth is known only at its end. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import Aspect, RawStream
from har_pipeline.video.decode import FrameReader, probe, tail_note
from har_pipeline.video.depth import CausalDepth, prepare_depth, read_depth
from har_pipeline.video.preprocess import Resize, resize_frame
from har_pipeline.video.process import Failed, Task, Worker, serve


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTask(Task):
    """One video to prepare; `stream` to `fps` as in `RawOptions`."""

    stream: RawStream
    size: int
    aspect: Aspect
    causal: bool
    fps: float


@dataclass(frozen=True, slots=True)
class RawVideo:
    """A prepared video."""

    frames: np.ndarray  # (F, S, S) depth or (F, S, S, 3) RGB, uint8
    numbers: np.ndarray  # numbers, fps, notes: as in `DepthVideo`
    fps: float
    notes: tuple[str, ...]


def prepare_video(task: RawTask) -> RawVideo:
    """Return the frames of one video as a network sees them. Raises: VideoError naming the file if there are none."""
    if task.stream == "rgb":
        return _prepare_rgb(task)
    video = read_depth(task.path, start=task.start_frame, stop=task.end_frame, fps=task.fps)
    try:
        frames = prepare_depth(video.frames, task.size, task.aspect)
    except VideoError as error:
        raise VideoError(f"{task.path}: {error}") from error
    if task.causal:
        frames = CausalDepth(task.size, task.aspect).push(video.frames)
    return RawVideo(frames, video.numbers, video.fps, video.notes)


def _prepare_rgb(task: RawTask) -> RawVideo:
    info = probe(task.path)
    reader = FrameReader(task.path, start=task.start_frame, stop=task.end_frame, info=info)
    numbers, frames = [], []
    for number, frame in reader:
        numbers.append(number)
        frames.append(scale_rgb(frame, task.size, task.aspect))
    if not frames:
        raise VideoError(f"{task.path}: no frame could be decoded from frame {task.start_frame} on")
    notes = [*reader.notes, *tail_note(info, numbers[-1] + 1, task.end_frame)]
    return RawVideo(np.stack(frames), np.array(numbers, np.int64), info.fps, tuple(notes))


def scale_rgb(frame: np.ndarray, size: int, aspect: Aspect) -> np.ndarray:
    """Return (size, size, 3) uint8: the whole frame (H, W, 3), stretched, or with 0 around it to keep its aspect.

    Interpolated as `preprocess.scale_frame` says.
    """
    if aspect == "keep":
        height, width = frame.shape[:2]
        top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
        bottom, right = max(height, width) - height - top, max(height, width) - width - left
        frame = cv2.copyMakeBorder(frame, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    return resize_frame(frame, Resize(size, (size, size)))


def main(socket_fd: int) -> None:
    """Serve tasks until the parent closes the connection."""
    serve(Connection(socket_fd), prepare_video)


def raw_worker() -> Worker[RawTask, RawVideo | Failed]:
    """Return a started worker that prepares videos."""
    return Worker("har_pipeline.video.frame_worker")
