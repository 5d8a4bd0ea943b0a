"""Small stores of raw frames for the tests of the raw-video path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from har_pipeline.core.records import VideoSource
from har_pipeline.features.options import RawOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureTable

SIZE = 48


def bar_video(label: int, num_frames: int, *, size: int = SIZE, shift: int = 0) -> np.ndarray:
    """Return (F, size * size) uint8 of a bright square that moves along one of the two axes."""
    frames = np.zeros((num_frames, size, size), np.uint8)
    for number in range(num_frames):
        moved, still = (number + shift) % (size - 6), size // 2
        top, left = (still, moved) if label else (moved, still)
        frames[number, top : top + 6, left : left + 6] = 255
    return frames.reshape(num_frames, -1)


def drawn_videos(lengths: Mapping[str, int]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return frames and labels of videos named `<class 0 or 1>-<number>`, of the lengths given."""
    videos = {v: bar_video(int(v[0]), length, shift=int(v[2:])) for v, length in lengths.items()}
    return videos, {v: ("up", "side")[int(v[0])] for v in lengths}


def raw_store(path: Path, videos: Mapping[str, np.ndarray]) -> tuple[FeatureStore, str]:
    """Return a store with one set of raw depth frames, 48x48 px, and its name."""
    store = FeatureStore(path, create=True)
    name = store.create_feature_set(RawOptions(size=SIZE).spec())
    for video_id, frames in videos.items():
        starts = np.arange(len(frames))
        source = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=len(frames), fps=30.0)
        store.write(name, video_id, frames, source)
    return store, name


def table_of(videos: Mapping[str, np.ndarray]) -> FeatureTable:
    """Return the videos as a table; classes are numbered by the first character of an id."""
    offsets = np.cumsum([0, *(len(frames) for frames in videos.values())])
    labels = np.array([int(v[0]) for v in videos], np.int64)
    return FeatureTable(tuple(videos), labels, np.concatenate(list(videos.values())), offsets.astype(np.int64))
