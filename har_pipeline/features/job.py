"""What extraction jobs share: shards, which videos are left to do, their tasks, outcomes, provenance."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias, TypedDict

from har_pipeline.core.records import VideoRecord
from har_pipeline.features.options import JobOptions
from har_pipeline.features.source_files import compare_files, describe_file, known_failures
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.process import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a video in one feature set: it is in the store, or its failure is recorded there."""

    video_id: str
    lane: int = 0  # number of the feature set in the job
    reason: str | None = None  # why it failed
    notes: tuple[str, ...] = ()  # what was odd about it
    rows: int = 0
    frames: int = 0  # of the video
    padded: bool = False  # it is shorter than its clips
    seen: tuple[float, float] = (1.0, 1.0)  # as `seen_of_video`


@dataclass(frozen=True, slots=True)
class Noted:
    """What was odd about a file of which several rows are read; said of the first."""

    video_id: str
    notes: tuple[str, ...]


Report: TypeAlias = Callable[[Outcome | Noted], None]

# What the process that runs the net waits for: decoders, flow, the net, and the writer.
STAGES = ("decode", "flow", "device", "write")


@dataclass(slots=True)
class Spent:
    """Clips whose features are there, also of videos that are not done, and seconds by stage."""

    clips: int = 0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    flow_cache: str = ""  # what kept computed flow from being stored

    def add(self, more: Spent) -> None:
        """Add what was spent since."""
        self.clips += more.clips
        for stage, seconds in more.stages.items():
            self.stages[stage] += seconds
        self.flow_cache = more.flow_cache or self.flow_cache


@dataclass(slots=True)
class Progress:
    """Where a job stands. Videos count once per feature set."""

    total: int
    already: int = 0
    done: int = 0
    failed: int = 0
    # Of all workers together, where there are several.
    spent: Spent = field(default_factory=Spent)

    @property
    def clips(self) -> int:
        """Clips whose features are there, also of videos that are not done."""
        return self.spent.clips

    @property
    def bound_by(self) -> str:
        """The stage that takes most of the time."""
        return max(STAGES, key=lambda stage: self.spent.stages[stage])


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

    def take(self, outcome: Outcome) -> None:
        """Count the outcome of a video."""
        if outcome.reason is not None:
            self.failed[outcome.video_id] = outcome.reason
            return
        self.done += 1
        if outcome.notes:
            self.notes[outcome.video_id] = outcome.notes


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


class TaskFields(TypedDict):
    """What tasks of all kinds of job have: a row's part of a file, and the limits of the job."""

    video_id: str
    path: Path
    start_frame: int
    end_frame: int | None
    start_s: float | None
    end_s: float | None
    time_limit_s: float
    memory_limit_gb: float
    max_frames: int


def task_fields(record: VideoRecord, path: Path, options: JobOptions) -> TaskFields:
    """Return what any task has that reads the file `path` of a row."""
    return TaskFields(
        video_id=record.video_id,
        path=path,
        start_frame=record.start_frame,
        end_frame=record.end_frame,
        start_s=record.start_s,
        end_s=record.end_s,
        time_limit_s=options.time_limit_s,
        memory_limit_gb=options.memory_limit_gb,
        max_frames=options.max_frames,
    )


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
