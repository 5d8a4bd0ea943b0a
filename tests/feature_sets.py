"""Small feature stores, manifests and splits for the tests of stage two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from har_pipeline.core.records import ClipSpec, FeatureSpec, Split, VideoRecord, VideoSource
from har_pipeline.features.store import FeatureStore


def feature_store(
    path: Path, features: Mapping[str, np.ndarray], *, weights: str = "sha256:" + "0" * 64, tokens: int = 0
) -> tuple[FeatureStore, str]:
    """Return a store with one float32 (or float16) feature set that holds the given (N, D) arrays, and its name.

    tokens: rows of a clip, M: the arrays are (N * M, D).
    """
    first = next(iter(features.values()))
    spec = FeatureSpec(
        extractor="drawn",
        weights=weights,
        layer="last",
        feature_dim=first.shape[1],
        clips=ClipSpec(sampling="dense", num_clips=None),
        dtype=str(first.dtype),
        tokens=tokens,
    )
    store = FeatureStore(path, create=True)
    name = store.create_feature_set(spec)
    for video_id, array in features.items():
        starts = np.arange(len(array) // spec.rows_per_clip)
        source = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=len(starts), fps=25.0)
        store.write(name, video_id, array, source)
    return store, name


def manifest(labels: Mapping[str, str]) -> list[VideoRecord]:
    return [VideoRecord(video_id=v, label=label, path=Path("/nowhere") / v) for v, label in labels.items()]


def split_of(train: Sequence[str], test: Sequence[str], val: Sequence[str] = (), index: int = 0) -> Split:
    return Split(protocol="holdout", index=index, train=tuple(train), val=tuple(val), test=tuple(test))


def blobs(
    classes: Sequence[str], per_class: int, *, dim: int = 8, seed: int = 0, dtype: str = "float32"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return features around one centre per class, 1 to 5 clips each, and the labels; ids are `<class>-<number>`."""
    rng = np.random.default_rng(seed)
    features, labels = {}, {}
    for label in classes:
        centre = 3 * rng.standard_normal(dim)
        for number in range(per_class):
            noise = rng.standard_normal((int(rng.integers(1, 6)), dim))
            features[f"{label}-{number}"] = (centre + 0.3 * noise).astype(dtype)
            labels[f"{label}-{number}"] = label
    return features, labels
