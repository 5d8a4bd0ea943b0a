"""A process of its own that turns one video after another into the small frames of a raw-video network.

As `worker`, but a video is sent as a whole: prepared frames are small, and the crop of depth is known at its end only.
The time limit is the same kernel timer, so that a hanging or crashing file costs one video. Imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import Aspect, RawStream
from har_pipeline.video.decode import FrameReader, probe, tail_note
from har_pipeline.video.depth import CausalDepth, prepare_depth, read_depth
from har_pipeline.video.preprocess import Resize, resize_frame


@dataclass(frozen=True, slots=True)
class RawTask:
    """One video to prepare.

    start_frame, end_frame: as in `VideoRecord`; causal: depth by `CausalDepth`; fps: as in `depth.read_depth`.
    """

    video_id: str
    path: Path
    start_frame: int
    end_frame: int | None
    stream: RawStream
    size: int
    aspect: Aspect
    fps: float
    time_limit_s: float
    causal: bool = False


@dataclass(frozen=True, slots=True)
class RawVideo:
    """A prepared video: frames (F, S, S) depth or (F, S, S, 3) RGB, uint8; numbers, fps, notes as in `DepthVideo`."""

    frames: np.ndarray
    numbers: np.ndarray
    fps: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RawFailure:
    """The video cannot be prepared; `reason` says why."""

    reason: str


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


def main(arguments: list[str]) -> None:
    """Serve tasks until the other side closes the connection."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphan outlives a killed job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection = Connection(int(arguments[0]))
    while True:
        try:
            task: RawTask = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, task.time_limit_s)
        try:
            result: RawVideo | RawFailure = prepare_video(task)
        except VideoError as error:
            result = RawFailure(str(error))
        except Exception as error:
            result = RawFailure(f"{task.path}: {type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(result)


class RawWorker:
    """The parent's side of one worker process: give it a task, `receive` the result."""

    def __init__(self) -> None:
        self.task: RawTask | None = None
        ours, theirs = socket.socketpair()
        # Not `-m`: this module would then be imported twice, and its message classes would not be the same.
        code = "import sys; from har_pipeline.video.frame_worker import main; main(sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self.connection = Connection(ours.detach())

    def start(self, task: RawTask) -> None:
        """Give the idle worker a task."""
        self.task = task
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next `receive` reports the death
            self.connection.send(task)

    def receive(self) -> RawVideo | RawFailure:
        """Return the result of the task; the death of the process counts as a failure, after which the worker is useless."""
        assert self.task is not None
        try:
            result: RawVideo | RawFailure = self.connection.recv()
        except (EOFError, ConnectionResetError):
            code = self.process.wait()
            if code == -signal.SIGALRM:
                return RawFailure(
                    f"{self.task.path}: reading took longer than the limit of {self.task.time_limit_s:g} s"
                )
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return RawFailure(f"{self.task.path}: the process that read it died ({how})")
        return result

    @property
    def alive(self) -> bool:
        """Whether the process can take another task."""
        return self.process.poll() is None

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
