"""The two-stream table on a small store: every cell is filled, and the claimed configuration is one of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from experiments import load

from har_pipeline.core.records import ClipSpec, FeatureSpec, Stream, VideoRecord, VideoSource
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.features.store import FeatureStore


def add_features(store: FeatureStore, records: list[VideoRecord], stream: Stream, dim: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    spec = FeatureSpec(
        extractor="drawn", weights="random:0", layer="x", feature_dim=dim, stream=stream, clips=ClipSpec(num_clips=3)
    )
    name = store.create_feature_set(spec)
    centres = {label: rng.standard_normal(dim) for label in "abc"}
    for record in records:
        features = (centres[record.label] + 0.3 * rng.standard_normal((3, dim))).astype(np.float16)
        starts = np.arange(3) * 10
        store.write(
            name,
            record.video_id,
            features,
            VideoSource(clip_starts=starts, clip_ends=starts + 10, num_frames=30, fps=25.0),
        )
    return name


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_cell_has_a_number(tmp_path: Path) -> None:
    records = [
        VideoRecord(video_id=f"{label}{group}", label=label, path=tmp_path / f"{label}{group}.avi", group=f"g{group}")
        for label in "abc"
        for group in range(3)
    ]
    for record in records:
        assert record.path is not None
        record.path.touch()
    write_manifest(tmp_path / "m.csv", records, root=tmp_path)
    store = FeatureStore(tmp_path / "s.zarr", create=True)
    streams = {
        "rgb": add_features(store, records, "rgb", 12, 0),
        "flow": add_features(store, records, "flow", 10, 1),
    }
    pipeline = load("two_stream")
    for name, config in pipeline.HEADS.items():
        small = {"units": 8, "epochs": 3}
        if config.input_projection:
            small["input_projection"] = 8
        pipeline.HEADS[name] = dataclasses.replace(config, **small)
    result = pipeline.run(tmp_path / "m.csv", tmp_path / "s.zarr", streams, tmp_path / "out", 2, "cpu")
    json.dumps(result)
    assert (result["videos"], result["folds"]) == (9, 3)
    assert set(result["heads"]) == set(pipeline.HEADS)
    for name, head in result["heads"].items():
        expected = {"rgb", "flow", "sum", "product", "weighted", "oracle"} | (
            {"mid"} if name in pipeline.RECURRENT_HEADS else set()
        )
        assert set(head["rows"]) == expected
        assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in head["rows"].values())
    head, rule = pipeline.CLAIMED
    assert rule in result["heads"][head]["rows"]
