"""The reading interface that stores and packs share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from har_pipeline.core.objects import StorePath
from har_pipeline.core.records import FeatureRecord, FeatureSpec


class StoredVideo(NamedTuple):
    """What is known of a stored video beside its features."""

    video_id: str
    num_frames: int  # decodable frames as far as known, or the container's count
    fps: float  # of the file, frames/s
    decode_notes: tuple[str, ...]  # what was wrong with the file


class FeatureReader(Protocol):
    """A feature store or a pack of one, for reading: `store.FeatureStore`, `pack.PackedStore`."""

    path: StorePath

    def resolve(self, prefix: str, /) -> str:
        """Return the full name of the feature set that starts with `prefix`."""

    def spec(self, feature_set: str, /) -> FeatureSpec:
        """Return how the features of a set were made."""

    def video_ids(self, feature_set: str, /) -> list[str]:
        """Return the ids of the videos whose features are complete."""

    def stored(self, feature_set: str, /) -> Iterator[StoredVideo]:
        """Give what is known of each video, in the order of `video_ids`."""

    def checksums(self, feature_set: str, /) -> Mapping[str, str]:
        """Return video_id -> checksum of its features, without reading them."""

    def read(self, feature_set: str, video_id: str, /, *, check: bool = False) -> FeatureRecord:
        """Return the features of one video; with `check`, compare them with their checksum."""

    def failures(self, feature_set: str, /) -> dict[str, str]:
        """Return video_id -> why it has no features."""

    def read_fit(self, feature_set: str, /) -> dict[str, np.ndarray]:
        """Return the arrays of the fit that a reduced or encoded feature set was made with."""
