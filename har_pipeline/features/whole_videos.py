"""Jobs without a net whose workers answer with whole videos, an array each: local descriptors and raw frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from har_pipeline.core.processes import num_cores
from har_pipeline.core.records import FeatureSpec, VideoRecord, VideoSource
from har_pipeline.features.job import (
    JobSummary,
    Noted,
    Outcome,
    Report,
    Spent,
    file_of,
    provenance,
    shard_of,
    unfinished,
)
from har_pipeline.features.options import JobOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.work import Made
from har_pipeline.features.workers import Pool, at_work
from har_pipeline.video.process import Failed, Task, Worker, run_tasks


class WholeVideo(Protocol):
    """What a worker makes of a video."""

    @property
    def rows(self) -> np.ndarray:
        """(N, D), what is stored."""

    @property
    def bounds(self) -> np.ndarray:
        """(N, 2) int64, the first frame that a row is of and the one after its last, in the file."""

    @property
    def times_s(self) -> np.ndarray:
        """(N, 2) float64, when these begin, s from the start of the file."""

    @property
    def num_frames(self) -> int:
        """How many frames were read."""

    @property
    def fps(self) -> float:
        """Frame rate, in frames/s."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd about the file."""


@dataclass(slots=True, kw_only=True)
class WholeVideoSummary(JobSummary):
    """What a job did whose workers answer with whole videos."""

    workers: int = 0


@dataclass(frozen=True, slots=True)
class WholeVideoWork:
    """One feature set of whole videos: a `Job` and a `Work`."""

    spec: FeatureSpec
    packages: tuple[str, ...]  # whose versions are recorded with each video
    start_worker: Callable[[], Worker[Any, Any]]  # answers with a `WholeVideo`; of a module, as it is sent by its name
    processes: int | None  # that decode; None: one for each core

    @property
    def made(self) -> tuple[Made, ...]:
        """The one feature set."""
        return (Made(self.spec),)

    def prepare(self, device: str) -> WholeVideoWork:
        """Return itself: it needs no net."""
        return self

    def run(
        self, store: FeatureStore, tasks: Iterable[Task], cores: int, report: Report, spend: Callable[[Spent], None]
    ) -> None:
        """Write what is made of each video; one that fails is recorded, the others go on. See `Work.run`."""
        made_with, feature_set = provenance(*self.packages), self.spec.name
        with closing(run_tasks(self.start_worker, self.processes or cores, tasks)) as results:
            for _, task, result in results:
                if isinstance(result, Failed):
                    store.record_failure(feature_set, task.video_id, result.reason, file_of(task))
                    report(Outcome(video_id=task.video_id, reason=result.reason))
                    continue
                rows, source = _stored(result, task, made_with)
                store.write(feature_set, task.video_id, rows, source)
                store.clear_failure(feature_set, task.video_id)
                report(
                    Outcome(video_id=task.video_id, notes=source.decode_notes, rows=len(rows), frames=source.num_frames)
                )


def _stored(video: WholeVideo, task: Task, made_with: dict[str, str]) -> tuple[np.ndarray, VideoSource]:
    source = VideoSource(
        clip_starts=video.bounds[:, 0],
        clip_ends=video.bounds[:, 1],
        num_frames=video.num_frames,
        fps=video.fps,
        clip_times_s=video.times_s,
        decode_notes=video.notes,
        provenance=made_with,
        file=file_of(task),
    )
    return video.rows, source


S = TypeVar("S", bound=WholeVideoSummary)


def store_whole_videos(
    records: Sequence[VideoRecord],
    column: Literal["path", "depth_path"],
    store: FeatureStore,
    work: WholeVideoWork,
    *,
    task_of: Callable[[VideoRecord, Path], Task],
    options: JobOptions,
    summary: S,
    on_progress: Callable[[S], None],
    pool: Pool | None,
) -> S:
    """Write what a store lacks of the records' shard, and enter what was done in `summary`, which is returned.

    column: the one that names the files; a record without such a file fails. pool: the workers that do it, used up; None:
    this process. Raises: ExtractionError if no worker can be started; StoreError if the store cannot be written.
    """
    store.create_feature_set(work.spec, options.name)
    store.remove_debris()
    tasks = [task_of(record, path) for record, path in _to_do(store, summary, records, column, options)]
    summary.workers = min(work.processes or num_cores(), len(tasks)) if pool is None else len(pool.devices)
    started = time.perf_counter()

    def report(message: Outcome | Noted) -> None:
        assert isinstance(message, Outcome)
        summary.take(message)
        summary.seconds = time.perf_counter() - started
        on_progress(summary)

    on_progress(summary)
    if pool is None:
        work.run(store, tasks, num_cores(), report, lambda spent: None)
    elif tasks:
        with at_work(pool, work, store) as workers:
            workers.do(tasks, report, lambda spent: None)
    return summary


def _to_do(
    store: FeatureStore,
    summary: JobSummary,
    records: Sequence[VideoRecord],
    column: Literal["path", "depth_path"],
    options: JobOptions,
) -> list[tuple[VideoRecord, Path]]:
    """Return the records to make with their files; the others are entered in `summary`."""
    mine = shard_of(records, options)
    paths: list[Path | None] = [getattr(record, column) for record in mine]
    missing = unfinished(summary, store, mine, paths, options)
    todo = []
    for record, path in zip(mine, paths, strict=True):
        if record.video_id in missing and path is None:
            reason = f"{record.video_id}: its row has no {column}"
            summary.failed[record.video_id] = reason
            store.record_failure(summary.feature_set, record.video_id, reason, {})
        elif record.video_id in missing and path is not None:
            todo.append((record, path))
    return todo
