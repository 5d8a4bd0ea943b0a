"""Small runs of `har train-video` on depth folders that tests make, for what is done with a run afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from depth_files import write_folder
from feature_sets import split_of
from train_split import train_split

from har_pipeline.core.records import VideoRecord
from har_pipeline.features.frames import store_raw_frames
from har_pipeline.features.options import RawOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.models.config import NetworkName
from har_pipeline.training.options import VideoTrainConfig

SIZE = 48


@dataclass(frozen=True)
class DepthSet:
    """Depth folders of two classes, their raw frames, and where a run may be written."""

    folder: Path
    records: list[VideoRecord]

    def path(self, video_id: str) -> Path:
        """Return the depth folder of a video."""
        return self.folder / video_id

    def train(self, model: NetworkName = "convlstm-stateful", **options: Any) -> Path:
        """Return the folder of a run of one epoch with a very narrow network."""
        run = self.folder / "-".join([model, *(f"{name}-{value}" for name, value in options.items())])
        if run.exists():
            return run
        store = FeatureStore(self.folder / "store.zarr", create=True)
        name = store_raw_frames(self.records, store, RawOptions(size=SIZE, workers=1)).feature_set
        ids = [record.video_id for record in self.records]
        split = split_of(ids[:6], ids[6:], [])
        config = VideoTrainConfig(
            model=model,
            width=0.05,
            schedule="constant",
            learning_rate=1e-3,
            epochs=1,
            device="cpu",
            precision="fp32",
            **options,
        )
        train_split(store, name, self.records, split, config, run)
        return run


def walking_body(label: int, num_frames: int, seed: int) -> np.ndarray:
    """Return (F, 40, 60) uint16 of a body that goes right (0), or stays and grows (1), nearer and nearer to the camera."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((num_frames, 40, 60), np.uint16)
    for number in range(num_frames):
        left, height = (10 + number, 16) if label == 0 else (20, 8 + number)
        top = max(0, 20 - height // 2)
        block = frames[number, top : top + height, left % 50 : left % 50 + 8]
        block[:] = rng.integers(2000, 2400, block.shape) - 20 * number
    return frames


def make_depth_set(folder: Path) -> DepthSet:
    """Write ten depth folders of 20 to 29 frames; the last four are the test videos of `train`."""
    records = []
    for number in range(10):
        label = number % 2
        frames = walking_body(label, 20 + number, number)
        path = write_folder(folder / f"v{number}", frames)
        records.append(VideoRecord(video_id=f"v{number}", label=("goes", "grows")[label], depth_path=path))
    return DepthSet(folder, records)
