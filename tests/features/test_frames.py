from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from depth_files import HEIGHT, WIDTH, moving_body, write_ffv1, write_folder, write_mat
from PIL import Image
from video_files import make_video, numbered_frame

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, StoreError
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.features.frames import (
    RawSummary,
    choose_frames,
    frame_shape,
    open_frames,
    options_of,
    prepare_frames,
    store_raw_frames,
)
from har_pipeline.features.motion import motion_spec
from har_pipeline.features.options import MotionOptions, RawOptions, Window
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams, load_features
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.depth import CausalDepth, prepare_depth
from har_pipeline.video.frame_worker import scale_rgb
from har_pipeline.video.person import PersonWindow
from har_pipeline.video.preprocess import fit_frame, parse_resize


def depth_records(folder: Path, count: int = 3) -> list[VideoRecord]:
    """Return rows of PNG folders of 12, 13 ... frames."""
    return [
        VideoRecord(
            video_id=f"v{i}", label="ab"[i % 2], depth_path=write_folder(folder / f"v{i}", moving_body(12 + i, seed=i))
        )
        for i in range(count)
    ]


def run(records: list[VideoRecord], folder: Path, **options: object) -> tuple[FeatureStore, RawSummary]:
    store = FeatureStore(folder / "store.zarr", create=True)
    return store, store_raw_frames(records, store, RawOptions(**{"size": 16, "workers": 1, **options}))  # type: ignore[arg-type]


def test_prepared_depth_is_stored_frame_by_frame(tmp_path: Path) -> None:
    records = depth_records(tmp_path)
    store, summary = run(records, tmp_path, workers=2, fps=25.0)
    assert (summary.total, summary.done, summary.frames, summary.failed) == (3, 3, 12 + 13 + 14, {})
    spec = store.spec(summary.feature_set)
    assert (spec.stream, spec.dtype, spec.resize, spec.feature_dim) == ("depth", "uint8", "box-stretch-16", 256)
    assert frame_shape(spec) == (1, 16, 16)
    for i, record in enumerate(records):
        stored = store.read(summary.feature_set, record.video_id, check=True)
        assert stored.features.dtype == np.uint8
        assert np.array_equal(stored.features.reshape(-1, 16, 16), prepare_depth(moving_body(12 + i, seed=i), 16))
        assert stored.clip_starts.tolist() == list(range(12 + i))
        assert stored.clip_times_s[1].tolist() == [0.04, 0.08]
        assert (stored.num_frames, stored.decode_notes) == (12 + i, ())
    assert list(store.verify(summary.feature_set)) == [None, None, None]
    assert store.num_clips(summary.feature_set) == {"v0": 12, "v1": 13, "v2": 14}


def test_the_table_for_training_holds_bytes(tmp_path: Path) -> None:
    records = depth_records(tmp_path)
    store, summary = run(records, tmp_path)
    table = load_features(FeatureStreams(store, [summary.feature_set]), records, ["v2", "v0"], ["a", "b"])
    assert table.features.dtype == np.uint8
    assert table.offsets.tolist() == [0, 14, 26]
    assert np.array_equal(table.features[14:].reshape(-1, 16, 16), prepare_depth(moving_body(12), 16))


def test_every_kind_of_depth_file_gives_the_same_frames(tmp_path: Path) -> None:
    frames = moving_body()
    paths = {
        "png": write_folder(tmp_path / "png", frames),
        "mat": write_mat(tmp_path / "a.mat", frames),
        "ffv1": write_ffv1(tmp_path / "a.mkv", frames),
    }
    records = [VideoRecord(video_id=name, label="a", depth_path=path) for name, path in paths.items()]
    store, summary = run(records, tmp_path)
    stored = [store.read(summary.feature_set, name).features for name in paths]
    assert np.array_equal(stored[0], stored[1])
    assert np.array_equal(stored[0], stored[2])


def test_causal_frames_are_a_set_of_their_own(tmp_path: Path) -> None:
    records = depth_records(tmp_path, 1)
    store, summary = run(records, tmp_path, causal=True)
    _, whole = run(records, tmp_path)
    assert summary.feature_set != whole.feature_set
    spec = store.spec(summary.feature_set)
    assert (spec.resize, frame_shape(spec)) == ("causal-box-stretch-16", (1, 16, 16))
    stored = store.read(summary.feature_set, "v0").features.reshape(-1, 16, 16)
    assert np.array_equal(stored, CausalDepth(16).push(moving_body()))
    assert options_of(spec).spec() == spec
    with pytest.raises(ExtractionError, match="rgb frames are not cropped"):
        RawOptions(stream="rgb", causal=True)


def test_rows_are_parts_of_files(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat", moving_body())
    record = VideoRecord(video_id="part", label="a", depth_path=path, start_frame=2, end_frame=7)
    store, summary = run([record], tmp_path, aspect="keep")
    stored = store.read(summary.feature_set, "part")
    assert stored.clip_starts.tolist() == [2, 3, 4, 5, 6]
    expected = prepare_depth(moving_body()[2:7], 16, "keep")
    assert np.array_equal(stored.features.reshape(-1, 16, 16), expected)
    assert store.spec(summary.feature_set).resize == "box-keep-16"


def test_rgb_is_the_whole_frame_scaled(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mkv", 6, codec="ffv1", pixel_format="bgr0", width=160, height=120)
    records = [VideoRecord(video_id="a", label="a", path=video)]
    store, stretched = run(records, tmp_path, stream="rgb", size=32)
    spec = store.spec(stretched.feature_set)
    assert (spec.resize, frame_shape(spec)) == ("stretch-32", (3, 32, 32))
    frames = store.read(stretched.feature_set, "a").features.reshape(-1, 32, 32, 3)
    for number, frame in enumerate(frames):
        assert np.array_equal(frame, scale_rgb(numbered_frame(number), 32, "stretch"))
    kept = store.read(run(records, tmp_path, stream="rgb", size=32, aspect="keep")[1].feature_set, "a")
    image = kept.features.reshape(-1, 32, 32, 3)[2]
    assert not image[:4].any()
    assert not image[28:].any()
    # The aspect is kept: 24 of 32 rows, each the mean of 5 x 5 px.
    means = numbered_frame(2).reshape(24, 5, 32, 5, 3).mean(axis=(1, 3))
    assert np.abs(image[4:28] - means).max() <= 1


def test_rgb_may_be_scaled_while_it_is_converted(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 6, codec="ffv1", pixel_format="yuv444p")
    records = [VideoRecord(video_id="a", label="a", path=path)]
    store, area = run(records, tmp_path, stream="rgb", size=32)
    _, fast = run(records, tmp_path, stream="rgb", size=32, resize_method="swscale")
    assert area.feature_set != fast.feature_set
    frames, others = (store.read(one.feature_set, "a").features.astype(int) for one in (area, fast))
    assert 0 < np.abs(frames - others).mean() < 0.5, "levels"
    options = options_of(store.spec(fast.feature_set))
    assert options.resize_method == "swscale"
    assert options.spec() == store.spec(fast.feature_set)


def test_rgb_may_be_scaled_as_pillow_does(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", 3, codec="ffv1", pixel_format="yuv444p")
    store, done = run(
        [VideoRecord(video_id="a", label="a", path=path)], tmp_path, stream="rgb", size=32, resize_method="bicubic"
    )
    wanted = [Image.fromarray(frame).resize((32, 32), Image.Resampling.BICUBIC) for _, frame in FrameReader(path)]
    frames = store.read(done.feature_set, "a").features.reshape(-1, 32, 32, 3)
    assert np.array_equal(frames, np.stack([np.asarray(image) for image in wanted]))


def test_one_bad_video_costs_itself_only(tmp_path: Path) -> None:
    records = depth_records(tmp_path)
    (tmp_path / "empty").mkdir()
    zero = tmp_path / "zero.mat"
    zero.touch()
    dark = write_mat(tmp_path / "dark.mat", np.zeros((3, 8, 8), np.uint16))
    for name, path in (("empty", tmp_path / "empty"), ("zero", zero), ("dark", dark), ("gone", tmp_path / "gone.mkv")):
        records.append(VideoRecord(video_id=name, label="a", depth_path=path))
    records.append(VideoRecord(video_id="colour", label="a", path=tmp_path / "c.avi"))
    (tmp_path / "v1" / "MDepth-00000003.png").unlink()
    store, summary = run(records, tmp_path, workers=2)
    assert (summary.done, len(summary.failed), summary.finished, summary.total) == (3, 5, 8, 8)
    assert summary.notes == {"v1": ("a PNG is missing in the numbering: MDepth-00000003.png",)}
    stored = store.read(summary.feature_set, "v1")
    assert stored.clip_starts.tolist() == [0, 1, *range(3, 13)]
    assert stored.decode_notes == summary.notes["v1"]
    for name, reason in {
        "empty": "empty: the folder holds no depth frames",
        "zero": "zero.mat: the file is empty",
        "dark": "dark.mat: no frame has any foreground",
        "gone": "gone.mkv: does not exist",
        "colour": "colour: its row has no depth_path",
    }.items():
        assert reason in summary.failed[name]
    assert store.failures(summary.feature_set) == summary.failed


def test_what_failed_is_tried_again_only_when_asked(tmp_path: Path) -> None:
    records = depth_records(tmp_path, 2)
    for file in (tmp_path / "v0").iterdir():
        file.rename(file.with_suffix(".hidden"))
    store, first = run(records, tmp_path)
    assert list(first.failed) == ["v0"]
    for file in (tmp_path / "v0").iterdir():
        file.rename(file.with_suffix(".png"))
    _, second = run(records, tmp_path)
    assert (second.done, second.already, list(second.failed_before)) == (0, 1, ["v0"])
    _, third = run(records, tmp_path, retry_failed=True)
    assert (third.done, third.failed, store.failures(third.feature_set)) == (1, {}, {})


def test_a_video_that_hangs_or_kills_its_process_costs_itself_only(tmp_path: Path) -> None:
    records = depth_records(tmp_path)
    os.mkfifo(tmp_path / "v1" / "MDepth-00000014.png")  # reading it waits for ever
    _, summary = run(records, tmp_path, time_limit_s=4.0)
    assert (summary.done, list(summary.failed)) == (2, ["v1"])
    assert "took longer than the limit of 4 s" in summary.failed["v1"]


def test_shards_are_parts_of_the_whole(tmp_path: Path) -> None:
    records = depth_records(tmp_path)
    store, first = run(records, tmp_path, shard=(1, 2))
    _, second = run(records, tmp_path, shard=(2, 2))
    assert (first.total, second.total) == (2, 1)
    assert store.video_ids(first.feature_set) == ["v0", "v1", "v2"]


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    records = depth_records(tmp_path, 8)
    slow = tmp_path / "v7" / "MDepth-00000099.png"
    os.mkfifo(slow)
    write_manifest(tmp_path / "manifest.csv", records)
    command = [
        sys.executable,
        "-m",
        "har_pipeline",
        "frames",
        "manifest.csv",
        "store.zarr",
        "--size",
        "16",
        "--workers",
        "1",
    ]
    job = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    name = RawOptions(size=16).spec().name
    deadline = time.monotonic() + 600
    while not (tmp_path / "store.zarr" / name / "v6").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    slow.unlink()
    store, summary = run(records, tmp_path)
    assert (summary.already, summary.done) == (7, 1)
    assert np.array_equal(
        store.read(name, "v3", check=True).features.reshape(-1, 16, 16), prepare_depth(moving_body(15, seed=3), 16)
    )


def test_progress_counts_every_video(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    seen: list[int] = []
    store_raw_frames(
        depth_records(tmp_path), store, RawOptions(size=16, workers=1), lambda state: seen.append(state.finished)
    )
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "flow"}, r"stream must be one of \('depth', 'rgb'\), not 'flow'"),
        ({"aspect": "crop"}, "aspect must be one of"),
        ({"size": 0}, "size must be at least 8"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"shard": (3, 2)}, "shard 3/2"),
        ({"resize_method": "bicubic"}, "resize_method=bicubic is for stream=rgb, without a window"),
        (
            {"resize_method": "swscale", "stream": "rgb", "aspect": "keep"},
            "resize_method=swscale is for aspect=stretch",
        ),
        ({"resize_method": "swscale", "stream": "rgb", "window": "person"}, "resize_method=swscale is for stream=rgb"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ExtractionError, match=message):
        RawOptions(**options)  # type: ignore[arg-type]


def test_a_manifest_without_the_stream(tmp_path: Path) -> None:
    records = [VideoRecord(video_id="a", label="a", path=tmp_path / "a.avi")]
    with pytest.raises(ExtractionError, match=r"no row of the manifest has a depth_path; .*--stream rgb"):
        run(records, tmp_path)
    with pytest.raises(ExtractionError, match="no row of the manifest has a depth_path"):
        prepare_frames(records, tmp_path / "none.zarr", "depth")
    assert not (tmp_path / "none.zarr").exists()


def test_other_features_have_no_frame_shape() -> None:
    spec = FeatureSpec(extractor="vgg16", weights="random:0", layer="fc6", feature_dim=4096)
    with pytest.raises(FeatureMismatchError, match="not raw frames; prepare frames with `har frames`"):
        frame_shape(spec)


@pytest.mark.needs_real_data
def test_real_depth_and_colour(real_data: Path, tmp_path: Path) -> None:
    assert (HEIGHT, WIDTH) == (48, 64)
    records = [
        VideoRecord(video_id=name, label="a", depth_path=real_data / f"depth/utd_mhad/{name}_depth.mat")
        for name in ("a1_s1_t1", "a27_s4_t4")
    ]
    store, summary = run(records, tmp_path, size=64)
    assert (summary.done, summary.failed, summary.notes) == (2, {}, {})
    assert store.read(summary.feature_set, "a1_s1_t1").features.shape[1] == 64 * 64
    colour = [VideoRecord(video_id="c", label="a", path=next((real_data / "clips/kth").rglob("*.avi")), end_frame=30)]
    store, summary = run(colour, tmp_path, size=64, stream="rgb")
    assert store.read(summary.feature_set, "c").features.shape == (30, 64 * 64 * 3)


@pytest.mark.parametrize(
    ("kind", "written", "shape"),
    [("person", "short60-person34x54", (54, 34)), ("pair", "fit-54x34", (34, 54))],
)
def test_windows_of_people_are_a_set_of_their_own(
    tmp_path: Path, kind: Window, written: str, shape: tuple[int, int]
) -> None:
    records = [
        VideoRecord(video_id=f"v{i}", label="a", path=make_video(tmp_path / f"{i}.mp4", 14 + i)) for i in range(2)
    ]
    store, whole = run(records, tmp_path, stream="rgb")
    _, summary = run(records, tmp_path, stream="rgb", window=kind)
    spec = store.spec(summary.feature_set)
    assert (spec.resize, spec.feature_dim, spec.dtype) == (written, 54 * 34, "uint8")
    assert frame_shape(spec) == (1, *shape)
    assert options_of(spec).spec() == spec == RawOptions(stream="rgb", window=kind, size=999).spec()
    mode = parse_resize(written)
    for record in records:
        assert record.path
        stored = store.read(summary.feature_set, record.video_id, check=True)
        window = PersonWindow(mode) if mode.person else None
        frames = []
        for number, frame in FrameReader(record.path):
            if window is None:
                frames.append(fit_frame(frame, *shape[::-1]))
            else:
                frames += [one.window for one in window.push(number, frame)]
        frames += [one.window for one in window.finish()] if window else []
        assert np.array_equal(stored.features.reshape(-1, *shape), np.stack(frames))
    assert choose_frames(store, "rgb") == whole.feature_set
    assert choose_frames(store, "rgb", windows=True) == summary.feature_set
    assert open_frames(tmp_path / "store.zarr", "rgb", windows=True)[1] == summary.feature_set
    prepared = prepare_frames(records, tmp_path / "store.zarr", "rgb", windows=True, workers=1)
    assert prepared is not None
    assert (prepared.feature_set, prepared.already) == (summary.feature_set, 2)
    with pytest.raises(
        FeatureMismatchError, match=f"motion maps are made of square frames, not of {shape[1]}x{shape[0]} px"
    ):
        motion_spec(spec, MotionOptions())


def test_a_video_without_movement_has_windows_and_a_note(tmp_path: Path) -> None:
    still = VideoRecord(video_id="s", label="a", path=make_video(tmp_path / "s.mp4", 1))
    store, summary = run([still], tmp_path, stream="rgb", window="person")
    assert store.read(summary.feature_set, "s").features.shape == (1, 54 * 34)
    assert summary.notes["s"] == ("nothing moves: the window around the person shows the middle of the frame",)
    with pytest.raises(StoreError, match="no windows of rgb; prepare them with `har frames --window person`"):
        open_frames(FeatureStore(tmp_path / "empty.zarr", create=True).path, "rgb", windows=True)
    with pytest.raises(ExtractionError, match="window is for rgb"):
        RawOptions(stream="depth", window="person")
