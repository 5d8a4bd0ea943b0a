from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
from har_command import har
from video_files import make_video

from har_pipeline.core.errors import ExtractionError, UsageError
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.features.local import LocalSummary, extract_local, local_options
from har_pipeline.features.options import LocalOptions, describe_handcrafted
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.local import harris3d, trajectories
from har_pipeline.video.local.points import joined
from har_pipeline.video.local.spec import HANDCRAFTED, layer_blocks
from har_pipeline.video.local.worker import FINDERS, VideoFrames, find_points

NAMES = tuple(HANDCRAFTED)


def waving(path: Path, num_frames: int = 40, width: int = 160, height: int = 120) -> Path:
    """Write a textured square that goes back and forth before a textured background that is still."""
    rng = np.random.default_rng(0)
    behind, square = (rng.integers(0, 255, (side // 4, 200 // 4)).repeat(4, 0).repeat(4, 1) for side in (400, 32))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            frame = behind[:height, :width].copy()
            left = width // 3 + round(12 * np.sin(2 * np.pi * number / 20))
            frame[height // 3 : height // 3 + 32, left : left + 32] = square[:, :32]
            picture = np.repeat(frame[..., None], 3, axis=2).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def record(path: Path, name: str = "v0", **columns: object) -> VideoRecord:
    return VideoRecord(video_id=name, label="a", path=path, **columns)  # type: ignore[arg-type]


def run(records: list[VideoRecord], folder: Path, **options: object) -> tuple[FeatureStore, LocalSummary]:
    store = FeatureStore(folder / "store.zarr", create=True)
    return store, extract_local(records, store, LocalOptions(**{"workers": 1, **options}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_points_in_the_order_of_time(name: str, tmp_path: Path) -> None:
    path = waving(tmp_path / "v.avi")
    store, summary = run([record(path)], tmp_path, extractor=name, dtype="float32")
    spec = store.spec(summary.feature_set)
    blocks = layer_blocks(name, spec.layer)
    assert (spec.extractor, spec.weights, spec.layer) == (name, "none", HANDCRAFTED[name].default_layer)
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    stored = store.read(summary.feature_set, "v0", check=True)
    frames = list(VideoFrames(path, 240, max_frames=1000))
    found = joined(list(FINDERS[name](frames)))
    assert len(stored.features) == len(found) == summary.points > 10
    assert stored.features.shape[1] == spec.feature_dim == sum(blocks.values())
    middles = stored.clip_starts + stored.clip_ends
    assert (np.diff(np.clip(middles, 20, 60)) >= 0).all()  # at the ends the volumes are cut
    assert (stored.clip_starts >= 0).all()
    assert (stored.clip_ends <= 40).all()
    assert (stored.clip_starts < stored.clip_ends).all()
    np.testing.assert_allclose(stored.clip_times_s, np.stack([stored.clip_starts, stored.clip_ends], 1) / 25)
    values = np.concatenate([found.blocks[block] for block in blocks], axis=1)
    np.testing.assert_array_equal(np.sort(stored.features.sum(1)), np.sort(values.sum(1)))


def test_layers_are_descriptors_joined_in_their_order(tmp_path: Path) -> None:
    video = record(waving(tmp_path / "v.avi"))
    store, both = run([video], tmp_path, extractor="harris3d_hof", layer="hog+hof")
    _, hof = run([video], tmp_path, extractor="harris3d_hof")
    whole, part = (store.read(one.feature_set, "v0").features for one in (both, hof))
    assert whole.shape[1] == 72 + 90
    assert np.array_equal(whole[:, 72:], part)
    assert LocalOptions(extractor="harris3d_hof", layer="hof+hog").spec() == store.spec(both.feature_set)
    for layer in ("mbh", "hof+hof", "hof+"):
        with pytest.raises(UsageError, match=r"has no layer .*; it has: hog, hof, or several joined by"):
            LocalOptions(extractor="harris3d_hof", layer=layer)


@pytest.mark.parametrize("name", NAMES)
def test_the_most_points_are_a_sample_that_is_noted(name: str, tmp_path: Path) -> None:
    video = record(waving(tmp_path / "v.avi"))
    store, whole = run([video], tmp_path, extractor=name)
    _, few = run([video], tmp_path, extractor=name, max_points=7)
    again = extract_local(
        [video], FeatureStore(tmp_path / "again.zarr", create=True), LocalOptions(extractor=name, max_points=7)
    )
    assert whole.feature_set != few.feature_set == again.feature_set
    everything, sample = (store.read(one.feature_set, "v0") for one in (whole, few))
    assert sample.features.shape[0] == 7
    assert {row.tobytes() for row in sample.features} <= {row.tobytes() for row in everything.features}
    assert few.notes["v0"] == (f"{len(everything.features)} found, a sample of 7 kept, see --max-points",)
    assert np.array_equal(FeatureStore(tmp_path / "again.zarr").read(few.feature_set, "v0").features, sample.features)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("num_frames", "width", "height"), [(1, 160, 120), (20, 16, 16), (3, 160, 120)])
def test_a_video_without_points_has_one_row_of_zeros_and_a_note(
    name: str, num_frames: int, width: int, height: int, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "v.avi", num_frames, width=width, height=height)
    store, summary = run([record(path)], tmp_path, extractor=name)
    stored = store.read(summary.feature_set, "v0")
    assert stored.features.shape[0] == 1
    assert not stored.features.any()
    assert (stored.clip_starts.tolist(), stored.clip_ends.tolist()) == ([0], [num_frames])
    (note,) = summary.notes["v0"]
    assert note == f"no {HANDCRAFTED[name].finds} was found: one row of zeros stands for none"


def test_large_frames_are_scaled_down_and_small_ones_stay(tmp_path: Path) -> None:
    path = waving(tmp_path / "v.avi", 3)
    assert [frame.shape for frame in VideoFrames(path, 240, max_frames=9)] == [(120, 160, 3)] * 3
    assert [frame.shape for frame in VideoFrames(path, 60, max_frames=9)] == [(60, 80, 3)] * 3
    frames, _ = find_points(path, "idt", short_side=60, start=1, stop=3)
    assert [frame.shape for frame in frames] == [(60, 80, 3)] * 2


def test_a_row_is_a_part_of_its_file(tmp_path: Path) -> None:
    path = waving(tmp_path / "v.avi", 60)
    store, summary = run([record(path, start_frame=20, end_frame=50)], tmp_path, extractor="idt")
    stored = store.read(summary.feature_set, "v0")
    assert stored.num_frames == 30
    assert stored.clip_starts.min() >= 20
    assert stored.clip_ends.max() <= 50


def test_one_bad_video_costs_itself_only_and_a_job_goes_on(tmp_path: Path) -> None:
    (tmp_path / "bad.avi").write_bytes(b"no video")
    rows = [
        record(waving(tmp_path / "v.avi", 20)),
        record(tmp_path / "bad.avi", "v1"),
        record(tmp_path / "none.avi", "v2"),
    ]
    depth = VideoRecord(video_id="v3", label="a", depth_path=tmp_path)
    store, summary = run([*rows, depth], tmp_path, extractor="idt")
    assert (summary.done, sorted(summary.failed)) == (1, ["v1", "v2", "v3"])
    assert "bad.avi" in summary.failed["v1"]
    assert summary.failed["v3"] == "v3: its row has no path"
    assert set(store.failures(summary.feature_set)) == {"v1", "v2", "v3"}
    _, again = run([*rows, depth], tmp_path, extractor="idt")
    assert (again.already, again.done, sorted(again.failed_before)) == (1, 0, ["v1", "v2"])
    _, long = run([record(waving(tmp_path / "v.avi", 20), "v4")], tmp_path, extractor="idt", max_frames=10)
    assert "more than 10 frames" in long.failed["v4"]


def test_options_of_a_spec_and_specs_of_another_version() -> None:
    for name in NAMES:
        options = LocalOptions(extractor=name, short_side=100, max_points=50, dtype="float32")
        assert local_options(options.spec()) == dataclasses.replace(options, layer=options.layer_name)
        old = dataclasses.replace(options.spec(), preprocess="something else;at most 50 rows")
        with pytest.raises(ExtractionError, match=r"older version of .*: extract it again"):
            local_options(old)
    assert [row["extractor"] for row in describe_handcrafted()] == list(NAMES)


def test_the_spec_names_the_numbers_that_a_later_version_may_change() -> None:
    harris, idt = (HANDCRAFTED[name].method for name in ("harris3d_hof", "idt"))
    assert f"k {harris3d.K:g},threshold {harris3d.THRESHOLD:g}" in harris
    assert f"{trajectories.STEPS} frames,grid {trajectories.GRID_PX} px,volume {trajectories.VOLUME_PX} px" in idt


def test_from_the_command_line(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", [record(waving(tmp_path / "v.avi", 20))])
    (tmp_path / "bad.avi").write_bytes(b"no video")
    command = ("extract", "m.csv", "s.zarr", "--extractor", "idt", "--workers", "1")
    done = har(*command, "--max-points", "9", cwd=tmp_path)
    assert "1 videos done, 0 already there, 0 failed, of 1; 9 descriptors of 20 frames" in done.stdout
    assert "a sample of 9 kept" in done.stderr
    shown = json.loads(har(*command, "--max-points", "9", "--json", cwd=tmp_path).stdout)
    assert (shown["already"], shown["points"]) == (1, 0)
    for options, message in {
        ("--clip-len", "3"): "idt is handcrafted and has no --clip-len",
        ("--weights", "random"): "idt is handcrafted and has no --weights",
        ("--stream", "flow"): "idt is handcrafted and has no --stream",
        ("--fps", "10"): "idt is handcrafted and has no --fps",
        ("--extractor", "i3d"): "harris3d_hof and idt are extracted alone",
    }.items():
        assert message in " ".join(har(*command, *options, cwd=tmp_path, code=2).stderr.replace("│", " ").split())
    net = ("extract", "m.csv", "s.zarr", "--extractor", "efficientnet_lite0", "--max-points", "9")
    refused = har(*net, cwd=tmp_path, code=2).stderr.replace("│", " ")
    assert "efficientnet_lite0 is a net and has no --max-points" in " ".join(refused.split())
    assert "it has: trajectory, hog, hof, mbh" in har(*command, "--layer", "fc6", cwd=tmp_path, code=2).stderr
    unknown = har("extract", "m.csv", "s.zarr", "--extractor", "vgg", cwd=tmp_path, code=2).stderr
    assert "choose from: c3d, " in " ".join(unknown.replace("│", " ").split())
    models = har("models", "idt", cwd=tmp_path).stdout
    assert "idt  handcrafted, no weights, rgb" in models
    assert {"idt", "harris3d_hof"} <= {
        row.get("extractor") for row in json.loads(har("models", "--json", cwd=tmp_path).stdout)
    }


def test_a_picture_of_the_points(tmp_path: Path) -> None:
    waving(tmp_path / "v.avi")
    for name in NAMES:
        done = har("points", "v.avi", "-o", f"{name}.png", "--extractor", name, "--pictures", "3", cwd=tmp_path)
        assert f"{HANDCRAFTED[name].plural} in 40 frames" in done.stdout
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(har("points", "v.avi", "-o", "a.jpg", "--json", cwd=tmp_path).stdout)["trajectories"] > 10
    assert "ends in .png or .jpg" in har("points", "v.avi", "-o", "a.txt", cwd=tmp_path, code=2).stderr
    assert "no such file" in har("points", "w.avi", "-o", "a.png", cwd=tmp_path, code=1).stderr
    (tmp_path / "bad.avi").write_bytes(b"no video")
    assert "bad.avi" in har("points", "bad.avi", "-o", "b.png", cwd=tmp_path, code=1).stderr
    assert not (tmp_path / "b.png").exists()
