"""The extraction engine: decode workers -> batches that mix clips of several videos -> device -> writer, in bounded memory.

Several lanes (an extractor and the clips that it wants) share one pass over each file. Batches have one constant shape (the
last is padded), so a feature does not depend on what else was in its batch. A video is committed to a lane's feature set
when its last clip is written; whatever was interrupted is simply done again.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import numpy as np
import torch

from har_pipeline.core.files import file_sha256
from har_pipeline.features.lanes import Attempt, Lane
from har_pipeline.features.source_files import describe_file
from har_pipeline.features.store import FeatureStore, VideoSource
from har_pipeline.video.clip_worker import Chunk, DecodeTask, DecodeWorker, Done, Failed, Message, Plan
from har_pipeline.video.flow.compute import compute_flow
from har_pipeline.video.preprocess import Crop

MAX_PENDING_WRITES = 16


@dataclass(slots=True)
class Progress:
    """Where a job stands. Seconds are the main process's: waiting for decoders, flow, the net, waiting for the writer.

    Videos count once per feature set that is made.
    """

    total: int
    already: int = 0
    done: int = 0
    failed: int = 0
    clips: int = 0
    decode_s: float = 0.0
    flow_s: float = 0.0
    device_s: float = 0.0
    write_s: float = 0.0

    @property
    def stages(self) -> dict[str, float]:
        """Seconds that the main process spent on each stage."""
        return {"decode": self.decode_s, "flow": self.flow_s, "device": self.device_s, "write": self.write_s}

    @property
    def bound_by(self) -> str:
        """The stage that the main process spends most of its time on."""
        return max(self.stages, key=lambda stage: self.stages[stage])


class Engine:
    """The state of one job; `run` is the loop."""

    def __init__(self, store: FeatureStore, lanes: Sequence[Lane], workers: int | None, progress: Progress) -> None:
        self.store, self.lanes, self.progress = store, lanes, progress
        self.num_workers = workers
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="har-writer")
        self.writes: deque[Future[None]] = deque()
        self.attempts: dict[tuple[int, str], Attempt] = {}

    def run(self, tasks: Sequence[DecodeTask], on_progress: Callable[[Progress], None]) -> None:
        """Make the features of all tasks. Raises: StoreError if the disk fails; a bad video only fails itself."""
        waiting = deque(tasks)
        num_workers = min(self.num_workers or self._usual_workers(), len(tasks))
        slot_bytes = max(lane.slot_bytes for lane in self.lanes)
        workers: dict[Connection, DecodeWorker] = {}
        try:
            while waiting or workers:
                while waiting and len(workers) < num_workers:
                    worker = DecodeWorker(slot_bytes)
                    workers[worker.connection] = worker
                    worker.start(waiting.popleft())
                started = time.perf_counter()
                ready = wait(list(workers))
                self.progress.decode_s += time.perf_counter() - started
                for connection in ready:
                    assert isinstance(connection, Connection)
                    worker = workers[connection]
                    message = worker.receive()
                    self._handle(worker, message)
                    if isinstance(message, Done | Failed):
                        if waiting and worker.alive:
                            worker.start(waiting.popleft())
                        else:
                            worker.close()
                            del workers[connection]
                on_progress(self.progress)
            for lane in self.lanes:
                self._compute(lane)
                self._collect(lane)
            self._finish_writes(0)
            on_progress(self.progress)
        finally:
            for worker in workers.values():
                worker.close()
            self.writer.shutdown(wait=True, cancel_futures=True)
            self._abort_all()

    def _usual_workers(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        cuda = any(lane.extractor.device.type == "cuda" for lane in self.lanes)
        return max(1, cores - 1 if cuda else cores // 4)

    def _handle(self, worker: DecodeWorker, message: Message) -> None:
        assert worker.task is not None
        video_id = worker.task.video_id
        match message:
            case Plan():
                self._cancel(message.lane, video_id)
                lane = self.lanes[message.lane]
                writer = self.writer.submit(self.store.writer, lane.feature_set, video_id, len(message.clip_bounds))
                none = np.zeros((0, lane.spec.feature_dim), np.float32)
                content = "" if lane.cache is None else file_sha256(worker.task.path)
                file = describe_file(worker.task.path, worker.task.start_frame, worker.task.end_frame)
                planned = Attempt(video_id, message, writer, none, content=content, file=file)
                self.attempts[message.lane, video_id] = planned
            case Chunk():
                attempt = self.attempts.get((message.lane, video_id))
                if attempt is not None:
                    self._add(self.lanes[message.lane], attempt, worker.frames(message), message)
                worker.release(message.slot)
            case Done():
                for view in worker.task.views:
                    attempt = self.attempts.get((view.lane, video_id))
                    if attempt is not None:
                        attempt.done = message
                        self._commit_if_complete(self.lanes[view.lane], attempt)
            case Failed():
                file = describe_file(worker.task.path, worker.task.start_frame, worker.task.end_frame)
                for view in worker.task.views:
                    self._fail(self.lanes[view.lane], video_id, message.reason, file)

    def _add(self, lane: Lane, attempt: Attempt, frames: np.ndarray, chunk: Chunk) -> None:
        """Put the crops of a chunk's clips into batches."""
        source: np.ndarray | torch.Tensor = frames
        clips = chunk.clips
        if lane.flow is not None:
            source, clips = self._flows(lane, attempt, frames, chunk)
        side = lane.resize.size
        crops = lane.crop_views(source)
        for clip in clips:
            for crop in crops if lane.whole else [Crop(0, 0)]:
                if attempt.cancelled:
                    return
                batch = lane.batches[0]
                part = source[clip, crop.top : crop.top + side, crop.left : crop.left + side]
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
        started = time.perf_counter()
        first, second = np.split(chunk.clips, 2, axis=1)
        pairs, rows = np.unique(np.stack([first.ravel(), second.ravel()], axis=1), axis=0, return_inverse=True)
        keys = [(int(chunk.numbers[a]), int(chunk.numbers[b])) for a, b in pairs]
        known = {key: attempt.flows[key] for key in keys if key in attempt.flows}
        size = (chunk.shape[1], chunk.shape[2])
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
        self.progress.flow_s += time.perf_counter() - started
        return torch.stack([known[key] for key in keys]), rows.reshape(first.shape)

    def _compute(self, lane: Lane) -> None:
        """Start the net on the batch being filled, and take in the rows of the one before."""
        batch = lane.batches[0]
        if not batch.owners:
            return
        started = time.perf_counter()
        features = lane.extractor(batch.clips)
        self.progress.device_s += time.perf_counter() - started
        self._collect(lane)
        lane.in_flight = (batch, features)
        lane.batches.rotate(-1)

    def _collect(self, lane: Lane) -> None:
        """Give the finished rows to their videos."""
        if lane.in_flight is None:
            return
        batch, features = lane.in_flight
        lane.in_flight = None
        started = time.perf_counter()
        rows = features.cpu().numpy()
        self.progress.device_s += time.perf_counter() - started
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
            finite = np.isfinite(rows).all()
            reason = (
                f"a feature of {np.abs(rows).max():.4g} overflows float16: use --dtype float32"
                if finite
                else ("the net gave a value that is not finite: try --precision fp32")
            )
            self._fail(lane, attempt.video_id, reason, attempt.file)
            return
        attempt.rows += len(rows)
        attempt.last_row = stored[-1:]
        self._submit(lambda: attempt.writer.result().append(stored))
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
            padded=plan.padded,
            decode_notes=done.notes,
            provenance={**lane.provenance, "decoder": done.decoder},
            file=attempt.file,
        )

        def commit() -> None:
            writer = attempt.writer.result()
            writer.append(repeated)
            writer.commit(source)
            self.store.clear_failure(lane.feature_set, attempt.video_id)

        self._submit(commit)
        del self.attempts[plan.lane, attempt.video_id]
        self.progress.done += 1
        self.progress.clips += len(plan.clip_bounds)
        lane.done += 1
        lane.padded += plan.padded
        lane.clips_done += len(plan.clip_bounds)
        if done.notes:
            lane.notes[attempt.video_id] = done.notes

    def _submit(self, work: Callable[[], None]) -> None:
        self.writes.append(self.writer.submit(work))
        self._finish_writes(MAX_PENDING_WRITES)

    def _finish_writes(self, pending: int) -> None:
        """Wait until at most `pending` writes are outstanding; an error of the disk ends the job."""
        started = time.perf_counter()
        while self.writes and (len(self.writes) > pending or self.writes[0].done()):
            self.writes.popleft().result()
        self.progress.write_s += time.perf_counter() - started

    def _cancel(self, lane: int, video_id: str) -> None:
        attempt = self.attempts.pop((lane, video_id), None)
        if attempt is not None:
            attempt.cancelled = True
            self._submit(lambda: attempt.writer.result().abort())

    def _fail(self, lane: Lane, video_id: str, reason: str, file: Mapping[str, str]) -> None:
        self._cancel(self.lanes.index(lane), video_id)
        if video_id not in lane.failed:
            lane.failed[video_id] = reason
            self.progress.failed += 1
            self._submit(lambda: self.store.record_failure(lane.feature_set, video_id, reason, file))

    def _abort_all(self) -> None:
        for attempt in self.attempts.values():
            if attempt.writer.done() and not attempt.writer.cancelled() and attempt.writer.exception() is None:
                attempt.writer.result().abort()


def _mirrored(clip: torch.Tensor) -> torch.Tensor:
    """Return a clip (T, S, S, C) with left and right exchanged; flow (two channels) to the right becomes flow to the left."""
    flipped = clip.flip(2)
    return flipped * torch.tensor([-1.0, 1.0], device=clip.device) if clip.shape[-1] == 2 else flipped
