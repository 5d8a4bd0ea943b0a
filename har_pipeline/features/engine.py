"""The extraction engine: decode workers -> batches that mix clips of several videos -> device -> writer, in bounded memory.

Several lanes (an extractor and the clips that it wants) share one pass over each file. Batches have one constant shape (the
last is padded), so a feature does not depend on what else was in its batch. A video is committed to a lane's feature set
when its last clip is written; what was interrupted is done again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from har_pipeline.core.processes import num_cores
from har_pipeline.core.records import VideoSource
from har_pipeline.features.job import file_of
from har_pipeline.features.lanes import Attempt, Lane
from har_pipeline.features.seen import seen_of_video
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.clip_worker import Chunk, ClipPlan, DecodeTask, DecodeWorker, Done, Message, OfRow
from har_pipeline.video.flow.compute import compute_flow
from har_pipeline.video.preprocess import Crop, crop_places
from har_pipeline.video.process import Failed, run_tasks

MAX_PENDING_WRITES = 16


@dataclass(slots=True)
class Progress:
    """Where a job stands. Videos count once per feature set."""

    total: int
    already: int = 0
    done: int = 0
    failed: int = 0
    # Clips whose features are there, also of videos that are not done.
    clips: int = 0
    # Seconds that the main process spent waiting for decoders, on flow, on the net, and waiting for the writer.
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "flow", "device", "write"), 0.0))

    @property
    def bound_by(self) -> str:
        """The stage that the main process spends most of its time on."""
        return max(self.stages, key=lambda stage: self.stages[stage])


class Engine:
    """The state of one job; `run` is the loop."""

    def __init__(self, store: FeatureStore, lanes: Sequence[Lane], progress: Progress) -> None:
        self.store, self.lanes, self.progress = store, lanes, progress
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="har-writer")
        self.writes: deque[Future[None]] = deque()
        self.attempts: dict[tuple[int, str], Attempt] = {}
        self.ended_rows: set[str] = set()  # of tasks with several rows, those whose last message has come

    def run(
        self, tasks: Sequence[DecodeTask], num_workers: int | None, on_progress: Callable[[Progress], None]
    ) -> None:
        """Extract the features of all tasks; a bad video fails only itself. num_workers: None = from the CPU count.

        Raises: StoreError if the disk fails; ExtractionError if decode workers cannot be started.
        """
        cuda = any(lane.extractor.device.type == "cuda" for lane in self.lanes)
        usual = max(1, num_cores() - 1 if cuda else num_cores() // 4)
        slot_bytes = max(lane.slot_bytes for lane in self.lanes)
        try:
            with closing(run_tasks(lambda: DecodeWorker(slot_bytes), num_workers or usual, tasks)) as messages:
                while True:
                    with self._timed("decode"):
                        found = next(messages, None)
                    if found is None:
                        break
                    self._handle(*found)
                    on_progress(self.progress)
            for lane in self.lanes:
                self._compute(lane)
                self._collect(lane)
            self._finish_writes(0)
            on_progress(self.progress)
        finally:
            self.writer.shutdown(wait=True, cancel_futures=True)
            self._abort_all()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.progress.stages[stage] += time.perf_counter() - started

    def _handle(self, worker: DecodeWorker, task: DecodeTask, message: Message) -> None:
        video_id = task.video_id
        match message:
            case OfRow():
                row = message.row
                if isinstance(message.message, Done | Failed):
                    self.ended_rows.add(row.video_id)
                of_row = replace(
                    task, video_id=row.video_id, start_frame=row.start_frame, end_frame=row.end_frame, rows=()
                )
                self._handle(worker, of_row, message.message)
            case ClipPlan():
                self._cancel(message.lane, video_id)
                lane = self.lanes[message.lane]
                self.attempts[message.lane, video_id] = Attempt(
                    video_id,
                    message,
                    self.writer.submit(self.store.writer, lane.spec.name, video_id, len(message.clip_bounds)),
                    np.zeros((0, lane.spec.feature_dim), np.float32),
                    file=file_of(task),
                    content=message.content,
                )
            case Chunk():
                attempt = self.attempts.get((message.lane, video_id))
                if attempt is not None:
                    self._add(self.lanes[message.lane], attempt, worker.frames(message), message)
                worker.release(message.slot)
            case Done() if task.rows:
                if message.notes:
                    for lane in self.lanes:
                        lane.summary.notes[task.video_id] = message.notes
            case Failed() if task.rows:
                for row in task.rows:
                    for view in task.views if row.video_id not in self.ended_rows else ():
                        self._fail(self.lanes[view.lane], row.video_id, message.reason, file_of(task))
            case Done():
                for view in task.views:
                    attempt = self.attempts.get((view.lane, video_id))
                    if attempt is not None:
                        attempt.done = message
                        self._commit_if_complete(self.lanes[view.lane], attempt)
            case Failed():
                for view in task.views:
                    self._fail(self.lanes[view.lane], video_id, message.reason, file_of(task))

    def _add(self, lane: Lane, attempt: Attempt, frames: np.ndarray, chunk: Chunk) -> None:
        """Put the crops of a chunk's clips into batches."""
        source: np.ndarray | torch.Tensor = frames
        clips = chunk.clips
        if lane.flow is not None:
            with self._timed("flow"):
                source, clips = self._flows(lane, attempt, frames, chunk)
        height, width = lane.resize.shape
        crops = crop_places(lane.resize, *source.shape[1:3]) if lane.whole else [Crop(0, 0)]
        for clip in clips:
            for crop in crops:
                if attempt.cancelled:
                    return
                batch = lane.batches[0]
                part = source[clip, crop.top : crop.top + height, crop.left : crop.left + width]
                rows = part if isinstance(part, torch.Tensor) else torch.from_numpy(part)
                if crop.mirrored:
                    rows = _mirrored(rows)
                batch.clips[len(batch.owners)].copy_(rows)
                batch.owners.append(attempt)
                if batch.full:
                    self._compute(lane)

    def _flows(self, lane: Lane, attempt: Attempt, frames: np.ndarray, chunk: Chunk) -> tuple[torch.Tensor, np.ndarray]:
        """Return the chunk's flow fields (P, H, W, 2) on the device, and each clip's (k, T) row numbers into them."""
        assert lane.flow is not None
        first, second = np.split(chunk.clips, 2, axis=1)
        pairs, rows = np.unique(np.stack([first.ravel(), second.ravel()], axis=1), axis=0, return_inverse=True)
        keys = [(int(chunk.numbers[a]), int(chunk.numbers[b])) for a, b in pairs]
        size = (chunk.shape[1], chunk.shape[2])
        # Where a file's frames change their size, the last chunk may have had another.
        known = {key: flow for key in keys if (flow := attempt.flows.get(key)) is not None and flow.shape[:2] == size}
        if lane.cache is not None:
            for key in keys:
                if key not in known and (stored := lane.cache.get(attempt.content, key, lane.flow, size)) is not None:
                    known[key] = torch.from_numpy(stored).to(lane.extractor.device)
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            fields = compute_flow(frames[pairs[new, 0]], frames[pairs[new, 1]], lane.flow, lane.extractor.device)
            for i, flow in zip(new, fields, strict=True):
                known[keys[i]] = flow
                if lane.cache is not None:
                    lane.cache.put(attempt.content, keys[i], lane.flow, size, flow.cpu().numpy())
        attempt.flows = known
        return torch.stack([known[key] for key in keys]), rows.reshape(first.shape)

    def _compute(self, lane: Lane) -> None:
        """Start the net on the batch being filled, and take in the rows of the one before."""
        batch = lane.batches[0]
        if not batch.owners:
            return
        with self._timed("device"):
            features = lane.extractor(batch.clips)
        self._collect(lane)
        lane.in_flight = (batch, features)
        lane.batches.rotate(-1)

    def _collect(self, lane: Lane) -> None:
        """Give the finished rows to their videos."""
        if lane.in_flight is None:
            return
        batch, features = lane.in_flight
        lane.in_flight = None
        with self._timed("device"):
            rows = features.cpu().numpy()
        start = 0
        while start < len(batch.owners):
            attempt, end = batch.owners[start], start
            while end < len(batch.owners) and batch.owners[end] is attempt:
                end += 1
            self._take_rows(lane, attempt, rows[start:end])
            start = end
        batch.owners.clear()

    def _take_rows(self, lane: Lane, attempt: Attempt, rows: np.ndarray) -> None:
        if attempt.cancelled:
            return
        if lane.crops > 1:  # the mean over a clip's crops, Lakhal 2018, eq. 5
            rows = np.concatenate([attempt.crop_rows, rows])
            whole = len(rows) // lane.crops * lane.crops
            attempt.crop_rows = rows[whole:]
            rows = rows[:whole].reshape(-1, lane.crops, rows.shape[1]).mean(axis=1)
            if not len(rows):
                return
        with np.errstate(over="ignore"):
            stored = rows.astype(lane.spec.dtype)
        if not np.isfinite(stored).all():
            reason = "the net gave a value that is not finite: try --precision fp32"
            if np.isfinite(rows).all():
                reason = f"a feature of {np.abs(rows).max():.4g} overflows float16: use --dtype float32"
            self._fail(lane, attempt.video_id, reason, attempt.file)
            return
        attempt.rows += len(rows)
        self.progress.clips += len(rows)
        attempt.last_row = stored[-1:]
        self._submit(lambda: attempt.writer.result().append(_rows(stored)))
        self._commit_if_complete(lane, attempt)

    def _commit_if_complete(self, lane: Lane, attempt: Attempt) -> None:
        plan, done = attempt.plan, attempt.done
        if done is None or attempt.rows != plan.num_unique or attempt.last_row is None:
            return
        repeated = np.repeat(attempt.last_row, len(plan.clip_bounds) - plan.num_unique, axis=0)
        source = VideoSource(
            clip_starts=plan.clip_bounds[:, 0],
            clip_ends=plan.clip_bounds[:, 1],
            num_frames=plan.num_frames,
            fps=plan.fps,
            clip_times_s=plan.clip_times_s,
            padded=plan.padded,
            decode_notes=done.notes,
            provenance={**lane.provenance, "decoder": done.decoder},
            file=attempt.file,
        )

        def commit() -> None:
            writer = attempt.writer.result()
            writer.append(_rows(repeated))
            writer.commit(source)
            self.store.clear_failure(lane.spec.name, attempt.video_id)

        self._submit(commit)
        del self.attempts[plan.lane, attempt.video_id]
        self.progress.done += 1
        lane.summary.done += 1
        lane.summary.padded += plan.padded
        lane.summary.clips += len(plan.clip_bounds)
        lane.summary.seen = lane.summary.seen.with_video(*seen_of_video(lane.spec, plan.num_frames, plan.fps))
        if done.notes:
            lane.summary.notes[attempt.video_id] = done.notes

    def _submit(self, work: Callable[[], None]) -> None:
        self.writes.append(self.writer.submit(work))
        self._finish_writes(MAX_PENDING_WRITES)

    def _finish_writes(self, pending: int) -> None:
        """Wait until at most `pending` writes are outstanding; an error of the disk ends the job."""
        with self._timed("write"):
            while self.writes and (len(self.writes) > pending or self.writes[0].done()):
                self.writes.popleft().result()

    def _cancel(self, lane: int, video_id: str) -> None:
        attempt = self.attempts.pop((lane, video_id), None)
        if attempt is not None:
            attempt.cancelled = True
            self._submit(lambda: attempt.writer.result().abort())

    def _fail(self, lane: Lane, video_id: str, reason: str, file: Mapping[str, str]) -> None:
        self._cancel(self.lanes.index(lane), video_id)
        if video_id not in lane.summary.failed:
            lane.summary.failed[video_id] = reason
            self.progress.failed += 1
            self._submit(lambda: self.store.record_failure(lane.spec.name, video_id, reason, file))

    def _abort_all(self) -> None:
        for attempt in self.attempts.values():
            if attempt.writer.done() and not attempt.writer.cancelled() and attempt.writer.exception() is None:
                attempt.writer.result().abort()


def _rows(features: np.ndarray) -> np.ndarray:
    """Return clips' features (n, D) as they are, and tokens (n, M, D) as rows (n * M, D)."""
    return features.reshape(-1, features.shape[-1])


def _mirrored(clip: torch.Tensor) -> torch.Tensor:
    """Return a clip (T, S, S, C) with left and right exchanged; flow (two channels) to the right becomes flow to the left."""
    flipped = clip.flip(2)
    return flipped * torch.tensor([-1.0, 1.0], device=clip.device) if clip.shape[-1] == 2 else flipped
