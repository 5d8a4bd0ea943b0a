"""Finding and describing the interest points or trajectories of a whole video, in a child process. Imports no torch.

The points of a video travel as one message: there are at most `max_points`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import WHOLE, Span
from har_pipeline.video.decode import FrameReader, VideoInfo, probe_again, tail_note, too_many_frames
from har_pipeline.video.local.harris3d import interest_points
from har_pipeline.video.local.points import Points, joined
from har_pipeline.video.local.spec import HANDCRAFTED
from har_pipeline.video.local.trajectories import dense_trajectories
from har_pipeline.video.preprocess import scale_to
from har_pipeline.video.process import Failed, Task, Worker, serve, stopped_clock
from har_pipeline.video.seek import exactly
from har_pipeline.video.timing import in_frames

FINDERS: Mapping[str, Callable[[Iterable[np.ndarray]], Iterator[Points]]] = {
    "harris3d_hof": interest_points,
    "idt": dense_trajectories,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTask(Task):
    """One video to describe; `short_side` and `max_points` as in `LocalOptions`."""

    extractor: str
    # Names of the descriptors that make a row.
    blocks: tuple[str, ...]
    short_side: int
    max_points: int
    max_frames: int


@dataclass(frozen=True, slots=True)
class LocalVideo:
    """A described video: n points in the order of time; if none was found, one row of zeros for the whole video."""

    rows: np.ndarray  # (n, D) float32
    bounds: np.ndarray  # (n, 2) int64, the first frame that a row describes and the one after its last, in the file
    times_s: np.ndarray  # (n, 2) float64, when these begin, s from the start of the file
    num_frames: int
    fps: float
    notes: tuple[str, ...]


class VideoFrames:
    """The frames of a video one by one, no larger than asked for, and what was learned of the file on the way."""

    def __init__(self, path: Path, short_side: int, span: Span = WHOLE, *, max_frames: int, seek: bool = False) -> None:
        """seek: as in `FrameReader`."""
        self.path, self.short_side, self.max_frames = path, short_side, max_frames
        self.info: VideoInfo = probe_again(path)
        part = in_frames(span, path, self.info.timing, self.info.packet_frames)
        self.start, self.stop = part.start_frame, part.end_frame
        self._reader = FrameReader(path, start=self.start, stop=self.stop, info=self.info, seek=seek)
        self.numbers: list[int] = []  # of the frames so far, in the file

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB, all of the size of the first. Raises: VideoError if there is none, or too many."""
        size: tuple[int, int] | None = None
        for number, frame in self._reader:
            if len(self.numbers) == self.max_frames:
                raise VideoError(too_many_frames(self.path, self.max_frames))
            self.numbers.append(number)
            size = size or _size_within(frame, self.short_side)
            # The time limit is for reading.
            with stopped_clock():
                yield scale_to(frame, *size)
        if size is None:
            raise VideoError(f"{self.path}: no frame could be decoded from frame {self.start} on")

    def notes(self) -> list[str]:
        """Return what was odd about the file, once all frames were read."""
        return [*self.info.notes, *self._reader.notes, *tail_note(self.info, self.numbers[-1] + 1, self.stop)]


def find_points(
    path: Path,
    extractor: str,
    *,
    short_side: int,
    start: int,
    stop: int,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[np.ndarray], Points]:
    """Return the frames `[start, stop)` of a video, (H, W, 3) uint8 each, and what an extractor finds in them.

    on_frame: called with the frames searched and how many there should be.
    Raises: VideoError if none of them can be read.
    """

    def found(seek: bool) -> tuple[list[np.ndarray], Points]:
        frames: list[np.ndarray] = []

        def kept() -> Iterator[np.ndarray]:
            part = Span(start_frame=start, end_frame=stop)
            video = VideoFrames(path, short_side, part, max_frames=stop - start, seek=seek)
            total = max(0, min(stop, video.info.announced_frames) - start)
            for frame in video:
                on_frame(len(frames), max(len(frames), total))
                frames.append(frame)
                yield frame

        return frames, joined(list(FINDERS[extractor](kept())))

    return exactly(path, found)


def _size_within(frame: np.ndarray, short_side: int) -> tuple[int, int]:
    """Return (height, width) of a frame whose short side may not be longer than this; a smaller one stays as it is."""
    height, width = frame.shape[:2]
    factor = min(1.0, short_side / min(height, width))
    return round(height * factor), round(width * factor)


@dataclass(slots=True)
class _Sample:
    """At most `most` of the points that it is shown, each with the same chance, whatever their number.

    Every point draws a number, and those with the smallest are kept.
    """

    most: int
    seen: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    columns: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def add(self, *columns: np.ndarray) -> None:
        if not len(columns[0]):
            return
        self.seen += len(columns[0])
        self.columns.append((self.rng.random(len(columns[0])), *columns))
        if sum(len(part[0]) for part in self.columns) > 2 * self.most:
            self.columns = [self._smallest()]

    def _smallest(self) -> tuple[np.ndarray, ...]:
        joined = [np.concatenate(parts) for parts in zip(*self.columns, strict=True)]
        if len(joined[0]) <= self.most:
            return tuple(joined)
        kept = np.argpartition(joined[0], self.most - 1)[: self.most]
        return tuple(column[kept] for column in joined)

    def points(self) -> tuple[np.ndarray, ...] | None:
        """Return the columns without the numbers drawn; None if there is no point."""
        return self._smallest()[1:] if self.columns else None


def describe_video(task: LocalTask) -> LocalVideo:
    """Return the points of one video. Raises: VideoError naming the file if it cannot be read."""
    return exactly(task.path, partial(_described, task))


def _described(task: LocalTask, seek: bool) -> LocalVideo:
    extractor = HANDCRAFTED[task.extractor]
    frames = VideoFrames(task.path, task.short_side, task, max_frames=task.max_frames, seek=seek)
    sample = _Sample(task.max_points)
    for found in FINDERS[task.extractor](frames):
        values = np.concatenate([found.blocks[name] for name in task.blocks], axis=1)
        middle = found.tracks[:, found.tracks.shape[1] // 2]
        sample.add(values, np.stack([found.first, found.end], axis=1), middle)
    numbers, notes = np.array(frames.numbers, np.int64), frames.notes()
    kept = sample.points()
    if kept is None:
        values = np.zeros((1, sum(extractor.blocks[name] for name in task.blocks)), np.float32)
        ranges = np.array([[0, len(numbers)]])
        notes.append(f"no {extractor.finds} was found: one row of zeros stands for none")
    else:
        order = np.lexsort((kept[2][:, 0], kept[2][:, 1], kept[1].sum(axis=1)))
        values, ranges = kept[0][order], kept[1][order]
        if sample.seen > task.max_points:
            notes.append(f"{sample.seen} found, a sample of {task.max_points} kept, see --max-points")
    # The volume of a point near an end may reach beyond it.
    ranges = np.stack([ranges[:, 0].clip(min=0), ranges[:, 1].clip(max=len(numbers))], axis=1)
    bounds = np.stack([numbers[ranges[:, 0]], numbers[ranges[:, 1] - 1] + 1], axis=1)
    timing = frames.info.timing
    return LocalVideo(values, bounds, timing.begin_s(bounds), len(numbers), timing.fps, tuple(notes))


def main(socket_fd: int) -> None:
    """Serve tasks until the parent closes the connection."""
    cv2.setNumThreads(1)  # one worker a core
    serve(Connection(socket_fd), describe_video)


def local_worker() -> Worker[LocalTask, LocalVideo | Failed]:
    """Return a started worker that describes videos."""
    return Worker("har_pipeline.video.local.worker")
