"""Raw frames as a feature set: the small uint8 frames that raw-video networks train on, prepared once and stored.

A video is one array (L, S * S * C): L frames of S x S px with C channels, 1 for depth, 3 for RGB. So the store's commits,
checksums, failure records and resumption hold for them, and no epoch decodes a file again.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, StoreError
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.features.options import EXTRACTOR, RawOptions
from har_pipeline.features.pack_reader import PackedStore, open_features
from har_pipeline.features.source_files import changed_videos, describe_file, known_failures
from har_pipeline.features.store import FeatureStore, VideoSource
from har_pipeline.video.frame_worker import RawFailure, RawTask, RawVideo, RawWorker

_RESIZE = re.compile(r"(?:box-|causal-box-)?(?:stretch|keep)-(\d+)")


def frame_shape(spec: FeatureSpec) -> tuple[int, int, int]:
    """Return (C, S, S), the shape of one frame of a raw feature set.

    A stored row is (S, S, C) flattened, so `rows.reshape(-1, S, S, C)` gives the frames.
    Raises: FeatureMismatchError if the features are no raw frames.
    """
    match = _RESIZE.fullmatch(spec.resize)
    if spec.extractor != EXTRACTOR or match is None:
        raise FeatureMismatchError(
            f"{spec.name}: are features of {spec.extractor}, not raw frames; make with `har frames`"
        )
    size = int(match[1])
    return spec.feature_dim // size**2, size, size


@dataclass(slots=True)
class RawSummary:
    """What a job did. failed, failed_before: video_id -> reason; notes: what was odd about a done video.

    frames: stored in this run.
    """

    feature_set: str
    total: int
    already: int
    done: int = 0
    frames: int = 0
    seconds: float = 0.0
    workers: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    failed_before: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """How many videos need no more work, failed ones included."""
        return self.already + self.done + len(self.failed) + len(self.failed_before)


def store_raw_frames(
    records: Sequence[VideoRecord],
    store: FeatureStore,
    options: RawOptions | None = None,
    on_progress: Callable[[RawSummary], None] = lambda summary: None,
) -> RawSummary:
    """Write the prepared frames of all records that `store` lacks, and return what was done.

    A video that fails is recorded in the store and in the summary; the others go on. What is there is kept, so an
    interrupted job goes on where it was. Raises: ExtractionError if no row has a file of the stream; StoreError if the
    store cannot be written.
    """
    options = options or RawOptions()
    column = "depth_path" if options.stream == "depth" else "path"
    if not any(getattr(record, column) for record in records):
        other = "rgb" if options.stream == "depth" else "depth"
        raise ExtractionError(f"no row of the manifest has a {column}; for its other files use --stream {other}")
    feature_set = store.create_feature_set(options.spec())
    store.remove_debris()
    k, n = options.shard
    mine = sorted(records, key=lambda record: record.video_id)[k - 1 :: n]
    paths = [getattr(record, column) for record in mine]
    changed = changed_videos(store, feature_set, mine, paths, options.replace_changed)
    complete = set(store.video_ids(feature_set))
    missing = [record for record in mine if record.video_id not in complete]
    known = {} if options.retry_failed else known_failures(store, feature_set, mine, paths)
    summary = RawSummary(feature_set, total=len(mine), already=len(mine) - len(missing) - len(changed))
    summary.failed.update(changed)
    summary.failed_before = {r.video_id: known[r.video_id] for r in missing if r.video_id in known}
    tasks: deque[RawTask] = deque()
    for record in missing:
        path = record.depth_path if options.stream == "depth" else record.path
        if path is None:
            summary.failed_before.pop(record.video_id, None)
            _fail(summary, store, record.video_id, f"{record.video_id}: its row has no {column}", {})
        elif record.video_id not in known:
            tasks.append(raw_task(record, path, options))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    summary.workers = min(options.workers or cores, len(tasks))
    started = time.perf_counter()
    on_progress(summary)
    for task, result in _results(tasks, summary.workers):
        if isinstance(result, RawFailure):
            file = describe_file(task.path, task.start_frame, task.end_frame)
            _fail(summary, store, task.video_id, result.reason, file)
        else:
            store.write(
                feature_set, task.video_id, result.frames.reshape(len(result.frames), -1), _source(result, task)
            )
            store.clear_failure(feature_set, task.video_id)
            summary.done += 1
            summary.frames += len(result.frames)
            if result.notes:
                summary.notes[task.video_id] = result.notes
        summary.seconds = time.perf_counter() - started
        on_progress(summary)
    return summary


def _fail(summary: RawSummary, store: FeatureStore, video_id: str, reason: str, file: Mapping[str, str]) -> None:
    summary.failed[video_id] = reason
    store.record_failure(summary.feature_set, video_id, reason, file)


def raw_task(record: VideoRecord, path: Path, options: RawOptions) -> RawTask:
    """Return what a worker needs to prepare the file `path` of a row."""
    return RawTask(
        video_id=record.video_id,
        path=path,
        start_frame=record.start_frame,
        end_frame=record.end_frame,
        stream=options.stream,
        size=options.size,
        aspect=options.aspect,
        causal=options.causal,
        fps=options.fps,
        time_limit_s=options.time_limit_s,
    )


def _results(tasks: deque[RawTask], num_workers: int) -> Iterator[tuple[RawTask, RawVideo | RawFailure]]:
    """Yield each task with its result, in the order in which they finish."""
    workers: dict[object, RawWorker] = {}
    try:
        while tasks or workers:
            while tasks and len(workers) < num_workers:
                worker = RawWorker()
                workers[worker.connection] = worker
                worker.start(tasks.popleft())
            for connection in wait([worker.connection for worker in workers.values()]):
                worker = workers[connection]
                task, result = worker.task, worker.receive()
                assert task is not None
                if tasks and worker.alive:
                    worker.start(tasks.popleft())
                else:
                    worker.close()
                    del workers[connection]
                yield task, result
    finally:
        for worker in workers.values():
            worker.close()


def _source(video: RawVideo, task: RawTask) -> VideoSource:
    return VideoSource(
        clip_starts=video.numbers,
        clip_ends=video.numbers + 1,
        num_frames=len(video.frames),
        fps=video.fps,
        decode_notes=video.notes,
        provenance={
            "har_pipeline": version("har-pipeline"),
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "av")},
        },
        file=describe_file(task.path, task.start_frame, task.end_frame),
    )


def options_of(spec: FeatureSpec) -> RawOptions:
    """Return the options that make a raw-frame feature set. Raises: FeatureMismatchError if it is none."""
    return RawOptions(
        stream="rgb" if spec.stream == "rgb" else "depth",
        size=frame_shape(spec)[1],
        aspect="keep" if "keep" in spec.resize else "stretch",
        causal=spec.resize.startswith("causal-"),
    )


def choose_frames(store: FeatureStore | PackedStore, stream: str, features: str = "") -> str | None:
    """Return the name of the raw-frame feature set of a stream that starts with `features`, None if there is none.

    Raises: StoreError if there are several, or none that starts so.
    """
    specs = {name: store.spec(name) for name in store.feature_sets()}
    of_stream = [
        name
        for name, spec in specs.items()
        if spec.extractor == EXTRACTOR and spec.stream == stream and spec.reduction is None
    ]
    found = [name for name in of_stream if name.startswith(features)]
    if len(found) > 1 or (features and not found):
        what = f"{len(found) or 'no'} raw-frame sets of {stream}{f' start with {features!r}' if features else ''}"
        raise StoreError(
            f"{store.path}: {what}; choose with --features one of: "
            f"{', '.join(f'{name} ({specs[name].resize})' for name in of_stream) or 'none'}"
        )
    return found[0] if found else None


def prepare_frames(
    records: Sequence[VideoRecord],
    path: Path,
    stream: str,
    *,
    features: str = "",
    workers: int | None = None,
    on_progress: Callable[[RawSummary], None] = lambda summary: None,
) -> RawSummary | None:
    """Make the raw frames of the records that a store lacks, in the way of those it has.

    None, with nothing done, for a pack, and for frames that were made in a way that is no longer known.
    The store is made where there is none. See `raw_frames.store_raw_frames`. Raises: as that and `choose_frames`;
    ExtractionError if the store holds frames of other files than the records name.
    """
    if path.exists() and isinstance(open_features(path), PackedStore):
        return None
    store = FeatureStore(path, create=True)
    name = choose_frames(store, stream, features)
    options = options_of(store.spec(name)) if name else RawOptions(stream="rgb" if stream == "rgb" else "depth")
    if name and options.spec() != store.spec(name):
        return None
    summary = store_raw_frames(records, store, dataclasses.replace(options, workers=workers), on_progress)
    stored = store.num_clips(summary.feature_set)
    if changed := [reason for video_id, reason in summary.failed.items() if video_id in stored]:
        raise ExtractionError(f"{len(changed)} videos, the first one: {changed[0]} (`har frames` has that option)")
    return summary


def open_frames(path: Path, stream: str, features: str = "") -> tuple[FeatureStore | PackedStore, str]:
    """Return a store or pack and the name of its raw-frame set of a stream. Raises: StoreError if there is not one."""
    store = open_features(path)
    name = choose_frames(store, stream, features)
    if name is None:
        raise StoreError(f"{path} has no raw frames of {stream}; make them with `har frames`")
    return store, name
