"""A video's frames in order, whole and at their own size, read in a child process: for flow pictures and live decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import MEMORY_LIMIT_GB, TIME_LIMIT_S, WHOLE, RawStream, Span
from har_pipeline.video.decode import FrameReader, probe, tail_note
from har_pipeline.video.depth import read_depth_span
from har_pipeline.video.process import Failed, Task, Worker, run_tasks, serve, stopped_clock
from har_pipeline.video.timing import in_frames

BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTask(Task):
    """A file, or a depth folder, to read."""

    stream: RawStream


@dataclass(frozen=True, slots=True)
class Opened:
    """The first message."""

    fps: float
    frames: int  # as many as there should be, by the file's header or index; 0 if unknown
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The last message."""

    notes: tuple[str, ...]


def _serve_frames(task: StreamTask, connection: Connection) -> Ended:
    def send(message: Opened | np.ndarray) -> None:
        with stopped_clock():
            connection.send(message)

    if task.stream == "depth":
        video = read_depth_span(task.path, task)
        send(Opened(video.fps, len(video.frames), video.notes))
        rows = max(1, BLOCK_BYTES // video.frames[0].nbytes)
        for start in range(0, len(video.frames), rows):
            send(video.frames[start : start + rows])
        return Ended(())
    info = probe(task.path)
    task = in_frames(task, task.path, info.timing, info.packet_frames)
    announced = max(0, min(info.announced_frames, task.end_frame or info.announced_frames) - task.start_frame)
    send(Opened(info.fps, announced, (*info.notes, *info.timing.notes)))
    reader = FrameReader(task.path, start=task.start_frame, stop=task.end_frame, info=info)
    block: list[np.ndarray] = []
    for _, frame in reader:
        if block and (frame.shape != block[0].shape or frame.nbytes * len(block) >= BLOCK_BYTES):
            send(np.stack(block))
            block.clear()
        block.append(frame)
    if not block:
        raise VideoError(f"{task.path}: no frame could be decoded from frame {task.start_frame} on")
    send(np.stack(block))
    return Ended((*reader.notes, *tail_note(info, reader.frames_decoded, task.end_frame)))


def main(socket_fd: int) -> None:
    """Serve tasks until the parent closes the connection."""
    connection = Connection(socket_fd)
    serve(connection, lambda task: _serve_frames(task, connection))


def read_frames(
    path: Path,
    stream: RawStream = "rgb",
    span: Span = WHOLE,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    memory_limit_gb: float = MEMORY_LIMIT_GB,
    on_open: Callable[[float], None] = lambda fps: None,
    on_count: Callable[[int], None] = lambda frames: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Iterator[np.ndarray]:
    """Yield the frames of a video, or of the span of it, one by one: (H, W, 3) uint8 RGB, or (H, W) uint16 mm of depth.

    on_open: called with the frames/s before the first frame; on_count: with how many frames there should be, 0 if the file
    does not say; on_note: with what is odd about the file. The limits are those
    of `JobOptions`. Memory does not grow with an RGB video; depth is read as a whole first.
    Raises: VideoError if the file cannot be read, also after some of its frames.
    """
    task = StreamTask(
        video_id=path.name,
        path=path,
        start_frame=span.start_frame,
        end_frame=span.end_frame,
        start_s=span.start_s,
        end_s=span.end_s,
        time_limit_s=time_limit_s,
        memory_limit_gb=memory_limit_gb,
        stream=stream,
    )

    def worker() -> Worker[StreamTask, Opened | np.ndarray | Ended | Failed]:
        return Worker("har_pipeline.video.stream_worker")

    with closing(run_tasks(worker, 1, [task])) as messages:
        for _, _, message in messages:
            match message:
                case Failed():
                    raise VideoError(message.reason)
                case Opened():
                    for text in message.notes:
                        on_note(text)
                    on_open(message.fps)
                    on_count(message.frames)
                case Ended():
                    for text in message.notes:
                        on_note(text)
                case _:
                    yield from message
