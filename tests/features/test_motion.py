"""Motion maps of raw frames, against values by hand and another implementation of the reduction in size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from feature_sets import split_of
from raw_sets import SIZE, bar_video, drawn_videos, raw_store

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, StoreError
from har_pipeline.core.records import VideoRecord, VideoSource
from har_pipeline.features.motion import motion_features, motion_map, motion_options, motion_spec
from har_pipeline.features.options import MotionOptions, RawOptions
from har_pipeline.features.reduce import ReduceOptions, reduced_spec
from har_pipeline.inference.load import load_run
from har_pipeline.inference.predict import predict, predict_scores
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.options import TrainConfig


def test_a_map_by_hand() -> None:
    """Four differences in two parts: two px of the first frame go out, one other px rises and falls by 7."""
    frames = np.zeros((5, 2, 2, 1), np.uint8)
    frames[0, 0, 0], frames[0, 0, 1], frames[3, 1, 1] = 200, 100, 7
    found = motion_map(frames, MotionOptions(size=2, parts=2))
    plain = np.array([200, 100, 0, 0, 0, 0, 0, 14.0])
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain), rtol=1e-6)
    halved = np.array([75, 3.5])  # the mean over the four px of each part
    np.testing.assert_allclose(motion_map(frames, MotionOptions(size=1, parts=2)), halved / np.linalg.norm(halved))


@pytest.mark.parametrize(("side", "size"), [(64, 32), (48, 32), (50, 32), (33, 32), (32, 32)])
def test_maps_shrink_as_opencv_shrinks_areas(side: int, size: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, side, side, 1), dtype=np.uint8)
    parts = np.array_split(np.abs(np.diff(frames[..., 0].astype(np.float64), axis=0)), 3)
    plain = np.concatenate(
        [cv2.resize(part.sum(0), (size, size), interpolation=cv2.INTER_AREA).ravel() for part in parts]
    )
    found = motion_map(frames, MotionOptions(size=size))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain), rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_videos_shorter_than_the_parts_have_empty_maps(length: int) -> None:
    frames = bar_video(0, length).reshape(length, SIZE, SIZE, 1)
    maps = motion_map(frames, MotionOptions(size=4)).reshape(3, 16)
    assert maps.any(axis=1).tolist() == [number < length - 1 for number in range(3)]


def test_what_stands_still_has_no_norm() -> None:
    assert not motion_map(np.full((9, 4, 4, 3), 200, np.uint8), MotionOptions(size=2)).any()


def test_the_spec_names_its_frames_and_leads_back_to_them() -> None:
    for raw in (RawOptions(), RawOptions(size=48, aspect="keep", causal=True), RawOptions(stream="rgb")):
        source, options = raw.spec(), MotionOptions(size=16, parts=4)
        spec = motion_spec(source, options)
        assert source.name in spec.preprocess
        assert spec.feature_dim == 4 * 16 * 16 * raw.channels
        assert motion_options(spec) == (source, options)
    assert len({motion_spec(RawOptions(size=size).spec(), MotionOptions()).name for size in (48, 64)}) == 2


def test_only_frames_have_motion_maps() -> None:
    spec = RawOptions().spec()
    with pytest.raises(FeatureMismatchError, match="not raw frames"):
        motion_spec(motion_spec(spec, MotionOptions()), MotionOptions())
    with pytest.raises(FeatureMismatchError, match="is reduced"):
        motion_spec(reduced_spec(spec, split_of(["a"], ["b"], []), ReduceOptions(dim=4096)), MotionOptions())
    with pytest.raises(ExtractionError, match="no larger than the frames, 64 px"):
        motion_spec(spec, MotionOptions(size=65))
    with pytest.raises(FeatureMismatchError, match="not motion maps"):
        motion_options(spec)
    with pytest.raises(FeatureMismatchError, match="`har frames` does not make"):
        motion_options(dataclasses.replace(motion_spec(spec, MotionOptions()), resize="box-stretch-62"))


def test_a_job_makes_what_is_missing_and_what_has_changed(tmp_path: Path) -> None:
    videos, _ = drawn_videos({"0-1": 10, "1-2": 12})
    store, name = raw_store(tmp_path / "s.zarr", videos)
    store.record_failure(name, "0-9", "0-9: cannot be read", {})
    summary = motion_features(store, name)
    assert (summary.total, summary.already, summary.done) == (2, 0, 2)
    assert store.failures(summary.feature_set) == {"0-9": "0-9: cannot be read"}
    found = store.read(summary.feature_set, "1-2")
    assert np.array_equal(found.features[0], motion_map(videos["1-2"].reshape(-1, SIZE, SIZE, 1), MotionOptions()))
    assert (found.clip_starts.tolist(), found.clip_ends.tolist(), found.num_frames) == ([0], [12], 12)
    assert motion_features(store, name).done == 0
    with pytest.raises(StoreError, match="no features of '1-3'; create them with `har features motion`"):
        store.read(summary.feature_set, "1-3")
    with pytest.raises(StoreError, match="no features of '1-3'; create them with `har frames`"):
        store.read(name, "1-3")
    store.delete(name, "0-1")
    starts = np.arange(9)
    changed = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=9, fps=30.0, file={"size": "9"})
    store.write(name, "0-1", videos["0-1"][:9], changed)
    assert motion_features(store, name).done == 1
    assert store.read(summary.feature_set, "0-1").clip_ends.tolist() == [9]


def test_a_ridge_head_on_motion_maps_learns_and_predicts_files(tmp_path: Path) -> None:
    """From the store and from a depth file alike."""
    rng = np.random.default_rng(0)
    videos, labels = drawn_videos({f"{k}-{i}": 10 + i for k in (0, 1) for i in range(6)})
    store, name = raw_store(tmp_path / "s.zarr", videos)
    maps = motion_features(store, name).feature_set
    split = split_of([v for v in labels if v[2] < "4"], [v for v in labels if v[2] >= "4"], [])
    records = [VideoRecord(video_id=v, label=labels[v], path=tmp_path / f"{v}.avi") for v in labels]
    config = TrainConfig(head="ridge", logistic_c=50, standardise=False, device="cpu")
    (outcome,) = run_jobs(store, [maps], records, plan_jobs([split], tmp_path / "run"), config)
    assert outcome.summary.test_accuracy == 1.0
    frames = np.zeros((12, 60, 60), np.uint16)
    for number in range(12):
        frames[number, 10:50, 10 + 2 * number : 20 + 2 * number] = 1000 + rng.integers(0, 50)
    (tmp_path / "depth").mkdir()
    for number, frame in enumerate(frames, start=1):
        cv2.imwrite(str(tmp_path / "depth" / f"MDepth-{number:08d}.png"), frame)
    (found,) = predict([tmp_path / "depth"], outcome.summary.path, workers=1)
    from har_pipeline.video.depth import prepare_depth

    prepared = prepare_depth(frames, SIZE)
    row = motion_map(prepared[..., None], MotionOptions())
    assert found.probabilities is not None
    assert np.array_equal(found.probabilities, predict_scores(load_run(outcome.summary.path), row[None]))
