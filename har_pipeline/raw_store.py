"""The raw frames that a training needs: opened where they are, prepared where they are missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from har_pipeline.core.errors import ExtractionError, StoreError
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.packed_store import PackedStore, open_features
from har_pipeline.raw_frames import EXTRACTOR, RawOptions, RawSummary, frame_shape, store_raw_frames
from har_pipeline.store import FeatureStore


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
