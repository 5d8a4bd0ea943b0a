"""Streams joined by the time of their clips, and mid fusion from the store to the prediction."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, manifest, split_of
from hypothesis import given
from hypothesis import strategies as st
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import ClipSpec, FeatureSpec, VideoSource
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams, align_by_time, load_features
from har_pipeline.inference.load import load_run
from har_pipeline.inference.predict import predict_scores
from har_pipeline.training.options import TrainConfig

CLASSES = ("boxing", "running", "walking")
CONFIG = TrainConfig(units=6, epochs=12, batch_size=5, learning_rate=1e-2, device="cpu", mid_fusion="input")


def times(starts: list[float], length: float) -> np.ndarray:
    return np.array([[start, start + length] for start in starts])


def test_clips_are_joined_by_time_and_not_by_position() -> None:
    rgb = times([0.0, 1.0, 2.0, 3.0], 0.25)  # middles 0.125, 1.125, ...
    flow = times([0.875, 1.0, 2.875], 0.5)  # middles 1.125, 1.25, 3.125
    first, second = align_by_time([rgb, flow])
    assert first.tolist() == [0, 1, 2, 3]
    assert second.tolist() == [0, 0, 1, 2]
    first, second, third = align_by_time([flow, rgb, flow[::-1]])
    assert (first.tolist(), second.tolist(), third.tolist()) == ([0, 1, 2], [1, 1, 3], [2, 1, 0])


def test_of_two_clips_as_close_the_earlier_is_taken() -> None:
    assert align_by_time([times([1.0], 0.5), times([0.5, 1.5], 0.5)])[1].tolist() == [0]


@pytest.mark.parametrize("bad", [np.zeros((0, 2)), np.full((2, 2), np.nan)])
def test_streams_without_times_are_an_error(bad: np.ndarray) -> None:
    with pytest.raises(RunError, match="stream 1 has no clips, or no times"):
        align_by_time([times([0.0], 1.0), bad])


steps = st.lists(st.floats(0.01, 3), min_size=1, max_size=30)


@given(steps, st.floats(0.01, 4))
def test_equal_times_give_the_same_rows(gaps: list[float], length: float) -> None:
    stream = times(np.cumsum(gaps).tolist(), length)
    for rows in align_by_time([stream, stream, stream]):
        assert rows.tolist() == list(range(len(gaps)))


@given(st.integers(1, 300), *[st.integers(1, 20)] * 4)
def test_dense_clips_of_one_video_are_always_joined(
    frames: int, len_a: int, step_a: int, len_b: int, step_b: int
) -> None:
    def dense(length: int, step: int) -> np.ndarray:
        starts = np.arange(0, max(0, frames - length) + 1, step)
        return np.stack([starts, np.minimum(starts + length, frames)], axis=1) / 25

    # Clips with gaps between them leave out more than a step at the end: no usual sampling does that.
    a, b = dense(max(len_a, step_a), step_a), dense(max(len_b, step_b), step_b)
    _, rows = align_by_time([a, b])
    assert len(rows) == len(a)
    assert (np.diff(rows) >= 0).all()
    distance = np.abs(a.mean(axis=1)[:, None] - b.mean(axis=1))
    np.testing.assert_array_equal(distance[np.arange(len(a)), rows], distance.min(axis=1))


def test_streams_that_cover_different_times_are_an_error() -> None:
    whole, start = times(list(range(10)), 1.0), times([0.0, 1.0, 2.0], 1.0)
    assert align_by_time([start, whole])[1].tolist() == [0, 1, 2]
    # Allowed are half a clip and a step, 1.5 s: the clip at 3.5 s is 1 s from the last one, that at 4.5 s 2 s.
    with pytest.raises(RunError, match=r"no clip within 1\.50 s of .*clip at 4\.50 s .* 2\.00 s away; 6 of 10 clips"):
        align_by_time([whole, start])
    assert align_by_time([whole[:4], start])[1].tolist() == [0, 1, 2, 2]
    with pytest.raises(RunError, match="stream 2 has no clip within"):
        align_by_time([start, whole, start + 100])


def test_unsorted_clips_are_joined_all_the_same() -> None:
    assert align_by_time([times([1.0], 0.5), times([1.5, 0.5], 0.5)])[1].tolist() == [1]


def write_stream(
    store: FeatureStore, features: dict[str, np.ndarray], layer: str, stride: int, fps: float = 25.0
) -> str:
    first = next(iter(features.values()))
    spec = FeatureSpec(
        extractor="drawn",
        weights="sha256:" + "0" * 64,
        layer=layer,
        feature_dim=first.shape[1],
        clips=ClipSpec(sampling="dense", num_clips=None, clip_stride=stride),
        dtype="float32",
    )
    name = store.create_feature_set(spec)
    for video_id, array in features.items():
        starts = stride * np.arange(len(array))
        source = VideoSource(clip_starts=starts, clip_ends=starts + stride, num_frames=500, fps=fps)
        store.write(name, video_id, array, source)
    return name


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store.zarr", create=True)


def test_joined_features_stand_beside_each_other_at_the_clips_of_the_first(store: FeatureStore) -> None:
    rgb = np.arange(8, dtype=np.float32).reshape(4, 2)
    flow = 100 + np.arange(6, dtype=np.float32).reshape(2, 3)
    # RGB clips of 10 frames, flow clips of 20 over the same 40 frames: two and two belong together.
    names = [write_stream(store, {"v": rgb}, "a", 10), write_stream(store, {"v": flow}, "b", 20)]
    table = load_features(FeatureStreams(store, names), manifest({"v": "x"}), ["v"], ["x"])
    np.testing.assert_array_equal(table.features, np.concatenate([rgb, flow[[0, 0, 1, 1]]], axis=1))
    table = load_features(FeatureStreams(store, names[::-1]), manifest({"v": "x"}), ["v"], ["x"])
    assert table.features.shape == (2, 5)


def test_a_video_whose_streams_cover_different_times_is_named(store: FeatureStore) -> None:
    one = {"v": np.zeros((9, 2), np.float32)}
    names = [write_stream(store, one, "a", 10), write_stream(store, one, "b", 2)]
    with pytest.raises(RunError, match=r"^v: stream 1 has no clip within"):
        load_features(FeatureStreams(store, names), manifest({"v": "x"}), ["v"], ["x"])


def test_a_video_without_one_of_the_streams_is_missing(store: FeatureStore) -> None:
    one = {"v": np.zeros((2, 2), np.float32), "w": np.zeros((2, 2), np.float32)}
    names = [write_stream(store, one, "a", 10), write_stream(store, {"w": one["w"]}, "b", 10)]
    store.record_failure(names[1], "v", "the decoder gave up")
    source = FeatureStreams(store, names)
    assert source.video_ids() == ["w"]
    with pytest.raises(RunError, match=f"no features of 1 video .v. .*{names[1]}: the decoder gave up"):
        load_features(FeatureStreams(store, names), manifest({"v": "x", "w": "x"}), ["v", "w"], ["x"])


@pytest.mark.parametrize("mid_fusion", ["input", "hidden"])
@pytest.mark.parametrize("op", ["sum", "product", "concat"])
def test_a_run_of_two_streams_is_trained_loaded_and_asked(
    store: FeatureStore, tmp_path: Path, mid_fusion: str, op: str
) -> None:
    rgb, labels = blobs(CLASSES, 8, dim=5)
    flow = {video_id: np.roll(array, 1, axis=1) + 1 for video_id, array in rgb.items()}
    names = [write_stream(store, rgb, "a", 4), write_stream(store, flow, "b", 4, fps=30.0)]
    split = split_of([v for v in rgb if int(v[-1]) < 6], [v for v in rgb if int(v[-1]) >= 6])
    config = dataclasses.replace(CONFIG, mid_fusion=mid_fusion, fusion_op=op)
    summary = train_split(store, names, manifest(labels), split, config, tmp_path / "run")
    assert summary.train_accuracy > 0.8
    run = load_run(tmp_path / "run")
    assert [stream.feature_set for stream in run.streams] == names
    assert [stream.spec for stream in run.streams] == [store.spec(name) for name in names]
    source, scores = FeatureStreams(store, names), run.scores()
    for video_id, row in zip(scores.video_ids, scores.probabilities, strict=True):
        np.testing.assert_allclose(predict_scores(run, source.read(video_id).features), row, atol=1e-6)


def test_streams_and_mid_fusion_belong_together(store: FeatureStore, tmp_path: Path) -> None:
    rgb, labels = blobs(CLASSES, 4, dim=5)
    names = [write_stream(store, rgb, "a", 4), write_stream(store, rgb, "b", 4)]
    split = split_of([v for v in rgb if int(v[-1]) < 3], [v for v in rgb if int(v[-1]) >= 3])
    with pytest.raises(RunError, match="2 streams need --mid-fusion"):
        train_split(
            store, names, manifest(labels), split, dataclasses.replace(CONFIG, mid_fusion=None), tmp_path / "run"
        )
    with pytest.raises(RunError, match="two or more feature sets"):
        train_split(store, names[:1], manifest(labels), split, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
