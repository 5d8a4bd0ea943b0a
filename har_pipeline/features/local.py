"""Handcrafted local descriptors as a feature set: one row for each interest point or trajectory, in the order of time.

So the heads read them as they read clips, and `har features encode` makes one vector per video of them. The feature spec's
layer names the descriptors of a row, joined by +; a video where nothing was found has one row of zeros and a note.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.features.job import JobSummary, Outcome, task_fields
from har_pipeline.features.options import LocalOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.whole_videos import WholeVideoSummary, WholeVideoWork, store_whole_videos
from har_pipeline.features.workers import Pool
from har_pipeline.video.local.spec import layer_blocks
from har_pipeline.video.local.worker import LocalTask, local_worker


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
    packages = ("numpy", "opencv-contrib-python-headless", "av")
    work = WholeVideoWork(options.spec(), packages, local_worker, options.workers)
    summary = LocalSummary(feature_set=work.spec.name)
    return store_whole_videos(
        records,
        "path",
        store,
        work,
        task_of=partial(_task, options),
        options=options,
        summary=summary,
        on_progress=on_progress,
        pool=pool,
    )


def _task(options: LocalOptions, record: VideoRecord, path: Path) -> LocalTask:
    return LocalTask(
        **task_fields(record, path, options),
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
