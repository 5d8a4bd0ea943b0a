"""What extraction jobs share, of clips or of raw frames: shards, which videos are left to do, counts, provenance."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from har_pipeline.core.records import VideoRecord
from har_pipeline.features.options import JobOptions
from har_pipeline.features.source_files import changed_videos, describe_file, known_failures
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.process import Task


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


def shard_of(records: Sequence[VideoRecord], options: JobOptions) -> list[VideoRecord]:
    """Return the records of the options' shard, sorted by video_id."""
    k, n = options.shard
    return sorted(records, key=lambda record: record.video_id)[k - 1 :: n]


def unfinished(
    summary: JobSummary,
    store: FeatureStore,
    records: Sequence[VideoRecord],
    paths: Sequence[Path | None],
    options: JobOptions,
) -> set[str]:
    """Return the ids of the records to extract into `summary.feature_set`, and enter the others in `summary`.

    paths: the file that each record is read from. Videos whose source file has changed fail, or are deleted to be extracted
    again.
    """
    feature_set = summary.feature_set
    summary.failed = changed_videos(store, feature_set, records, paths, options.replace_changed)
    missing = {record.video_id for record in records} - set(store.video_ids(feature_set))
    known = {} if options.retry_failed else known_failures(store, feature_set, records, paths)
    summary.failed_before = {video_id: known[video_id] for video_id in sorted(missing & known.keys())}
    summary.total = len(records)
    summary.already = len(records) - len(missing) - len(summary.failed)
    return missing - known.keys()


def file_of(task: Task) -> dict[str, str]:
    """Return the description of the file that a task reads, see `describe_file`."""
    return describe_file(task.path, task.start_frame, task.end_frame)


def provenance(*packages: str, device: str | None = None) -> dict[str, str]:
    """Return the versions of this package, Python and other packages, and the device; stored with each video."""
    return {
        "har_pipeline": version("har-pipeline"),
        "python": platform.python_version(),
        **({} if device is None else {"device": device}),
        **{name: version(name) for name in packages},
    }


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
