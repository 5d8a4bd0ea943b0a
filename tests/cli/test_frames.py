from __future__ import annotations

import json
from pathlib import Path

import pytest
from depth_files import moving_body, write_folder
from typer.testing import CliRunner
from video_files import make_video

from har_pipeline.cli import app
from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.builders import build_manifest
from har_pipeline.datasets.manifests import read_manifest, write_manifest
from har_pipeline.datasets.splits import make_splits
from har_pipeline.features.store import FeatureStore


def ntu_tree(root: Path) -> Path:
    """Two actions by subjects 1 to 4 (1, 2, 4 train in xsub), seen by three cameras."""
    for camera in (1, 2, 3):
        for subject in (1, 2, 3, 4):
            for action in (1, 2):
                name = f"S001C{camera:03d}P{subject:03d}R001A{action:03d}"
                frames = moving_body(10 + action, seed=100 * camera + 10 * subject + action)
                write_folder(root / "nturgb+d_depth_masked" / name, frames)
    return root


def har(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.mark.usefixtures("pictures_drawn")
def test_an_ntu_folder_becomes_frames_and_the_papers_splits(tmp_path: Path) -> None:
    manifest, store = tmp_path / "manifest.csv", tmp_path / "store.zarr"
    assert "next: har frames" in har("manifest", "build", "ntu", str(ntu_tree(tmp_path)), "-o", str(manifest))
    arguments = ["frames", str(manifest), str(store), "--size", "16", "--workers", "2"]
    done = json.loads(har(*arguments, "--json", "--lengths", str(tmp_path / "lengths.png")))
    assert (done["total"], done["done"], done["failed"]) == (24, 24, {})
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "0 videos done, 24 already there, 0 failed, of 24" in har(*arguments)
    opened = FeatureStore(store)
    assert opened.feature_sets() == [done["feature_set"]]
    records = read_manifest(manifest)
    (xsub,) = make_splits(records, "xsub", val_fraction=0)
    (xview,) = make_splits(records, "xview", val_fraction=0)
    subjects = {record.video_id: record.subject for record in records}
    cameras = {record.video_id: record.camera for record in records}
    assert {subjects[video_id] for video_id in xsub.train} == {"P001", "P002", "P004"}
    assert {subjects[video_id] for video_id in xsub.test} == {"P003"}
    assert {cameras[video_id] for video_id in xview.train} == {"C002", "C003"}
    assert {cameras[video_id] for video_id in xview.test} == {"C001"}
    assert "24 videos checked, 0 damaged" in har("features", "verify", str(store))


def test_failures_are_listed_and_the_exit_code_is_1(tmp_path: Path) -> None:
    root = ntu_tree(tmp_path)
    records = build_manifest("ntu", root)
    write_manifest(tmp_path / "manifest.csv", records)
    assert records[0].depth_path is not None
    for png in records[0].depth_path.iterdir():
        png.write_bytes(b"")
    arguments = ["frames", str(tmp_path / "manifest.csv"), str(tmp_path / "s.zarr"), "--size", "16", "--workers", "1"]
    done = json.loads(har(*arguments, "--json", code=1))
    assert list(done["failed"]) == [records[0].video_id]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert f"failed in an earlier run: {records[0].video_id}" in again.stderr
    write_folder(records[0].depth_path, moving_body())
    assert "1 videos done, 23 already there, 0 failed" in har(*arguments, "--retry-failed")


def test_rgb_frames_of_a_manifest(tmp_path: Path) -> None:
    record = VideoRecord(video_id="a", label="a", path=make_video(tmp_path / "a.avi", 9))
    write_manifest(tmp_path / "manifest.csv", [record])
    arguments = ["frames", str(tmp_path / "manifest.csv"), str(tmp_path / "s.zarr"), "--size", "32"]
    done = json.loads(har(*arguments, "--stream", "rgb", "--aspect", "keep", "--json"))
    spec = FeatureStore(tmp_path / "s.zarr").spec(done["feature_set"])
    assert (done["frames"], spec.stream, spec.resize, spec.feature_dim) == (9, "rgb", "keep-32", 32 * 32 * 3)


@pytest.mark.parametrize("options", [["--aspect", "crop"], ["--size", "0"], ["--shard", "3/2"], ["--lengths", "a.txt"]])
def test_options_that_make_no_sense_are_usage_errors(tmp_path: Path, options: list[str]) -> None:
    har("frames", str(tmp_path / "manifest.csv"), str(tmp_path / "s.zarr"), *options, code=2)
    assert not (tmp_path / "s.zarr").exists()


def test_synth_writes_the_set_that_is_decided_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from har_pipeline.synthetic import dataset as synthetic

    monkeypatch.setattr(synthetic, "ACTIONS", ("boxing",))
    har("synth", str(tmp_path), "--subjects", "1", "--scenario", "d1", "--depth", "--decided-early", "--workers", "1")
    (record,) = read_manifest(tmp_path / "manifest.csv")
    assert record.depth_path is not None
    assert 180 <= len(list(record.depth_path.iterdir())) <= 240
    assert json.loads((tmp_path / "dataset.json").read_text())["decided_early"] is True
