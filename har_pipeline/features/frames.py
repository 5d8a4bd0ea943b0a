"""Raw frames as a feature set: the small uint8 frames that raw-video networks train on, prepared once and stored.

A video is one array (L, H * W * C): L frames of S x S px with C channels, 1 for depth, 3 for RGB; or L grey windows
of people. So the store's commits,
checksums, failure records and resumption hold for raw frames too, and no epoch decodes a file again. The feature spec says
how frames were prepared: `RawOptions.spec` writes it, `frame_shape` and `options_of` read it, `choose_frames` finds it in a
store.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, StoreError
from har_pipeline.core.objects import StorePath
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.features.job import JobSummary, Outcome, task_fields
from har_pipeline.features.options import EXTRACTOR, WINDOWS, RawOptions
from har_pipeline.features.pack import PackedStore, open_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.whole_videos import WholeVideoSummary, WholeVideoWork, store_whole_videos
from har_pipeline.features.workers import Pool
from har_pipeline.video.frame_worker import RawTask, raw_worker

_RESIZE = re.compile(r"(?:box-|causal-box-)?(?:stretch|keep)-(\d+)")


@dataclass(slots=True, kw_only=True)
class RawSummary(WholeVideoSummary):
    """What a job did."""

    frames: int = 0  # stored in this run

    def take(self, outcome: Outcome) -> None:
        """Count the outcome of a video."""
        JobSummary.take(self, outcome)
        self.frames += outcome.rows


def frame_shape(spec: FeatureSpec) -> tuple[int, int, int]:
    """Return (C, H, W), the shape of one frame of a raw feature set: squares, or windows of people.

    A stored row is (H, W, C) flattened, so `rows.reshape(-1, H, W, C)` gives the frames.
    Raises: FeatureMismatchError if the features are no raw frames.
    """
    if (windows := _windows_of(spec)) is not None:
        return windows.shape
    match = _RESIZE.fullmatch(spec.resize)
    if spec.extractor != EXTRACTOR or match is None:
        raise FeatureMismatchError(
            f"{spec.name}: features of {spec.extractor}, not raw frames; prepare frames with `har frames`"
        )
    size = int(match[1])
    return spec.feature_dim // size**2, size, size


def options_of(spec: FeatureSpec) -> RawOptions:
    """Return the options that make a raw-frame feature set. Raises: FeatureMismatchError if it is none."""
    if (windows := _windows_of(spec)) is not None:
        return windows
    return RawOptions(
        stream="rgb" if spec.stream == "rgb" else "depth",
        size=frame_shape(spec)[1],
        aspect="keep" if "keep" in spec.resize else "stretch",
        causal=spec.resize.startswith("causal-"),
        resize_method=spec.resize_method,
    )


def _windows_of(spec: FeatureSpec) -> RawOptions | None:
    """Return the options that make windows as those of a feature set; None if it holds something else."""
    if spec.extractor != EXTRACTOR:
        return None
    return next((RawOptions(stream="rgb", window=one) for one, mode in WINDOWS.items() if mode == spec.resize), None)


def choose_frames(
    store: FeatureStore | PackedStore, stream: str, features: str = "", *, windows: bool = False
) -> str | None:
    """Return the name of the raw-frame feature set of a stream that starts with `features`, None if there is none.

    windows: those of people, or other frames. Raises: StoreError if there are several, or none that starts so.
    """
    specs = {name: store.spec(name) for name in store.feature_sets()}
    of_stream = [
        name
        for name, spec in specs.items()
        if (spec.extractor, spec.stream, _windows_of(spec) is not None) == (EXTRACTOR, stream, windows)
        and spec.fit is None
    ]
    called = store.names().get(features)
    found = [name for name in of_stream if name == called] or [name for name in of_stream if name.startswith(features)]
    if len(found) > 1 or (features and not found):
        kind = f"{'windows' if windows else 'raw-frame sets'} of {stream}"
        what = f"{len(found) or 'no'} {kind}{f' start with {features!r}' if features else ''}"
        raise StoreError(
            f"{store.path}: {what}; choose with --features one of: "
            f"{', '.join(f'{name} ({specs[name].resize})' for name in of_stream) or 'none'}"
        )
    return found[0] if found else None


def store_raw_frames(
    records: Sequence[VideoRecord],
    store: FeatureStore,
    options: RawOptions | None = None,
    on_progress: Callable[[RawSummary], None] = lambda summary: None,
    *,
    pool: Pool | None = None,
) -> RawSummary:
    """Write the prepared frames of all records that `store` lacks, and return what was done.

    A video that fails is recorded in the store and in the summary; the others go on. Videos that are in the store are
    skipped, so an interrupted job resumes where it stopped. pool: the workers that do it, used up; None: this process.
    Raises: ExtractionError if no row has a file of the stream, or no worker can be started; StoreError if the store cannot
    be written.
    """
    options = options or RawOptions()
    column = column_of(records, options.stream)
    work = WholeVideoWork(options.spec(), ("numpy", "av"), raw_worker, options.workers)
    summary = RawSummary(feature_set=work.spec.name)
    return store_whole_videos(
        records,
        column,
        store,
        work,
        task_of=partial(raw_task, options),
        options=options,
        summary=summary,
        on_progress=on_progress,
        pool=pool,
    )


def column_of(records: Sequence[VideoRecord], stream: str) -> Literal["path", "depth_path"]:
    """Return the column that names the files of a stream. Raises: ExtractionError if no row has a file there."""
    column: Literal["path", "depth_path"] = "depth_path" if stream == "depth" else "path"
    other = "rgb" if stream == "depth" else "depth"
    if not any(getattr(record, column) for record in records):
        raise ExtractionError(f"no row of the manifest has a {column}; for its other files use --stream {other}")
    return column


def raw_task(options: RawOptions, record: VideoRecord, path: Path) -> RawTask:
    """Return what a worker needs to prepare the file `path` of a row."""
    return RawTask(
        **task_fields(record, path, options),
        stream=options.stream,
        size=options.size,
        aspect=options.aspect,
        causal=options.causal,
        window=WINDOWS[options.window] if options.window else "",
        resize_method=options.resize_method,
        fps=options.fps,
    )


def prepare_frames(
    records: Sequence[VideoRecord],
    path: StorePath,
    stream: str,
    *,
    features: str = "",
    windows: bool = False,
    workers: int | None = None,
    on_progress: Callable[[RawSummary], None] = lambda summary: None,
) -> RawSummary | None:
    """Prepare the raw frames of the records that a store lacks, as those that it has; the store is made if it is missing.

    windows: those of people; around one person, if the store has none. Returns None, with nothing done, for a pack,
    and for frames prepared in a way that is no longer supported.
    Raises: as `store_raw_frames` and `choose_frames`; ExtractionError if the store holds frames of other files than the
    records name.
    """
    if path.exists() and isinstance(open_features(path), PackedStore):
        return None
    column_of(records, stream)  # a job that cannot be done leaves no store
    store = FeatureStore(path, create=True)
    name = choose_frames(store, stream, features, windows=windows)
    fresh = RawOptions(stream="rgb" if stream == "rgb" else "depth", window="person" if windows else None)
    options = options_of(store.spec(name)) if name else fresh
    if name and options.spec() != store.spec(name):
        return None
    summary = store_raw_frames(records, store, dataclasses.replace(options, workers=workers), on_progress)
    stored = store.num_clips(summary.feature_set)
    if changed := [reason for video_id, reason in summary.failed.items() if video_id in stored]:
        raise ExtractionError(f"{len(changed)} videos, the first: {changed[0]} (an option of `har frames`)")
    return summary


def open_frames(
    path: StorePath, stream: str, features: str = "", *, windows: bool = False
) -> tuple[FeatureStore | PackedStore, str]:
    """Return a store or pack and the name of its raw-frame set of a stream, as `choose_frames`.

    Raises: StoreError if there is not one.
    """
    store = open_features(path)
    name = choose_frames(store, stream, features, windows=windows)
    if name is None:
        how = " --window person" if windows else ""
        raise StoreError(
            f"{path} has no {'windows' if windows else 'raw frames'} of {stream}; prepare them with `har frames{how}`"
        )
    return store, name
