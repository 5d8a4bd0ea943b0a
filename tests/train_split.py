"""One run of a head or a network, straight from a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.evaluation.run_folder import RunSummary
from har_pipeline.features.reader import FeatureReader
from har_pipeline.features.table import FeatureStreams
from har_pipeline.training.data import load_training_data
from har_pipeline.training.heads.train import train_head
from har_pipeline.training.networks.train import train_network
from har_pipeline.training.options import TrainConfig, VideoTrainConfig


def train_split(
    store: FeatureReader,
    features: str | Sequence[str],
    records: Sequence[VideoRecord],
    split: Split,
    config: TrainConfig | VideoTrainConfig,
    run_dir: Path,
    *,
    allow_missing: bool = False,
    **options: Any,
) -> RunSummary:
    """Train a head or a network, as `config` says, on the features of one set or of several streams."""
    sets = [features] if isinstance(features, str) else features
    data = next(load_training_data(FeatureStreams(store, sets), records, [split], allow_missing=allow_missing))
    if isinstance(config, TrainConfig):
        return train_head(data, config, run_dir, **options)
    summary = train_network(data, config, run_dir, **options)
    assert summary is not None
    return summary
