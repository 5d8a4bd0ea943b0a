"""Packing, and training from a pack, on the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from feature_sets import blobs, feature_store, manifest
from raw_sets import bar_video, raw_store
from typer.testing import CliRunner, Result

from har_pipeline.cli import app
from har_pipeline.core.errors import HarError
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.features.pack import PackedStore

CLASSES = ("boxing", "walking", "running")


def har(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_on_the_command_line(tmp_path: Path) -> None:
    features, labels = blobs(CLASSES, 6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    write_manifest(tmp_path / "manifest.csv", manifest(labels), root=Path("/nowhere"))
    done = har("features", "pack", store.path, "--json")
    assert done.exit_code == 0, done.exception
    (summary,) = json.loads(done.stdout)
    pack = Path(summary["path"])
    assert (pack, summary["feature_set"], summary["videos"]) == (tmp_path / "store.pack", name, 18)
    assert "up to date" in har("features", "pack", store.path).stdout
    (row,) = json.loads(har("features", "list", pack, "--json").stdout)
    assert (row["feature_set"], row["videos"]) == (name, 18)
    shown = json.loads(har("features", "show", pack, "--video-id", "boxing-0", "--json").stdout)
    assert (shown["pack"]["state"], shown["record"]["video_id"]) == ("up to date", "boxing-0")
    assert "18 videos checked, 0 damaged" in har("features", "verify", pack).stdout
    options = ("--head", "mean_pool", "--device", "cpu", "--json")
    results = []
    for source in (store.path, pack):
        done = har("train", tmp_path / "manifest.csv", source, *options, "-o", tmp_path / f"{source.suffix[1:]}-run")
        assert done.exit_code == 0, (done.output, done.exception)
        results.append((tmp_path / f"{source.suffix[1:]}-run" / "scores.csv").read_bytes())
    assert results[0] == results[1]
    path, last = pack / f"{name}.safetensors", store.read(name, max(features)).features.tobytes()
    path.write_bytes(path.read_bytes().replace(last, last[:-1] + bytes([last[-1] ^ 1])))
    failed = har("features", "verify", pack)
    assert failed.exit_code == 1
    assert "1 damaged (run `har features pack` again)" in failed.stdout
    assert har("features", "verify", pack, "--delete").exit_code == 2
    missing = har("features", "pack", store.path, "--features", "vgg16").exception
    assert isinstance(missing, HarError)
    assert f"no feature set starts with 'vgg16'; there are: {name}" in str(missing)
    missing = har("train", tmp_path / "manifest.csv", pack, "--features", "vgg16", "-o", tmp_path / "no").exception
    assert isinstance(missing, HarError)
    assert "`har features pack` adds others" in str(missing)


def test_the_next_command_is_the_one_that_reads_what_was_packed(tmp_path: Path) -> None:
    raw, raw_name = raw_store(tmp_path / "a.zarr", {"0-0": bar_video(0, 3)})
    done = har("features", "pack", raw.path)
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines()[1:] == [f"next: har train-video MANIFEST --store {tmp_path / 'a.pack'} ..."]
    _, name = feature_store(raw.path, blobs(CLASSES, 2)[0])
    done = har("features", "pack", raw.path, "--features", raw_name, "--features", name)
    assert done.stdout.splitlines()[2:] == [
        f"next: har train MANIFEST {tmp_path / 'a.pack'} ...",
        f"next: har train-video MANIFEST --store {tmp_path / 'a.pack'} ...",
    ]
    done = har("features", "pack", raw.path, "--features", name)
    assert done.stdout.splitlines()[1:] == [f"next: har train MANIFEST {tmp_path / 'a.pack'} ..."]


def test_without_a_name_every_set_is_shown_and_packed(tmp_path: Path) -> None:
    features, _ = blobs(CLASSES, 2)
    store, first = feature_store(tmp_path / "store.zarr", features)
    _, second = feature_store(store.path, features, weights="sha256:" + "1" * 64)
    names = sorted([first, second])
    shown = har("features", "show", store.path)
    assert shown.exit_code == 0, shown.exception
    assert all(f"feature_set: {name}" in shown.stdout for name in names)
    assert [one["feature_set"] for one in json.loads(har("features", "show", store.path, "--json").stdout)] == names
    store.create_feature_set(dataclasses.replace(store.spec(first), layer="failed"))  # of a job without success
    done = har("features", "pack", store.path, "--json")
    assert done.exit_code == 0, done.exception
    assert [one["feature_set"] for one in json.loads(done.stdout)] == names
    assert PackedStore(tmp_path / "store.pack").feature_sets() == names
