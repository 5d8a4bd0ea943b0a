"""Feature sets that are computed from another set of the same store, video by video."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import FeatureRecord, VideoSource
from har_pipeline.features.store import FeatureStore

# Returns (N', D') features and their clips for those of a video of the source.
Derive = Callable[[FeatureRecord], tuple[np.ndarray, VideoSource]]


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
            features, clips = derive(store.read(source, video_id))
        except ExtractionError as error:
            raise ExtractionError(f"{source}: {video_id}: {error}") from error
        store.write(feature_set, video_id, features, clips)
        store.clear_failure(feature_set, video_id)
    on_video(len(ids), len(ids))
    return len(ids), len(wanted)
