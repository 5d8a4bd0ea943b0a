"""Several streams of the same videos as one: their features side by side, aligned by the time of the clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import FeatureRecord
from har_pipeline.datasets import FeatureSource, align_by_time


def joined_features(records: Sequence[FeatureRecord]) -> np.ndarray:
    """Return (N, D1 + D2 + ...) the features of one video's streams on the clips of the first.

    Each clip gets the features of the other streams' clips that are closest in time; see `datasets.align_by_time`.
    Raises: RunError naming the video if a stream has no clip near enough.
    """
    if len(records) == 1:
        return records[0].features
    try:
        rows = align_by_time([record.clip_times_s for record in records])
    except RunError as error:
        raise RunError(f"{records[0].video_id}: {error}") from error
    return np.concatenate([record.features[own] for record, own in zip(records, rows, strict=True)], axis=1)


class StreamSource:
    """A feature source whose videos are those that every one of the feature sets holds, their features joined."""

    def __init__(self, store: FeatureSource, feature_sets: Sequence[str]) -> None:
        self._store, self._feature_sets = store, tuple(feature_sets)

    def video_ids(self, feature_set: str) -> list[str]:
        """Return the ids that have features in all sets, in the order of the first."""
        first, *others = (self._store.video_ids(name) for name in self._feature_sets)
        common = set(first).intersection(*others)
        return [video_id for video_id in first if video_id in common]

    def read(self, feature_set: str, video_id: str, *, check: bool = False) -> FeatureRecord:
        """Return the record of the first stream, with the features of all of them and their checksums joined by +."""
        records = [self._store.read(name, video_id, check=check) for name in self._feature_sets]
        checksum = "+".join(record.checksum for record in records)
        return dataclasses.replace(records[0], features=joined_features(records), checksum=checksum)

    def failures(self, feature_set: str) -> dict[str, str]:
        """Return the reasons why videos have no features in one of the sets, with the name of that set."""
        return {
            video_id: f"{name}: {reason}"
            for name in self._feature_sets
            for video_id, reason in self._store.failures(name).items()
        }
