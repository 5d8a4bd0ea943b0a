"""Predictions for files, from a run folder alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from run_files import change_info
from train_split import train_split
from video_files import make_video, set_matrix

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, RunError
from har_pipeline.core.records import ClipSpec, Decoder, Split, Stream, VideoRecord, VideoSource
from har_pipeline.features.extract import extract
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams
from har_pipeline.inference.annotate import write_annotated
from har_pipeline.inference.load import load_run
from har_pipeline.inference.predict import predict, predict_scores, sample_frames, save_picture
from har_pipeline.inference.sources import extractor_for
from har_pipeline.inference.timeline import Windows
from har_pipeline.models.extractors import build_extractor
from har_pipeline.training.options import TrainConfig
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.encode import write_video
from har_pipeline.video.flow.spec import FlowSpec

CLIPS = {"rgb": ClipSpec(num_clips=3), "flow": ClipSpec(sampling="segments", num_clips=2, clip_len=5)}
NETS = {"rgb": "efficientnet_lite0", "flow": "tsn_efficientnet_lite0"}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    folder = tmp_path_factory.mktemp("predict")
    return [
        VideoRecord(video_id=f"v{i}", label="ab"[i % 2], path=make_video(folder / f"v{i}.avi", 9, seed=i))
        for i in range(6)
    ]


def trained(
    folder: Path, records: list[VideoRecord], stream: Stream, weights: str | None = None, decoder: Decoder = "auto"
) -> FeatureStore:
    store = FeatureStore(folder / "store.zarr", create=True)
    options = ExtractOptions(
        clips=CLIPS[stream],
        resize="stretch-224",
        flow=FlowSpec(method="farneback", bound_px=15.0) if stream == "flow" else None,
        dtype="float32",
        decoder=decoder,
    )
    net = build_extractor(NETS[stream], stream=stream, weights=weights, device="cpu", seed=3)
    name = extract(records, store, net, options).feature_set
    ids = [record.video_id for record in records]
    split = Split(protocol="holdout", index=0, train=tuple(ids[:4]), test=tuple(ids[4:]))
    train_split(store, name, records, split, TrainConfig(head="mean_pool", device="cpu"), folder / "run")
    return store


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_file_gets_what_its_stored_features_give(tmp_path: Path, records, stream: Stream) -> None:
    store = trained(tmp_path, records, stream)
    paths = [record.path for record in records[4:] if record.path]
    run = load_run(tmp_path / "run")
    predictions = predict(paths, run, top=2, device="cpu")
    assert [prediction.path for prediction in predictions] == paths
    (name,) = store.feature_sets()
    for record, prediction in zip(records[4:], predictions, strict=True):
        expected = predict_scores(run, store.read(name, record.video_id).features)
        assert prediction.probabilities is not None
        np.testing.assert_array_equal(prediction.probabilities, expected)
        best = int(expected.argmax())
        assert prediction.top[0] == (run.classes[best], pytest.approx(expected[best]))
        assert len(prediction.top) == 2


def test_a_file_is_read_by_the_decoder_of_the_runs_features(tmp_path: Path, records, monkeypatch) -> None:
    pytest.importorskip("decord")
    store = trained(tmp_path, records[:5], "rgb", decoder="decord")
    (name,) = store.feature_sets()
    assert records[4].path is not None
    (prediction,) = predict([records[4].path], tmp_path / "run", device="cpu")
    expected = predict_scores(load_run(tmp_path / "run"), store.read(name, records[4].video_id).features)
    np.testing.assert_array_equal(prediction.probabilities, expected)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ExtractionError, match="decord is not installed"):
        predict([records[4].path], tmp_path / "run", device="cpu")


def test_a_run_of_two_streams_makes_both_of_a_file(tmp_path: Path, records: list[VideoRecord]) -> None:
    names = []
    for stream in ("rgb", "flow"):
        store = trained(tmp_path / stream, records, stream)
        names += store.feature_sets()
    both = FeatureStore(tmp_path / "both.zarr", create=True)
    for stream, name in zip(("rgb", "flow"), names, strict=True):
        store = FeatureStore(tmp_path / stream / "store.zarr")
        assert both.create_feature_set(store.spec(name)) == name
        for record in records:
            found = store.read(name, record.video_id)
            source = VideoSource(
                clip_starts=found.clip_starts, clip_ends=found.clip_ends, num_frames=found.num_frames, fps=found.fps
            )
            both.write(name, record.video_id, found.features, source)
    ids = [record.video_id for record in records]
    split = Split(protocol="holdout", index=0, train=tuple(ids[:4]), test=tuple(ids[4:]))
    config = TrainConfig(units=4, epochs=2, mid_fusion="hidden", fusion_op="concat", device="cpu")
    train_split(both, names, records, split, config, tmp_path / "run")
    assert records[5].path is not None
    run = load_run(tmp_path / "run")
    (prediction,) = predict([records[5].path], run, device="cpu", workers=1)
    expected = predict_scores(run, FeatureStreams(both, names).read(ids[5]).features)
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-6)
    with pytest.raises(RunError, match="these are the weights of none of"):
        predict([records[5].path], tmp_path / "run", weights="random", device="cpu")


@pytest.mark.usefixtures("pictures_drawn")
def test_a_bad_file_gets_its_error_and_the_others_their_classes(tmp_path: Path, records) -> None:
    trained(tmp_path, records, "rgb")
    bad = tmp_path / "bad.avi"
    bad.write_bytes(b"")
    assert records[5].path is not None
    whole, cut = make_video(tmp_path / "whole.avi", 40), tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    first, second, third = predict([bad, records[5].path, cut], tmp_path / "run", device="cpu")
    assert first.probabilities is None
    assert first.error is not None
    assert "the file is empty" in first.error
    # Three frames of nine are less than half of the video.
    assert second.error is None
    assert len(second.notes) == 1
    assert second.notes[0].startswith(
        "efficientnet_lite0 sees 33 % of it only, by its clips (first, 3 frames): for a run that sees"
    )
    assert third.error is None
    assert any(text.startswith("40 frames are announced") for text in third.notes)
    save_picture(tmp_path / "picture.png", [first, second])
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_random_weights_are_drawn_again_and_said(tmp_path: Path, records) -> None:
    trained(tmp_path, records, "rgb", weights="random")
    assert records[4].path is not None
    (prediction,) = predict([records[4].path], tmp_path / "run", device="cpu")
    assert load_run(tmp_path / "run").random_weights
    assert prediction.error is None


def test_other_weights_than_the_runs_are_refused(tmp_path: Path, records) -> None:
    trained(tmp_path, records, "rgb", weights="random")
    assert records[4].path is not None
    spec_path = tmp_path / "run" / "run.json"
    text = spec_path.read_text(encoding="utf-8")
    assert '"random:3"' in text
    spec_path.write_text(text.replace('"random:3"', '"sha256:' + "0" * 64 + '"'), encoding="utf-8")
    change_info(tmp_path / "run")
    with pytest.raises(FeatureMismatchError, match="give the file with --weights FILE"):
        predict([records[4].path], tmp_path / "run", device="cpu")


def test_c3ds_mean_cube_is_found_where_it_was_used_last(tmp_path: Path, records) -> None:
    cube = tmp_path / "cube.npy"
    np.save(cube, np.full((3, 16, 128, 171), 90, np.float32))
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    net = build_extractor("c3d", layer="pool5", weights="random", device="cpu", precision="fp32", mean_cube=cube)
    clips = ClipSpec(sampling="uniform", num_clips=1, clip_len=16)
    name = extract(records[:2], store, net, ExtractOptions(clips=clips, dtype="float32")).feature_set
    spec = store.spec(name)
    assert "cube sha256:" in spec.preprocess
    assert extractor_for(spec, device="cpu").preprocess.cube is not None
    moved = cube.rename(tmp_path / "moved.npy")
    with pytest.raises(
        FeatureMismatchError, match=r"--mean-cube FILE; where it was used last, .*cube\.npy, it is no longer"
    ):
        extractor_for(spec, device="cpu")
    assert extractor_for(spec, mean_cube=moved, device="cpu").preprocess.cube is not None
    assert extractor_for(spec, device="cpu").preprocess.cube is not None


def test_sample_frames_spread_over_the_video(records) -> None:
    assert records[0].path is not None
    frames = [frame for _, frame in FrameReader(records[0].path)]
    found = sample_frames(records[0].path, 3)
    assert (found[0] == frames[0]).all()
    assert found.shape == (3, 120, 160, 3)
    assert len({frame.tobytes() for frame in found}) == 3


def test_a_video_of_another_size_rate_or_turn_is_read_as_it_looks(tmp_path: Path, records) -> None:
    trained(tmp_path, records, "rgb")
    run = load_run(tmp_path / "run")
    upright = make_video(tmp_path / "up.mp4", 24, codec="libx264", width=240, height=320, fps=30)
    # As telephones film: stored lying, with the turn in the header.
    lying = write_turned(upright, tmp_path / "lying.mp4")
    turned = set_matrix(lying, tmp_path / "turned.mp4", 0, 1, -1, 0)
    large = make_video(tmp_path / "large.mp4", 50, codec="libx264", width=640, height=360, fps=50)
    found = predict([upright, turned, large], run, device="cpu")
    assert [one.error for one in found] == [None] * 3
    # But for the losses of a second compression.
    np.testing.assert_allclose(found[1].probabilities, found[0].probabilities, atol=0.05)
    write_annotated(tmp_path / "seen.mp4", found[1], run.classes)
    shape = next(frame for _, frame in FrameReader(tmp_path / "seen.mp4")).shape
    assert shape[0] > 4 / 3 * shape[1]
    (windowed,) = predict([turned], run, windows=Windows(length_s=0.4, hop_s=0.2), device="cpu")
    assert windowed.timeline is not None
    assert windowed.timeline.edges_s[-1] == pytest.approx(0.8)


def write_turned(source: Path, target: Path) -> Path:
    """Write a video's frames a quarter turn counterclockwise."""
    write_video(target, (np.rot90(frame).copy() for _, frame in FrameReader(source)), 30, "libx264", bit_rate=4_000_000)
    return target
