"""What a training learns from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store, manifest, split_of

from har_pipeline.core.errors import RunError
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams
from har_pipeline.training.data import load_training_data

CLASSES = ("boxing", "running", "walking")


def test_folds_share_one_table_and_have_parts_of_their_own(tmp_path: Path) -> None:
    features, labels = blobs(CLASSES, 3)
    store, name = feature_store(tmp_path / "store.zarr", features)
    splits = [
        split_of([v for v in labels if v[-1] != str(k)], [v for v in labels if v[-1] == str(k)], index=k)
        for k in range(2)
    ]
    first, second = load_training_data(FeatureStreams(store, [name[:5]]), manifest(labels), splits)
    assert first.table is second.table
    assert (first.feature_sets, first.specs, first.classes) == ((name,), (store.spec(name),), CLASSES)
    for data, split in zip((first, second), splits, strict=True):
        assert data.split == split
        assert [data.table.video_ids[row] for row in data.parts.test] == list(split.test)
        assert (len(data.parts.val), data.missing, data.notes, data.fits) == (0, (), (), (None,))
    assert first.labels_sha256 == second.labels_sha256 != first.features_sha256
    # Other classes, another table.
    fewer = dataclasses.replace(splits[0], train=splits[0].train[:4], test=splits[0].test[:2])
    first, second = load_training_data(FeatureStreams(store, [name]), manifest(labels), [fewer, splits[1]])
    assert first.classes == CLASSES[:2]
    assert len(first.table.video_ids) == 6


def test_a_split_is_refused_before_any_feature_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(CLASSES, 3)
    store, name = feature_store(tmp_path / "store.zarr", features)
    good = split_of([v for v in labels if v[-1] != "0"], [v for v in labels if v[-1] == "0"])
    monkeypatch.setattr(FeatureStore, "read", None)
    with pytest.raises(RunError, match="only one class"):
        load_training_data(
            FeatureStreams(store, [name]), manifest(labels), [good, dataclasses.replace(good, train=good.train[:1])]
        )
