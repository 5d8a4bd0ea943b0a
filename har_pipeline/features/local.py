"""Handcrafted local descriptors as a feature set: one row for each interest point or trajectory, in the order of time.

So the heads read them as they read clips, and `har features encode` makes one vector per video of them. The feature spec's
layer names the descriptors of a row, joined by +; a video where nothing was found has one row of zeros and a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import FeatureSpec, VideoRecord, VideoSource
from har_pipeline.features.job import (
    JobSummary,
    Outcome,
    Report,
    Spent,
    WholeVideoSummary,
    file_of,
    provenance,
    store_whole_videos,
    videos_to_do,
)
from har_pipeline.features.options import LocalOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.work import Made
from har_pipeline.features.workers import Pool, do_whole_videos
from har_pipeline.video.local.spec import layer_blocks
from har_pipeline.video.local.worker import LocalTask, LocalVideo, local_worker


@dataclass(slots=True, kw_only=True)
class LocalSummary(WholeVideoSummary):
    """What a job did."""

    points: int = 0  # stored in this run
    frames: int = 0  # of their videos

    def take(self, outcome: Outcome) -> None:
        """Count the outcome of a video."""
        JobSummary.take(self, outcome)
        self.points += outcome.rows
        self.frames += outcome.frames


def extract_local(
    records: Sequence[VideoRecord],
    store: FeatureStore,
    options: LocalOptions,
    on_progress: Callable[[LocalSummary], None] = lambda summary: None,
    *,
    pool: Pool | None = None,
) -> LocalSummary:
    """Write the local descriptors of all records that `store` lacks, and return what was done.

    A video that fails is recorded in the store and in the summary; the others go on. Videos that are in the store are
    skipped, so an interrupted job resumes where it stopped. pool: the workers that do it, used up; None: this process.
    Raises: ExtractionError if no worker can be started; StoreError if the store cannot be written.
    """
    summary = LocalSummary(feature_set=store.create_feature_set(options.spec(), options.name))
    store.remove_debris()
    tasks = [_task(record, path, options) for record, path in videos_to_do(store, summary, records, "path", options)]
    do_whole_videos(LocalWork(options), store, summary, tasks, options.workers, on_progress, pool)
    return summary


@dataclass(frozen=True, slots=True)
class LocalWork:
    """A handcrafted extractor at work: a `Job` and a `Work`."""

    options: LocalOptions

    @property
    def made(self) -> tuple[Made, ...]:
        """The one feature set."""
        return (Made(self.options.spec()),)

    def prepare(self, device: str) -> LocalWork:
        """Return itself: it needs no net."""
        return self

    def run(
        self,
        store: FeatureStore,
        tasks: Iterable[LocalTask],
        cores: int,
        report: Report,
        spend: Callable[[Spent], None],
    ) -> None:
        """Describe all videos; see `Work.run`."""
        spec, made_with = self.options.spec(), provenance("numpy", "opencv-contrib-python-headless", "av")

        def rows_of(task: LocalTask, video: LocalVideo) -> tuple[np.ndarray, VideoSource]:
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
            return video.values.astype(spec.dtype), source

        store_whole_videos(store, spec.name, tasks, self.options.workers or cores, local_worker, rows_of, report)


def _task(record: VideoRecord, path: Path, options: LocalOptions) -> LocalTask:
    return LocalTask(
        video_id=record.video_id,
        path=path,
        start_frame=record.start_frame,
        end_frame=record.end_frame,
        start_s=record.start_s,
        end_s=record.end_s,
        time_limit_s=options.time_limit_s,
        memory_limit_gb=options.memory_limit_gb,
        max_frames=options.max_frames,
        extractor=options.extractor,
        blocks=tuple(layer_blocks(options.extractor, options.layer_name)),
        short_side=options.short_side,
        max_points=options.max_points,
    )


def local_options(spec: FeatureSpec) -> LocalOptions:
    """Return the options that make features of a spec, which a handcrafted extractor made.

    Raises: ExtractionError if it made them in a way that is no longer supported.
    """
    options = LocalOptions(
        extractor=spec.extractor,
        layer=spec.layer,
        short_side=int(spec.resize.removeprefix("within-")),
        max_points=int(spec.preprocess.rsplit(maxsplit=2)[1]),
        dtype="float32" if spec.dtype == "float32" else "float16",
    )
    if options.spec() != spec:
        raise ExtractionError(f"{spec.name} was made by an older version of {spec.extractor}: extract it again")
    return options
