"""Decoding in a child process: one pass over a file, cut into the clips that several extractors want of it.

Frames travel through shared memory of fixed size (slots), messages through the worker's socket. Imports no torch, so that a
worker starts in a fraction of a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import ExtractionError, VideoError
from har_pipeline.core.files import file_sha256
from har_pipeline.core.records import ClipSpec, Decoder, ResizeMethod
from har_pipeline.video.clips import (
    clip_indices,
    flow_pairs,
    is_padded,
    max_frame_needed,
    num_resampled,
    resampled_indices,
)
from har_pipeline.video.decode import FrameReader, Picture, VideoInfo, probe_again, tail_note, too_many_frames
from har_pipeline.video.person import PersonFrame, PersonWindow, still_note
from har_pipeline.video.preprocess import parse_resize, resize_frame, scale_frame, scale_to, scaled_shape
from har_pipeline.video.process import Failed, Task, Worker, serve, stopped_clock
from har_pipeline.video.seek import exactly
from har_pipeline.video.timing import in_frames


@dataclass(frozen=True, slots=True)
class View:
    """The clips of one video as one extractor wants them; several are cut in one pass over the file."""

    lane: int  # number of the view, returned with its clips
    clips: ClipSpec
    resize: str  # as in `FeatureSpec`
    flow: bool = False  # send for each clip the frames that its flow starts from and those that it leads to
    whole: bool = False  # send scaled frames that are not yet cropped
    method: ResizeMethod = "area"  # as in `FeatureSpec`


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTask(Task):
    """One manifest row to cut into clips."""

    fps: float | None  # as in `FeatureSpec`
    views: tuple[View, ...]
    decoder: Decoder
    max_frames: int  # of the row, also after its frame rate is changed
    hash_content: bool = False  # whether `ClipPlan.content` is wanted
    # Rows of the same file, sorted by their start and within this one, that are cut instead of it in one pass; they may
    # overlap. Their messages come as `OfRow`.
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """The frames [start_frame, end_frame) of a file, one of the rows that are read at once."""

    video_id: str
    start_frame: int
    end_frame: int


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Which clips of a view will be sent.

    A second plan for the same view replaces the first: the container had announced a wrong number of frames.
    """

    lane: int
    clip_bounds: np.ndarray  # (N, 2) int64, each clip's first frame in the file and the one after its last
    num_unique: int  # clips that are sent; the last of them stands for all further ones
    num_frames: int  # of the row's range, in the file
    fps: float
    clip_times_s: np.ndarray  # (N, 2) float64, when each clip begins and ends, s from the start of the file
    padded: bool  # whether a clip holds frames that stand in for missing ones
    content: str  # identifies the pixels, see `_content`, if the task wants it, else empty


@dataclass(frozen=True, slots=True)
class Chunk:
    """Clips of a view whose frames lie in one slot."""

    lane: int
    slot: int
    shape: tuple[int, int, int, int]  # (n, H, W, 3) of the frames, uint8
    numbers: np.ndarray  # (n,) int64, of the frames in the file
    clips: np.ndarray  # (k, T) row numbers into the frames, of a flow view (k, 2T)


@dataclass(frozen=True, slots=True)
class Done:
    """All clips of the video were sent."""

    notes: tuple[str, ...]
    decoder: str


@dataclass(frozen=True, slots=True)
class OfRow:
    """A message on one of a task's rows."""

    row: Row
    message: ClipPlan | Chunk | Done | Failed


Message = ClipPlan | Chunk | Done | Failed | OfRow


class _Sender:
    """Fills free slots with frames and hands them over; while it sends or waits for a free one, the time limit stands still."""

    def __init__(self, connection: Connection, memory: mmap.mmap, num_slots: int) -> None:
        self.connection = connection
        self.slots = np.frombuffer(memory, np.uint8).reshape(num_slots, -1)
        self.free = list(range(num_slots))
        self.row: Row | None = None  # what the messages are on, if it is not the task itself

    def receive(self) -> DecodeTask:
        """Return the next task, taking back slots that come before it."""
        while True:
            message = self.connection.recv()
            if isinstance(message, DecodeTask):
                return message
            self.free.append(message)

    def post(self, message: ClipPlan | Chunk | Done | Failed) -> None:
        """Send a message on the task, or on its row."""
        with stopped_clock():
            self.connection.send(message if self.row is None else OfRow(self.row, message))

    def send(self, lane: int, numbers: np.ndarray, frames: list[np.ndarray], clips: np.ndarray) -> None:
        with stopped_clock():
            while self.connection.poll() or not self.free:
                self.free.append(self.connection.recv())
        slot = self.free.pop()
        size = frames[0].size
        for i, frame in enumerate(frames):
            self.slots[slot, i * size : (i + 1) * size] = frame.reshape(-1)
        self.post(Chunk(lane, slot, (len(frames), *frames[0].shape), numbers, clips))

    def announce(self, plan: ClipPlan) -> None:
        self.post(plan)


def _decode(task: DecodeTask, sender: _Sender) -> Done:
    if task.rows:
        return _decode_rows(task, sender)
    content = _content(task) if task.hash_content else ""
    info = probe_again(task.path)
    task = in_frames(task, task.path, info.timing, info.packet_frames)
    if info.packet_frames <= task.start_frame:
        raise VideoError(f"{task.path}: the row starts at frame {task.start_frame}, the file has {info.packet_frames}")
    num_frames = min(info.packet_frames, task.end_frame or info.packet_frames) - task.start_frame
    # The second pass is for a file that turns out to have another number of frames, where that changes the clips.
    sent = exactly(task.path, lambda seek: _send_clips(task, info, num_frames, content, sender, seek=seek))
    if isinstance(sent, _Found):
        info = dataclasses.replace(info, timing=info.timing_of_frames(sent.ticks))
        sent = _send_clips(task, info, sent.num_frames, content, sender, trusted=True)
    if isinstance(sent, _Found):
        raise VideoError(f"{task.path}: decoding twice gave different numbers of frames")
    return sent


def _content(task: DecodeTask) -> str:
    """Return what identifies the pixels: the file, and the decoder where its pixels may be others than PyAV's."""
    other = "" if task.decoder in ("auto", "pyav") else f" {task.decoder}"
    return file_sha256(task.path) + other


@dataclass(frozen=True, slots=True)
class _Found:
    """What a first pass over a file found, where it had assumed another number of frames."""

    num_frames: int  # of the row
    ticks: list[int | None]  # time stamps of the file's frames


def _send_clips(
    task: DecodeTask,
    info: VideoInfo,
    num_frames: int,
    content: str,
    sender: _Sender,
    *,
    trusted: bool = False,
    seek: bool = False,
) -> Done | _Found:
    """Decode once and send every view's clips as soon as their frames are there.

    Returns what was found instead if that changes the clips. trusted: `num_frames` was counted in a first pass. seek: as
    in `FrameReader`.
    """
    cutters = _cutters(task, info, num_frames, content, sender)
    needed = _frames_needed(task)
    # Reading to the end tells the true number of frames; the first n clips do not depend on it once they are full.
    reads_all = needed is None or num_frames < needed
    stop = task.end_frame if needed is None or reads_all else task.start_frame + needed
    reader = FrameReader(
        task.path,
        decoder=task.decoder,
        start=task.start_frame,
        stop=stop,
        info=info,
        wants=lambda number: any(cutter.wants(number) for cutter in cutters),
        seek=seek,
    )
    for number, frame in _frames(reader, task):
        for cutter in cutters:
            if cutter.wants(number):
                cutter.add(number, frame)
    for cutter in cutters:
        cutter.finish()
    found = reader.frames_decoded - task.start_frame
    if found <= 0:
        raise VideoError(f"{task.path}: no frame could be decoded from frame {task.start_frame} on")
    if (reads_all and found != num_frames and not trusted) or any(cutter.unsent for cutter in cutters):
        return _Found(found, reader.ticks)
    # What was not read is judged by its packets.
    frames = task.start_frame + found if reads_all else info.packet_frames or task.start_frame + found
    mixed = [note for note in (cutter.note() for cutter in cutters) if note]
    notes = [
        *info.notes,
        *reader.notes,
        *info.timing.notes,
        *dict.fromkeys(mixed),
        *tail_note(info, frames, task.end_frame),
    ]
    return Done(tuple(notes), reader.decoder_used)


def _decode_rows(task: DecodeTask, sender: _Sender) -> Done:
    """Decode once and send the clips of each row as soon as their frames are there.

    Rows that a file does not reach, because it has fewer frames than its container says, fail alone.
    """
    info = probe_again(task.path)
    waiting, begun = deque(task.rows), deque[tuple[Row, list[_ClipCutter]]]()

    def wants(number: int) -> bool:
        # Where a row begins and ends, there is something to do.
        return bool(waiting and waiting[0].start_frame <= number) or any(
            row.end_frame == number + 1 or any(cutter.wants(number) for cutter in cutters) for row, cutters in begun
        )

    reader = FrameReader(
        task.path, decoder=task.decoder, start=task.start_frame, stop=task.end_frame, info=info, wants=wants
    )
    for last, frame in _frames(reader, task):
        while waiting and waiting[0].start_frame <= last:
            sender.row = row = waiting.popleft()
            part = dataclasses.replace(task, start_frame=row.start_frame, end_frame=row.end_frame, rows=())
            begun.append((row, _cutters(part, info, row.end_frame - row.start_frame, "", sender)))
        for row, cutters in tuple(begun):
            sender.row = row
            for cutter in cutters:
                if cutter.wants(last):
                    cutter.add(last, frame)
            if row.end_frame <= last + 1:
                for cutter in cutters:
                    cutter.finish()
                notes = [note for note in (cutter.note() for cutter in cutters) if note]
                sender.post(Done(tuple(dict.fromkeys(notes)), reader.decoder_used))
                begun.remove((row, cutters))
    for row in (*(row for row, _ in begun), *waiting):
        sender.row = row
        sender.post(
            Failed(f"{task.path}: the file ends at frame {reader.frames_decoded}, before frame {row.end_frame}")
        )
    sender.row = None
    end = max(row.end_frame for row in task.rows)
    notes = [*info.notes, *reader.notes, *info.timing.notes, *tail_note(info, reader.frames_decoded, end)]
    return Done(tuple(notes), reader.decoder_used)


def _frames(reader: FrameReader, task: DecodeTask) -> Iterator[tuple[int, np.ndarray | Picture]]:
    """Give the frames, unconverted ones where a view has them scaled in the pass that converts them."""
    return reader.pictures() if any(view.method == "swscale" for view in task.views) else iter(reader)


def _frames_needed(task: DecodeTask) -> int | None:
    """Return how many leading frames of the row suffice for all views, or None if that depends on its length.

    A window that follows the person looks a few frames ahead, and says of the whole row where nothing moves.
    """
    if any(parse_resize(view.resize).person for view in task.views):
        return None
    needed = [max_frame_needed(view.clips) for view in task.views]
    if task.fps is not None or None in needed:
        return None
    return max(count + view.flow for count, view in zip(needed, task.views, strict=True) if count is not None)


def _cutters(task: DecodeTask, info: VideoInfo, num_frames: int, content: str, sender: _Sender) -> list[_ClipCutter]:
    """Announce the clips of every view, and return what cuts them. Raises: VideoError if the row has too many frames."""
    timing = info.timing.part(task.start_frame, task.start_frame + num_frames)
    if max(num_frames, num_resampled(num_frames, timing, task.fps)) > task.max_frames:
        raise VideoError(too_many_frames(task.path, task.max_frames, task.fps))
    return [_plan(task, view, info, num_frames, content, sender) for view in task.views]


def _plan(task: DecodeTask, view: View, info: VideoInfo, num_frames: int, content: str, sender: _Sender) -> _ClipCutter:
    """Announce the clips of a view, and return what cuts them."""
    timing = info.timing.part(task.start_frame, task.start_frame + num_frames)
    source = resampled_indices(num_frames, timing, task.fps) + task.start_frame
    indices = clip_indices(len(source), view.clips)
    bounds = np.stack([source[indices[:, 0]], source[indices.max(axis=1)] + 1], axis=1)
    clips = source[flow_pairs(indices, len(source)) if view.flow else indices]
    repeats = 0
    while repeats < len(clips) - 1 and (clips[-2 - repeats] == clips[-1]).all():
        repeats += 1
    unique = clips[: len(clips) - repeats]
    padded = is_padded(len(source), view.clips)
    times_s = info.timing.begin_s(bounds)
    sender.announce(ClipPlan(view.lane, bounds, len(unique), num_frames, info.fps, times_s, padded, content))
    return _ClipCutter(task.path, view, unique, sender)


class _ClipCutter:
    """Collects a view's frames, and sends the clips of which all frames are there, a slot full at a time.

    All frames of a slot have one shape. Where the scaled frames of a clip differ in shape, because the file's frames change
    their size, those that differ from the clip's first one are stretched to its shape.
    """

    def __init__(self, path: Path, view: View, clips: np.ndarray, sender: _Sender) -> None:
        self.path, self.view, self.clips, self.sender = path, view, clips, sender
        self.resize = parse_resize(view.resize, view.method)
        self.window = PersonWindow(self.resize) if self.resize.person else None
        self.next = 0
        self.frames: dict[int, np.ndarray] = {}
        self.wanted = np.unique(clips)
        # Frames before this one are needed by no clip from number i on (padding by looping goes back in time).
        self.oldest = np.minimum.accumulate(clips.min(axis=1)[::-1])[::-1]
        self.ready_at = np.maximum.accumulate(clips.max(axis=1))
        self.longest = max(len(np.unique(clip)) for clip in clips)
        self.mixed = 0  # clips with stretched frames

    @property
    def unsent(self) -> bool:
        return self.next < len(self.clips)

    def wants(self, index: int) -> bool:
        """Return whether a frame is in a clip; a window that follows the person needs all."""
        return self.window is not None or self._in_a_clip(index)

    def _in_a_clip(self, index: int) -> bool:
        position = np.searchsorted(self.wanted, index)
        return bool(position < len(self.wanted) and self.wanted[position] == index)

    def add(self, index: int, frame: np.ndarray | Picture) -> None:
        """Take a decoded frame (H, W, 3). Raises: VideoError if a clip of such frames does not fit into a slot."""
        if isinstance(frame, Picture):
            frame = frame.rgb(scaled_shape(frame.shape, self.resize) if self.view.method == "swscale" else None)
        if self.window is not None:
            self._add_windows(self.window.push(index, frame))
        else:
            self._add(index, scale_frame(frame, self.resize) if self.view.whole else resize_frame(frame, self.resize))

    def finish(self) -> None:
        """Take what a window that follows the person still holds back."""
        if self.window is not None:
            self._add_windows(self.window.finish())

    def _add_windows(self, found: list[PersonFrame]) -> None:
        for one in found:
            if self._in_a_clip(one.number):
                # Nets read three channels.
                self._add(one.number, np.repeat(one.window[..., None], 3, axis=2))

    def _add(self, index: int, frame: np.ndarray) -> None:
        self.frames[index] = frame
        capacity = self._capacity(frame.size)
        if capacity < self.longest:
            height, width = frame.shape[:2]
            raise VideoError(
                f"{self.path}: {self.longest} frames of {width}x{height} px are more than one clip may hold: "
                f"the video is too long-sided for {self.view.resize}, use stretch-<width>x<height>-..."
            )
        if len(self.frames) < capacity and index != self.wanted[-1]:
            return
        ready = int(np.searchsorted(self.ready_at, index, side="right"))
        while self.next < ready:
            shape = self._shape(self.next)
            end = self._fitting(ready, shape)
            rows, inverse = np.unique(self.clips[self.next : end], return_inverse=True)
            frames = [scale_to(self.frames[int(i)], shape[0], shape[1], self.view.method) for i in rows]
            differ = [self.frames[int(i)].shape != shape for i in rows]
            if any(differ):
                self.mixed += int(np.isin(self.clips[self.next : end], rows[differ]).any(axis=1).sum())
            self.sender.send(self.view.lane, rows, frames, inverse.reshape(end - self.next, -1))
            self.next = end
        keep = self.oldest[self.next] if self.unsent else index + 1
        self.frames = {i: f for i, f in self.frames.items() if i >= keep}

    def note(self) -> str:
        """Return what is to be said of clips whose frames differ in size, or of a person who never moves."""
        if self.window is not None:
            return still_note(self.window.moving)
        return (
            f"{self.mixed} clips with frames of different sizes: stretched to the size of the first"
            if self.mixed
            else ""
        )

    def _capacity(self, frame_size: int) -> int:
        return int(self.sender.slots.shape[1] // frame_size)

    def _shape(self, clip: int) -> tuple[int, ...]:
        """Return the shape that the frames of a clip are sent in."""
        return self.frames[int(self.clips[clip, 0])].shape

    def _fitting(self, ready: int, shape: tuple[int, ...]) -> int:
        """Return the end of the longest run of clips from `next` on, all of this shape, whose frames fit into one slot."""
        capacity = self._capacity(math.prod(shape))
        end = self.next + 1
        seen = set(self.clips[self.next].tolist())
        while (
            end < ready and self._shape(end) == shape and len(seen := seen | set(self.clips[end].tolist())) <= capacity
        ):
            end += 1
        return end


def main(socket_fd: int, memory_fd: int, num_slots: int) -> None:
    """Serve decode tasks until the parent closes the connection."""
    connection = Connection(socket_fd)
    sender = _Sender(connection, mmap.mmap(memory_fd, 0), num_slots)
    serve(connection, lambda task: _decode(task, sender), sender.receive)


class DecodeWorker(Worker[DecodeTask, Message]):
    """A worker whose chunks of frames lie in `num_slots` slots of shared memory; `release` a slot when it has been read."""

    def __init__(self, slot_bytes: int, num_slots: int = 3) -> None:
        try:
            if hasattr(os, "memfd_create"):
                self._memory_fd = os.memfd_create("har_frames")
            else:
                with tempfile.TemporaryFile() as file:
                    self._memory_fd = os.dup(file.fileno())
            os.ftruncate(self._memory_fd, slot_bytes * num_slots)
            memory = mmap.mmap(self._memory_fd, 0)
        except OSError as error:
            raise ExtractionError(f"no shared memory for frames: {error}") from error
        self.slots = np.frombuffer(memory, np.uint8).reshape(num_slots, slot_bytes)
        try:
            super().__init__("har_pipeline.video.clip_worker", self._memory_fd, num_slots, fds=(self._memory_fd,))
        except ExtractionError:
            os.close(self._memory_fd)
            raise

    def release(self, slot: int) -> None:
        """Let the worker fill the slot again."""
        with contextlib.suppress(OSError):  # the next `receive` reports the death
            self.connection.send(slot)

    def frames(self, chunk: Chunk) -> np.ndarray:
        """Return the chunk's frames (n, H, W, 3) uint8, a view that is valid until `release`."""
        return self.slots[chunk.slot, : int(np.prod(chunk.shape))].reshape(chunk.shape)

    def close(self) -> None:
        """End the process."""
        super().close()
        os.close(self._memory_fd)
