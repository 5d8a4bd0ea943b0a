"""The extraction engine: decode workers -> batches that mix clips of several videos -> device -> writer, in bounded memory.

Several lanes (an extractor and the clips that it wants) share one pass over each file. Batches have one constant shape (the
last is padded), so a feature does not depend on what else was in its batch. A video is committed to a lane's feature set
when its last clip is written; what was interrupted is done again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import torch

from har_pipeline.core.records import VideoSource
from har_pipeline.features.job import Noted, Outcome, Report, Spent, file_of
from har_pipeline.features.lanes import Attempt, Flight, Lane
from har_pipeline.features.seen import seen_of_video
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.clip_worker import Chunk, ClipPlan, DecodeTask, DecodeWorker, Done, Message, OfRow
from har_pipeline.video.flow.compute import compute_flow
from har_pipeline.video.preprocess import Crop, crop_places
from har_pipeline.video.process import Failed, run_tasks

MAX_PENDING_WRITES = 16
NUM_WRITERS = 4


class Engine:
    """The state of one pass over videos; `run` is the loop. report, spend: as of `Work.run`."""

    def __init__(
        self, store: FeatureStore, lanes: Sequence[Lane], report: Report, spend: Callable[[Spent], None]
    ) -> None:
        self.store, self.lanes, self.report, self.spend = store, lanes, report, spend
        self.spent = Spent()
        # A video's rows are written in their order by one of these. One alone cannot keep up with a GPU: a frame of VGG16's
        # pool5 took it 0.7 ms of CPU time in a trial, and an H200's net 0.2 ms (docs/results.md).
        self.writers = [ThreadPoolExecutor(1, thread_name_prefix="har-writer") for _ in range(NUM_WRITERS)]
        self.next_writers = itertools.cycle(self.writers)
        self.writes: deque[tuple[Future[None], Outcome | None]] = deque()
        self.attempts: dict[tuple[int, str], Attempt] = {}
        self.failed: set[tuple[int, str]] = set()
        self.ended_rows: set[str] = set()  # of tasks with several rows, those whose last message has come

    def run(self, tasks: Iterable[DecodeTask], num_workers: int) -> None:
        """Extract the features of all tasks, taken one by one; a bad video fails only itself. num_workers: that decode.

        Raises: StoreError if the disk fails; ExtractionError if decode workers cannot be started; WeightsError if the
        first features of a net are not finite, and are not whatever the video.
        """
        slot_bytes = max(lane.slot_bytes for lane in self.lanes)
        try:
            with closing(run_tasks(lambda: DecodeWorker(slot_bytes), num_workers, tasks)) as messages:
                while True:
                    with self._timed("decode"):
                        found = next(messages, None)
                    if found is None:
                        break
                    self._handle(*found)
                    self._tell()
            for lane in self.lanes:
                self._compute(lane)
                self._collect(lane)
            self._finish_writes(0)
            self._tell()
        finally:
            for thread in self.writers:
                thread.shutdown(wait=True, cancel_futures=True)
            self._abort_all()

    def _tell(self) -> None:
        """Say what was spent since the last time."""
        spent, self.spent = self.spent, Spent()
        self.spend(spent)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent.stages[stage] += time.perf_counter() - started

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
                lane, thread = self.lanes[message.lane], next(self.next_writers)
                self.attempts[message.lane, video_id] = Attempt(
                    video_id,
                    message,
                    thread,
                    thread.submit(self.store.writer, lane.spec.name, video_id, len(message.clip_bounds)),
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
                    self.report(Noted(task.video_id, message.notes))
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
        crops = crop_places(lane.resize, *source.shape[1:3]) if lane.whole else [Crop(0, 0)]
        for clip in clips:
            for crop in crops:
                if attempt.cancelled:
                    return
                lane.batches[0].add(source, clip, crop, attempt)
                if lane.batches[0].full:
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
            started = Flight(batch, features, torch.float32 if lane.crops > 1 else lane.dtype)
        self._collect(lane)
        lane.in_flight = started
        lane.batches.rotate(-1)

    def _collect(self, lane: Lane) -> None:
        """Give the finished rows to their videos."""
        flight, lane.in_flight = lane.in_flight, None
        if flight is None:
            return
        with self._timed("device"):
            rows, finite = flight.rows()
        owners, start = flight.batch.owners, 0
        while start < len(owners):
            attempt, end = owners[start], start
            while end < len(owners) and owners[end] is attempt:
                end += 1
            self._take_rows(lane, attempt, rows[start:end], flight.features[start:end], finite)
            start = end
        owners.clear()

    def _take_rows(self, lane: Lane, attempt: Attempt, rows: np.ndarray, exact: torch.Tensor, finite: bool) -> None:
        """Give rows to a video. rows, finite: as `Flight` gives them; exact: the same in float32."""
        if attempt.cancelled:
            return
        if lane.crops > 1:  # the mean over a clip's crops, Lakhal 2018, eq. 5
            rows = np.concatenate([attempt.crop_rows, rows])
            whole = len(rows) // lane.crops * lane.crops
            attempt.crop_rows = rows[whole:]
            if not whole:
                return
            exact = torch.from_numpy(rows[:whole].reshape(-1, lane.crops, rows.shape[1]).mean(axis=1))
            rows, finite = exact.to(lane.dtype).numpy(), False
        if not finite and not np.isfinite(rows).all():
            largest = float(exact.abs().max())
            if not lane.sound and not math.isfinite(largest):
                lane.extractor.check_finite()  # else each video would fail with the same reason
            cause = "its weights may be damaged" if lane.spec.precision == "fp32" else "try --precision fp32"
            reason = f"the net gave a value that is not finite: {cause}"
            if math.isfinite(largest):
                reason = f"a feature of {largest:.4g} overflows float16: use --dtype float32"
            self._fail(lane, attempt.video_id, reason, attempt.file)
            return
        lane.sound = True
        attempt.rows += len(rows)
        self.spent.clips += len(rows)
        attempt.last_row = rows[-1:]
        self._submit(attempt.thread, lambda: attempt.writer.result().append(_rows(rows)))
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

        del self.attempts[plan.lane, attempt.video_id]
        outcome = Outcome(
            video_id=attempt.video_id,
            lane=plan.lane,
            notes=done.notes,
            rows=len(plan.clip_bounds),
            frames=plan.num_frames,
            padded=plan.padded,
            seen=seen_of_video(lane.spec, plan.num_frames, plan.fps),
        )
        self._submit(attempt.thread, commit, outcome)

    def _submit(self, thread: Executor, work: Callable[[], None], outcome: Outcome | None = None) -> None:
        """Let a writing thread do something, and report the outcome once it is done."""
        self.writes.append((thread.submit(work), outcome))
        self._finish_writes(MAX_PENDING_WRITES)

    def _finish_writes(self, pending: int) -> None:
        """Wait until at most `pending` writes are outstanding; an error of the disk ends the job."""
        with self._timed("write"):
            while self.writes and (len(self.writes) > pending or self.writes[0][0].done()):
                written, outcome = self.writes.popleft()
                written.result()
                if outcome is not None:
                    self.report(outcome)

    def _cancel(self, lane: int, video_id: str) -> None:
        attempt = self.attempts.pop((lane, video_id), None)
        if attempt is not None:
            attempt.cancelled = True
            self._submit(attempt.thread, lambda: attempt.writer.result().abort())

    def _fail(self, lane: Lane, video_id: str, reason: str, file: Mapping[str, str]) -> None:
        number = self.lanes.index(lane)
        self._cancel(number, video_id)
        if (number, video_id) not in self.failed:
            self.failed.add((number, video_id))
            self._submit(
                next(self.next_writers),
                lambda: self.store.record_failure(lane.spec.name, video_id, reason, file),
                Outcome(video_id=video_id, lane=number, reason=reason),
            )

    def _abort_all(self) -> None:
        for attempt in self.attempts.values():
            if attempt.writer.done() and not attempt.writer.cancelled() and attempt.writer.exception() is None:
                attempt.writer.result().abort()


def _rows(features: np.ndarray) -> np.ndarray:
    """Return clips' features (n, D) as they are, and tokens (n, M, D) as rows (n * M, D)."""
    return features.reshape(-1, features.shape[-1])
