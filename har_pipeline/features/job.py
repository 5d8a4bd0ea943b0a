"""What extraction jobs share: shards, which videos are left to do, counts, provenance; and the loop over whole videos."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from har_pipeline.core.processes import num_cores
from har_pipeline.core.records import VideoRecord, VideoSource
from har_pipeline.features.options import JobOptions
from har_pipeline.features.source_files import compare_files, describe_file, known_failures
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.process import Failed, Task, Worker, run_tasks

T = TypeVar("T", bound=Task)
S = TypeVar("S", bound="WholeVideoSummary")


@dataclass(slots=True, kw_only=True)
class JobSummary:
    """What a job did for one feature set; counts are of videos."""

    feature_set: str
    total: int = 0
    already: int = 0  # were in the store
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # video_id -> reason
    failed_before: dict[str, str] = field(default_factory=dict)  # in an earlier run, and not tried again
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # video_id -> what was odd about a done video
    seconds: float = 0.0  # of the whole job, whatever its number of feature sets

    @property
    def finished(self) -> int:
        """How many videos need no more work, failed ones included."""
        return self.already + self.done + len(self.failed) + len(self.failed_before)


@dataclass(slots=True, kw_only=True)
class WholeVideoSummary(JobSummary):
    """What a job did whose workers answer with whole videos."""

    workers: int = 0


def shard_of(records: Sequence[VideoRecord], options: JobOptions) -> list[VideoRecord]:
    """Return the records of the options' shard, sorted by video_id."""
    k, n = options.shard
    return sorted(records, key=lambda record: record.video_id)[k - 1 :: n]


def unfinished(
    summary: JobSummary,
    store: FeatureStore,
    records: Sequence[VideoRecord],
    paths: Sequence[Path | str | None],
    options: JobOptions,
) -> set[str]:
    """Return the ids of the records to extract into `summary.feature_set`, and enter the others in `summary`.

    paths: the file that each record is read from. Videos whose source file has changed fail, or are deleted to be extracted
    again.
    """
    feature_set = summary.feature_set
    there, summary.failed = compare_files(store, feature_set, records, paths, options.replace_changed)
    missing = {record.video_id for record in records} - there
    failures = {} if options.retry_failed else store.failure_records(feature_set, there)
    known = known_failures(failures, records, paths)
    summary.failed_before = {video_id: known[video_id] for video_id in sorted(missing & known.keys())}
    summary.total = len(records)
    summary.already = len(records) - len(missing) - len(summary.failed)
    return missing - known.keys()


def videos_to_do(
    store: FeatureStore,
    summary: JobSummary,
    records: Sequence[VideoRecord],
    column: Literal["path", "depth_path"],
    options: JobOptions,
) -> list[tuple[VideoRecord, Path]]:
    """Return the records of the options' shard to extract, with their files; the others are entered in `summary`.

    column: the one that names the files; a record without such a file fails.
    """
    mine = shard_of(records, options)
    paths: list[Path | None] = [getattr(record, column) for record in mine]
    missing = unfinished(summary, store, mine, paths, options)
    todo = []
    for record, path in zip(mine, paths, strict=True):
        if record.video_id in missing and path is None:
            fail_video(store, summary, record.video_id, f"{record.video_id}: its row has no {column}", {})
        elif record.video_id in missing and path is not None:
            todo.append((record, path))
    return todo


def store_whole_videos(
    store: FeatureStore,
    summary: S,
    tasks: Sequence[T],
    workers: int | None,
    start_worker: Callable[[], Worker[T, Any]],
    rows_of: Callable[[T, Any], tuple[np.ndarray, VideoSource]],
    on_progress: Callable[[S], None],
) -> None:
    """Write what workers make of each video, and enter it in `summary`; a video that fails is recorded, the others go on.

    rows_of: returns the (N, D) rows of a task's message and where they come from. workers: None = from the CPU count.
    Raises: ExtractionError if no worker can be started; StoreError if the store cannot be written.
    """
    summary.workers = min(workers or num_cores(), len(tasks))
    started = time.perf_counter()
    on_progress(summary)
    with closing(run_tasks(start_worker, summary.workers, tasks)) as results:
        for _, task, result in results:
            if isinstance(result, Failed):
                fail_video(store, summary, task.video_id, result.reason, file_of(task))
            else:
                rows, source = rows_of(task, result)
                store.write(summary.feature_set, task.video_id, rows, source)
                store.clear_failure(summary.feature_set, task.video_id)
                summary.done += 1
                if source.decode_notes:
                    summary.notes[task.video_id] = source.decode_notes
            summary.seconds = time.perf_counter() - started
            on_progress(summary)


def fail_video(store: FeatureStore, summary: JobSummary, video_id: str, reason: str, file: dict[str, str]) -> None:
    """Record in the store and in `summary` that a video failed."""
    summary.failed[video_id] = reason
    store.record_failure(summary.feature_set, video_id, reason, file)


def file_of(task: Task) -> dict[str, str]:
    """Return the description of the file that a task reads, see `describe_file`."""
    return describe_file(task.path, task)


def provenance(*packages: str, device: str | None = None) -> dict[str, str]:
    """Return the versions of this package, Python and other packages, and the device; stored with each video."""
    return {
        "har_pipeline": version("har-pipeline"),
        "python": platform.python_version(),
        **({} if device is None else {"device": device}),
        **{name: version(name) for name in packages},
    }
