"""Stage one: decode workers -> batches that mix clips of several videos -> device -> writer, in bounded memory.

Batches have one constant shape (the last is padded), so a feature does not depend on what else was in its batch.
A video is committed to the store when its last clip is written; whatever was interrupted is simply done again.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection, wait

import numpy as np
import torch

from har_pipeline.errors import ExtractionError
from har_pipeline.extractors.base import Extractor
from har_pipeline.records import ClipSpec, FeatureSpec, VideoRecord
from har_pipeline.store import FeatureStore, FeatureWriter, VideoSource
from har_pipeline.video.decode import Decoder
from har_pipeline.video.preprocess import parse_resize
from har_pipeline.video.worker import Chunk, DecodeTask, DecodeWorker, Done, Failed, Message, Plan

FRAMES_PER_SLOT = 32
MAX_PENDING_WRITES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """How to extract. What changes the numbers goes into the feature spec; the rest only changes the speed.

    clips, fps, resize, dtype: as in `FeatureSpec` (resize None = the net's own); workers, batch_size: None = by device;
    decoder: auto, decord or pyav; time_limit_s: decoding time allowed per video; shard: (k, n) = the k-th of n parts, k
    from 1; retry_failed: try videos again that failed in an earlier run.
    """

    clips: ClipSpec = field(default_factory=ClipSpec)
    fps: float | None = None
    resize: str | None = None
    dtype: str = "float16"
    workers: int | None = None
    batch_size: int | None = None
    decoder: Decoder = "auto"
    time_limit_s: float = 600.0
    shard: tuple[int, int] = (1, 1)
    retry_failed: bool = False

    def __post_init__(self) -> None:
        k, n = self.shard
        if not 1 <= k <= n:
            raise ExtractionError(f"shard {k}/{n}: give k/n with 1 <= k <= n")
        if self.dtype not in ("float16", "float32"):
            raise ExtractionError(f"unknown dtype {self.dtype!r}: use float16 or float32")
        if self.fps is not None and self.fps <= 0:
            raise ExtractionError(f"fps must be above 0, not {self.fps:g}")
        for name in ("workers", "batch_size", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ExtractionError(f"{name} must be above 0, not {value}")


@dataclass(slots=True)
class Progress:
    """Where a job stands. Seconds are the main process's: waiting for decoders, computing, waiting for the writer."""

    total: int
    already: int = 0
    done: int = 0
    failed: int = 0
    clips: int = 0
    decode_s: float = 0.0
    device_s: float = 0.0
    write_s: float = 0.0

    @property
    def bound_by(self) -> str:
        """The stage that the main process spends most of its time on."""
        stages = {"decode": self.decode_s, "device": self.device_s, "write": self.write_s}
        return max(stages, key=lambda stage: stages[stage])


@dataclass(frozen=True, slots=True)
class ExtractSummary:
    """What a job did. failed, failed_before: video_id -> reason; notes: video_id -> what was odd about a done video."""

    feature_set: str
    total: int
    already: int
    done: int
    clips: int
    failed: dict[str, str]
    failed_before: dict[str, str]
    notes: dict[str, tuple[str, ...]]
    seconds: float
    bound_by: str
    device: str
    precision: str
    weights: str


def feature_spec(extractor: Extractor, options: ExtractOptions) -> FeatureSpec:
    """Return the spec of the features that this extractor makes with these options.

    Raises: ExtractionError if the resize mode does not give the net's input size.
    """
    resize = options.resize or extractor.input.resize
    try:
        size = parse_resize(resize).size
    except ValueError as error:
        raise ExtractionError(str(error)) from error
    if size != extractor.net.input_size:
        raise ExtractionError(
            f"{extractor.net.name} wants {extractor.net.input_size} px, resize {resize!r} gives {size}"
        )
    return FeatureSpec(
        extractor=extractor.net.name,
        weights=extractor.weights,
        layer=extractor.layer,
        feature_dim=extractor.feature_dim,
        clips=options.clips,
        fps=options.fps,
        resize=resize,
        preprocess=extractor.preprocess.describe(),
        precision=extractor.precision,
        dtype=options.dtype,
    )


@dataclass(slots=True, eq=False)
class _Attempt:
    """One try at one video: rows arrive in order; it is over when all are written, or it is cancelled."""

    video_id: str
    plan: Plan
    writer: Future[FeatureWriter]
    rows: int = 0
    last_row: np.ndarray | None = None
    done: Done | None = None
    cancelled: bool = False


class _Batch:
    """One batch of constant shape being filled: `clips` (B, T, H, W, 3) uint8 and the attempt that owns each row."""

    def __init__(self, size: int, clip_len: int, frame_shape: tuple[int, int, int], pinned: bool) -> None:
        self.clips = torch.zeros((size, clip_len, *frame_shape), dtype=torch.uint8, pin_memory=pinned)
        self.view = self.clips.numpy()
        self.owners: list[_Attempt] = []

    @property
    def full(self) -> bool:
        return len(self.owners) == len(self.clips)


class _Engine:
    """The state of one job; `run` is the loop."""

    def __init__(
        self, store: FeatureStore, extractor: Extractor, options: ExtractOptions, progress: Progress, spec: FeatureSpec
    ) -> None:
        self.store, self.extractor, self.options, self.progress = store, extractor, options, progress
        self.spec, self.feature_set = spec, spec.name
        size = extractor.net.input_size
        self.frame_shape = (size, size, 3)
        cuda = extractor.device.type == "cuda"
        batch_size = options.batch_size or (64 if cuda else 16)
        self.batches = deque(_Batch(batch_size, spec.clips.clip_len, self.frame_shape, cuda) for _ in range(2))
        # The device works on one batch while the next is filled; on a CPU the call below simply returns finished rows.
        self.in_flight: tuple[_Batch, torch.Tensor] | None = None
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="har-writer")
        self.writes: deque[Future[None]] = deque()
        self.attempts: dict[str, _Attempt] = {}
        self.failed: dict[str, str] = {}
        self.notes: dict[str, tuple[str, ...]] = {}
        self.provenance = _provenance(extractor)

    def run(self, tasks: Sequence[DecodeTask], on_progress: Callable[[Progress], None]) -> None:
        waiting = deque(tasks)
        cuda = self.extractor.device.type == "cuda"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        num_workers = min(self.options.workers or max(1, cores - 1 if cuda else cores // 4), len(tasks))
        workers: dict[Connection, DecodeWorker] = {}
        try:
            while waiting or workers:
                while waiting and len(workers) < num_workers:
                    worker = self._new_worker()
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
            self._compute()
            self._collect()
            self._finish_writes(0)
            on_progress(self.progress)
        finally:
            for worker in workers.values():
                worker.close()
            self.writer.shutdown(wait=True, cancel_futures=True)
            self._abort_all()

    def _new_worker(self) -> DecodeWorker:
        frames = max(FRAMES_PER_SLOT, self.spec.clips.clip_len)
        return DecodeWorker(int(np.prod(self.frame_shape)), frames)

    def _handle(self, worker: DecodeWorker, message: Message) -> None:
        assert worker.task is not None
        video_id = worker.task.video_id
        match message:
            case Plan():
                self._cancel(video_id)
                writer = self.writer.submit(self.store.writer, self.feature_set, video_id, len(message.clip_starts))
                self.attempts[video_id] = _Attempt(video_id, message, writer)
            case Chunk():
                self._add(self.attempts[video_id], worker.frames(message, self.frame_shape), message.clips)
                worker.release(message.slot)
            case Done():
                attempt = self.attempts.get(video_id)
                if attempt is not None:
                    attempt.done = message
                    self._commit_if_complete(attempt)
            case Failed():
                self._fail(video_id, message.reason)

    def _add(self, attempt: _Attempt, frames: np.ndarray, clips: np.ndarray) -> None:
        for clip in clips:
            if attempt.cancelled:
                return
            batch = self.batches[0]
            batch.view[len(batch.owners)] = frames[clip]
            batch.owners.append(attempt)
            if batch.full:
                self._compute()

    def _compute(self) -> None:
        """Start the net on the batch being filled, and take in the rows of the one before."""
        batch = self.batches[0]
        if not batch.owners:
            return
        started = time.perf_counter()
        features = self.extractor(batch.clips)
        self.progress.device_s += time.perf_counter() - started
        self._collect()
        self.in_flight = (batch, features)
        self.batches.rotate(-1)

    def _collect(self) -> None:
        """Give the finished rows to their videos."""
        if self.in_flight is None:
            return
        batch, features = self.in_flight
        self.in_flight = None
        started = time.perf_counter()
        rows = features.cpu().numpy()
        self.progress.device_s += time.perf_counter() - started
        start = 0
        while start < len(batch.owners):
            attempt, end = batch.owners[start], start
            while end < len(batch.owners) and batch.owners[end] is attempt:
                end += 1
            self._take_rows(attempt, rows[start:end])
            start = end
        batch.owners.clear()

    def _take_rows(self, attempt: _Attempt, rows: np.ndarray) -> None:
        if attempt.cancelled:
            return
        with np.errstate(over="ignore"):
            stored = rows.astype(self.spec.dtype)
        if not np.isfinite(stored).all():
            finite = np.isfinite(rows).all()
            reason = (
                f"a feature of {np.abs(rows).max():.4g} overflows float16: use --dtype float32"
                if finite
                else ("the net gave a value that is not finite: try --precision fp32")
            )
            self._fail(attempt.video_id, reason)
            return
        attempt.rows += len(rows)
        attempt.last_row = stored[-1:]
        self._submit(lambda: attempt.writer.result().append(stored))
        self._commit_if_complete(attempt)

    def _commit_if_complete(self, attempt: _Attempt) -> None:
        plan, done = attempt.plan, attempt.done
        if done is None or attempt.rows != plan.num_unique or attempt.last_row is None:
            return
        repeated = np.repeat(attempt.last_row, len(plan.clip_starts) - plan.num_unique, axis=0)
        source = VideoSource(
            clip_starts=plan.clip_starts,
            num_frames=plan.num_frames,
            fps=plan.fps,
            decode_notes=done.notes,
            provenance={**self.provenance, "decoder": done.decoder},
        )

        def commit() -> None:
            writer = attempt.writer.result()
            writer.append(repeated)
            writer.commit(source)
            self.store.clear_failure(self.feature_set, attempt.video_id)

        self._submit(commit)
        del self.attempts[attempt.video_id]
        self.progress.done += 1
        self.progress.clips += len(plan.clip_starts)
        if done.notes:
            self.notes[attempt.video_id] = done.notes

    def _submit(self, work: Callable[[], None]) -> None:
        self.writes.append(self.writer.submit(work))
        self._finish_writes(MAX_PENDING_WRITES)

    def _finish_writes(self, pending: int) -> None:
        """Wait until at most `pending` writes are outstanding; an error of the disk ends the job."""
        started = time.perf_counter()
        while self.writes and (len(self.writes) > pending or self.writes[0].done()):
            self.writes.popleft().result()
        self.progress.write_s += time.perf_counter() - started

    def _cancel(self, video_id: str) -> None:
        attempt = self.attempts.pop(video_id, None)
        if attempt is not None:
            attempt.cancelled = True
            self._submit(lambda: attempt.writer.result().abort())

    def _fail(self, video_id: str, reason: str) -> None:
        self._cancel(video_id)
        if video_id not in self.failed:
            self.failed[video_id] = reason
            self.progress.failed += 1
            self._submit(lambda: self.store.record_failure(self.feature_set, video_id, reason))

    def _abort_all(self) -> None:
        for attempt in self.attempts.values():
            if attempt.writer.done() and not attempt.writer.cancelled() and attempt.writer.exception() is None:
                attempt.writer.result().abort()


def _provenance(extractor: Extractor) -> dict[str, str]:
    packages = ("torch", "torchvision", "numpy", "av")
    device = torch.cuda.get_device_name(extractor.device) if extractor.device.type == "cuda" else platform.machine()
    return {
        "har_pipeline": version("har-pipeline"),
        "python": platform.python_version(),
        "device": f"{extractor.device.type} {device}",
        **{name: version(name) for name in packages},
    }


def keep_freed_memory() -> None:
    """Let glibc reuse the large blocks that a net frees at each layer instead of returning them to the system.

    Each return costs a page fault per 4 KiB at the next layer: a quarter of VGG16's time on a CPU.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: serve every request from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink it


def extract(
    records: Sequence[VideoRecord],
    store: FeatureStore,
    extractor: Extractor,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> ExtractSummary:
    """Write the features of all records that `store` lacks, and return what was done.

    A video that fails is recorded in the store and in the summary; the others go on.
    Raises: ExtractionError if the options do not fit the net; StoreError if the store cannot be written.
    """
    options = options or ExtractOptions()
    spec = feature_spec(extractor, options)
    feature_set = store.create_feature_set(spec)
    store.remove_debris()
    k, n = options.shard
    mine = sorted(records, key=lambda record: record.video_id)[k - 1 :: n]
    complete = set(store.video_ids(feature_set))
    missing = [record for record in mine if record.video_id not in complete]
    known = {} if options.retry_failed else store.failures(feature_set)
    failed_before = {r.video_id: known[r.video_id] for r in missing if r.video_id in known}
    progress = Progress(total=len(mine), already=len(mine) - len(missing), failed=len(failed_before))
    tasks = [_task(record, options, spec) for record in missing if record.video_id not in failed_before]
    started = time.perf_counter()
    if extractor.device.type == "cpu":
        keep_freed_memory()
    engine = _Engine(store, extractor, options, progress, spec)
    on_progress(progress)
    if tasks:
        engine.run(tasks, on_progress)
    return ExtractSummary(
        feature_set=feature_set,
        total=progress.total,
        already=progress.already,
        done=progress.done,
        clips=progress.clips,
        failed=engine.failed,
        failed_before=failed_before,
        notes=engine.notes,
        seconds=time.perf_counter() - started,
        bound_by=progress.bound_by if tasks else "nothing",
        device=str(extractor.device),
        precision=extractor.precision,
        weights=extractor.weights,
    )


def _task(record: VideoRecord, options: ExtractOptions, spec: FeatureSpec) -> DecodeTask:
    path = record.path or record.depth_path
    assert path is not None  # a VideoRecord has one of the two; a depth folder fails there with "is a folder"
    return DecodeTask(
        video_id=record.video_id,
        path=path,
        start_frame=record.start_frame,
        end_frame=record.end_frame,
        clips=options.clips,
        fps=options.fps,
        resize=spec.resize,
        decoder=options.decoder,
        time_limit_s=options.time_limit_s,
    )
