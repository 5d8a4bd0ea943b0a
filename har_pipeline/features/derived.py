"""Feature sets that are computed from another set of the same store, video by video."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import FeatureRecord
from har_pipeline.features.store import FeatureStore

# Returns the record of a video of the source with other features, and the clips that they describe.
Derive = Callable[[FeatureRecord], FeatureRecord]


def whole_video(record: FeatureRecord, features: np.ndarray, *notes: str) -> FeatureRecord:
    """Return a record with one row, `features` (1, D), that describes all clips of a video's record. notes: added to its."""
    return dataclasses.replace(
        record,
        features=features,
        clip_starts=record.clip_starts.min(keepdims=True),
        clip_ends=record.clip_ends.max(keepdims=True),
        clip_times_s=np.array([[record.clip_times_s[:, 0].min(), record.clip_times_s[:, 1].max()]]),
        decode_notes=(*record.decode_notes, *notes),
    )


def derive_videos(
    store: FeatureStore,
    source: str,
    feature_set: str,
    derive: Derive,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Write what `feature_set` lacks of the videos of `source`, and the source's failures; both sets exist.

    Videos that were derived from another version of a source file are derived again. Each video is committed by itself,
    so a job that was killed continues. on_video: called with the videos done and their total. Returns how many videos the
    source has and how many were written. Raises: ExtractionError that names the video; StoreError if it is damaged.
    """
    ids, files, done = store.video_ids(source), store.files(source), store.files(feature_set)
    for video_id in [one for one in ids if one in done and files[one] != done[one]]:
        store.delete(feature_set, video_id)  # the source was extracted again, from another file
        del done[video_id]
    wanted = [video_id for video_id in ids if video_id not in done]
    failed = store.failed_files(source)
    for video_id, reason in store.failures(source).items():
        store.record_failure(feature_set, video_id, reason, failed[video_id])
    for number, video_id in enumerate(wanted):
        on_video(len(ids) - len(wanted) + number, len(ids))
        try:
            made = derive(store.read(source, video_id))
        except ExtractionError as error:
            raise ExtractionError(f"{source}: {video_id}: {error}") from error
        store.write(feature_set, video_id, made.features, made)
        store.clear_failure(feature_set, video_id)
    on_video(len(ids), len(ids))
    return len(ids), len(wanted)
