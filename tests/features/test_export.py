"""Features for other programs: the same numbers in each kind of file, and as arrays for scikit-learn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from feature_sets import blobs, feature_store, manifest
from har_command import har
from sklearn.model_selection import GroupKFold, cross_val_score

from har_pipeline.core.errors import HarError, RunError, StoreError
from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.features import export
from har_pipeline.features.export import export_features
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.training.estimator import HeadClassifier

Made = tuple[FeatureStore, str, dict[str, np.ndarray], list[VideoRecord]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Eight videos of two classes and four people, and a manifest in another order than the store's."""
    features, _ = blobs(["walk", "läuft"], 4, dtype="float16")
    features = {video_id.replace("läuft", "run"): rows for video_id, rows in features.items()}
    records = [
        dataclasses.replace(record, subject=f"p{number % 4}", extra={"x_light": "day"} if number == 2 else {})
        for number, record in enumerate(manifest({v: "läuft" if "run" in v else "walk" for v in features})[::-1])
    ]
    store, name = feature_store(tmp_path / "s.zarr", features)
    return store, name, features, records


def check_npz(path: Path) -> dict[str, Any]:
    with np.load(path) as file:  # without pickles
        found = dict(file)
    return {**found, "provenance": str(found["provenance"])}


def check_h5(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        found = {name: one.asstr()[:] if one.dtype.kind == "O" else one[:] for name, one in file.items()}
        return {**found, "provenance": file.attrs["provenance"]}


@pytest.mark.parametrize(("suffix", "read"), [("npz", check_npz), ("h5", check_h5)])
def test_arrays_hold_all_videos_and_the_columns_of_the_manifest(
    tmp_path: Path, made: Made, suffix: str, read: Callable[[Path], dict[str, Any]]
) -> None:
    store, name, features, records = made
    summary = export_features(store, "drawn", tmp_path / f"x.{suffix}", records)
    found = read(tmp_path / f"x.{suffix}")
    assert (summary.videos, summary.rows, summary.dim) == (8, sum(map(len, features.values())), 8)
    assert found["video_id"].tolist() == [record.video_id for record in records]
    assert found["label"].tolist() == [record.label for record in records]
    assert found["subject"].tolist() == [f"p{number % 4}" for number in range(8)]
    assert found["x_light"].tolist() == ["", "", "day", "", "", "", "", ""]
    assert "camera" not in found
    assert found["features"].dtype == np.float16
    assert found["fps"].tolist() == [25.0] * 8
    for number, record in enumerate(records):
        rows = slice(*found["offsets"][number : number + 2])
        assert np.array_equal(found["features"][rows], features[record.video_id])
        assert found["lengths"][number] == len(features[record.video_id])
        assert found["clip_starts"][rows].tolist() == list(range(found["lengths"][number]))
    provenance = json.loads(found["provenance"])
    assert provenance["feature_set"] == name
    assert provenance["spec"] == store.spec(name).to_dict()


def test_parquet_has_a_row_for_each_clip(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    store, name, features, records = made
    monkeypatch.setattr(export, "BLOCK_BYTES", 3 * 8 * 4)  # three rows
    export_features(store, name, tmp_path / "x.parquet", records)
    table = pq.read_table(tmp_path / "x.parquet")
    rows = table.to_pylist()
    assert list(rows[0])[:4] == ["video_id", "step", "label", "subject"]
    for record in records:
        own = [row for row in rows if row["video_id"] == record.video_id]
        assert [row["step"] for row in own] == list(range(len(own)))
        assert np.array_equal(np.array([row["features"] for row in own]), features[record.video_id].astype(np.float32))
        assert {(row["label"], row["subject"]) for row in own} == {(record.label, record.subject)}
        assert [row["clip_end"] for row in own] == list(range(1, len(own) + 1))
        assert own[-1]["end_s"] == pytest.approx(len(own) / 25)
    assert [row["x_light"] for row in rows if row["x_light"]] == ["day"] * len(features[records[2].video_id])
    assert json.loads(table.schema.metadata[b"har_pipeline"])["spec"] == store.spec(name).to_dict()


def test_without_a_manifest_the_whole_set_is_written(tmp_path: Path, made: Made) -> None:
    store, name, features, _ = made
    for source in (store, packed(tmp_path, store, name)):
        export_features(source, name, tmp_path / "x.npz")
        found = check_npz(tmp_path / "x.npz")
        assert found["video_id"].tolist() == sorted(features)
        assert np.array_equal(found["features"], np.concatenate([features[v] for v in sorted(features)]))
        assert "label" not in found


def packed(tmp_path: Path, store: FeatureStore, name: str) -> PackedStore:
    pack_features(store, name, tmp_path / "s.pack")
    return PackedStore(tmp_path / "s.pack")


def test_what_does_not_fit_into_memory_is_the_same(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    store, name, _, records = made
    files = [tmp_path / f"x.{suffix}" for suffix in ("npz", "h5", "parquet")]
    for file in files:
        export_features(store, name, file, records)
    monkeypatch.setattr(export, "available_memory", lambda: 100)
    for file in files:
        export_features(store, name, file.with_stem("y"), records)
    for read, first in ((check_npz, files[0]), (check_h5, files[1])):
        for key, value in read(first).items():
            assert np.array_equal(value, read(first.with_stem("y"))[key]), key
    assert pq.read_table(files[2]).equals(pq.read_table(tmp_path / "y.parquet"))
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


@pytest.mark.parametrize(("suffix", "package", "extra"), [("parquet", "pyarrow", "parquet"), ("h5", "h5py", "hdf5")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, suffix: str, package: str, extra: str
) -> None:
    def import_module(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(export.importlib, "import_module", import_module)
    with pytest.raises(RunError, match=rf"need {package}: pip install 'har-pipeline\[{extra}\]'"):
        export_features(made[0], made[1], tmp_path / f"x.{suffix}")


def test_wrong_requests_are_one_line_and_leave_no_file(tmp_path: Path, made: Made) -> None:
    store, name, _, records = made
    with pytest.raises(RunError, match=r"exported as \.npz, \.parquet, \.h5"):
        export_features(store, name, tmp_path / "x.mat")
    more = [*records, *manifest({"other": "walk"})]
    with pytest.raises(RunError, match=r"no features of 1 video \(other\).*--allow-missing"):
        export_features(store, name, tmp_path / "x.npz", more)
    assert export_features(store, name, tmp_path / "y.npz", more, allow_missing=True).missing == ("other",)
    with pytest.raises(StoreError, match="no features to export"):
        export_features(store, name, tmp_path / "x.npz", manifest({"other": "walk"}), allow_missing=True)
    with pytest.raises(HarError):
        export_features(store, "other", tmp_path / "x.npz")
    assert not list(tmp_path.glob("*x.*"))


def test_a_store_loads_straight_into_a_head_and_a_cross_validation(tmp_path: Path, made: Made) -> None:
    store, name, features, records = made
    write_manifest(tmp_path / "m.csv", records, root=Path("/"))
    for source in (store, packed(tmp_path, store, name)):
        X, y, groups = source.load("drawn", tmp_path / "m.csv")
        assert y.tolist() == [record.label for record in records]
        assert groups.tolist() == [0, 1, 2, 3] * 2
        for rows, record in zip(X, records, strict=True):
            assert rows.dtype == np.float32
            assert np.array_equal(rows, features[record.video_id].astype(np.float32))
        classifier = HeadClassifier(head="lstm", units=4, epochs=3, device="cpu")
        assert classifier.fit(X, y).predict_proba(X).shape == (8, 2)
        found = cross_val_score(HeadClassifier(head="mean_pool"), X, y, groups=groups, cv=GroupKFold(4))
        assert found.tolist() == [1.0] * 4
    assert len(set(store.load(name, records, apart=())[2])) == 8


def test_missing_videos_are_left_out_of_arrays_only_if_asked_for(made: Made) -> None:
    store, name, _, records = made
    more = [*manifest({"other": "walk"}), *records]
    with pytest.raises(RunError, match="--allow-missing"):
        store.load(name, more)
    X, y, groups = store.load(name, more, allow_missing=True)
    assert len(X) == len(y) == len(groups) == 8


def test_the_command_writes_the_file_and_says_what_is_in_it(tmp_path: Path, made: Made) -> None:
    store, name, _, records = made
    write_manifest(tmp_path / "m.csv", records, root=Path("/"))
    done = har(
        "features", "export", store.path, "--features", "drawn", "-o", "x.npz", "--manifest", "m.csv", cwd=tmp_path
    )
    assert f"x.npz: {name}, 8 videos" in done.stdout
    assert check_npz(tmp_path / "x.npz")["label"].tolist() == [record.label for record in records]
    done = har("features", "export", store.path, "-o", "x.npz", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["videos"] == 8
    done = har("features", "export", store.path, "-o", "x.txt", cwd=tmp_path, code=1)
    assert done.stderr.startswith("error: x.txt: features are exported as")
    done = har("features", "export", store.path, "-o", "no/x.npz", cwd=tmp_path, code=1)
    assert "no" in done.stderr
