"""Several extractors over one decoding pass, crops, and flow computed on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from video_files import join, make_video

from har_pipeline.core.errors import ExtractionError, UsageError
from har_pipeline.core.records import ClipSpec, Stream, VideoRecord
from har_pipeline.features.extract import extract, extract_many, feature_spec
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.models.extractors.base import Extractor, Input, Net, Preprocess
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.flow import compute as flow_module
from har_pipeline.video.flow.compute import compute_flow
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.preprocess import crop_places, parse_resize, scale_frame

SIDE = 32
FAST = FlowSpec(method="farneback")


class _Grid(nn.Module):
    """Features that tell what came from where: 2x2 means of each frame's first two channels, in order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :2]
        return nn.functional.adaptive_avg_pool3d(x, (x.shape[2], 2, 2)).flatten(1)


def grid(name: str, clip_len: int, stream: Stream = "rgb", resize: str = "stretch-32") -> Extractor:
    clips = ClipSpec(sampling="uniform", clip_len=clip_len, num_clips=4)
    inputs = {stream: Input(clips=clips, clip_lens=(1, 99), resize=resize, weights="")}
    channels = 2 if stream == "flow" else 3
    preprocess = Preprocess(mean=(0.0,) * channels, std=(1.0,) * channels)
    net = Net(
        name=name,
        source="this test",
        inputs=inputs,
        layers={"grid": clip_len * 8},
        default_layer="grid",
        gmacs=0.0,
        weights={},
        build=lambda layer, stream: _Grid(),
        load=lambda module, path: None,
        file_preprocess=lambda path, stream: preprocess,
        bf16_is_close=False,
    )
    return Extractor(net, "grid", stream, "random:0", preprocess, _Grid, torch.device("cpu"), "fp32")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store.zarr", create=True)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    folder = tmp_path_factory.mktemp("engine")
    sizes = [(160, 120), (160, 120), (120, 160)]
    return [
        VideoRecord(
            video_id=f"v{i}",
            label="a",
            path=make_video(folder / f"v{i}.avi", 14 + i, seed=i, width=width, height=height),
        )
        for i, (width, height) in enumerate(sizes)
    ]


def read(store: FeatureStore, name: str) -> dict[str, np.ndarray]:
    return {v: store.read(name, v, check=True).features for v in store.video_ids(name)}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[v], second[v]) for v in first)


def test_one_pass_gives_what_separate_jobs_give(tmp_path: Path, records, store, monkeypatch) -> None:
    nets = [grid("frames", 1), grid("clips", 5), grid("moves", 3, "flow")]
    options = [ExtractOptions(), ExtractOptions(dtype="float32"), ExtractOptions(flow=FAST, dtype="float32")]
    summaries = extract_many(records, store, list(zip(nets, options, strict=True)))
    assert [(s.total, s.done, s.clips) for s in summaries] == [(3, 3, 12)] * 3
    for net, option, summary in zip(nets, options, summaries, strict=True):
        alone = FeatureStore(tmp_path / f"{net.net.name}.zarr", create=True)
        assert extract(records, alone, net, option).feature_set == summary.feature_set
        assert same(read(alone, summary.feature_set), read(store, summary.feature_set))


def test_what_one_of_two_has_is_not_made_again(records, store) -> None:
    first, second = grid("frames", 1), grid("clips", 5)
    extract(records[:2], store, first)
    summaries = extract_many(records, store, [(first, ExtractOptions()), (second, ExtractOptions())])
    assert [(s.already, s.done) for s in summaries] == [(2, 1), (0, 3)]


def test_a_bad_video_fails_in_every_feature_set(tmp_path: Path, records, store) -> None:
    bad = VideoRecord(video_id="bad", label="a", path=tmp_path / "missing.avi")
    wanted = [(grid("frames", 1), ExtractOptions()), (grid("clips", 5), ExtractOptions())]
    summaries = extract_many([*records, bad], store, wanted)
    assert [(s.done, list(s.failed)) for s in summaries] == [(3, ["bad"])] * 2
    again = extract_many([*records, bad], store, wanted)
    assert [(s.already, s.done, list(s.failed_before)) for s in again] == [(3, 0, ["bad"])] * 2


def test_the_same_features_twice_are_refused(records, store) -> None:
    with pytest.raises(ExtractionError, match="twice"):
        extract_many(records, store, [(grid("frames", 1), ExtractOptions())] * 2)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("crops", ["ten", "three"])
def test_a_clips_feature_is_the_mean_over_its_crops(records, store, crops, batch_size) -> None:
    resize = f"short40-{crops}32"
    options = ExtractOptions(resize=resize, dtype="float32", batch_size=batch_size)
    summary = extract(records, store, grid("clips", 3), options)
    net = grid("clips", 3)
    for record in records:
        assert record.path is not None
        scaled = [scale_frame(frame, parse_resize(resize)) for _, frame in FrameReader(record.path)]
        features = store.read(summary.feature_set, record.video_id)
        for start, found in zip(features.clip_starts, features.features, strict=True):
            clip = np.stack(scaled[start : start + 3])
            parts = []
            for place in crop_places(parse_resize(resize), *clip.shape[1:3]):
                part = clip[:, place.top : place.top + SIDE, place.left : place.left + SIDE]
                part = part[:, :, ::-1] if place.mirrored else part
                parts.append(net(torch.from_numpy(part.copy())[None])[0].numpy())
            np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-5, atol=1e-4)


def mirror(frames: list[np.ndarray], path: Path) -> Path:
    """Write frames, left and right exchanged, without loss."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:, ::-1]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def test_ten_crops_of_a_mirrored_video_are_those_of_the_video(tmp_path: Path, records, store) -> None:
    assert records[0].path is not None
    frames = [frame for _, frame in FrameReader(records[0].path)]
    twice = (
        mirror([frame[:, ::-1] for frame in frames], tmp_path / "plain.mkv"),
        mirror(frames, tmp_path / "mirror.mkv"),
    )
    both = [VideoRecord(video_id=path.stem, label="a", path=path) for path in twice]
    options = ExtractOptions(resize="stretch-54x40-ten32", dtype="float32")
    found = read(store, extract(both, store, grid("clips", 3), options).feature_set)
    np.testing.assert_allclose(found["plain"], found["mirror"], rtol=1e-5, atol=1e-3)


def test_both_streams_have_the_same_clips_at_the_same_times(records, store) -> None:
    rgb, moves = grid("rgb", 3), grid("moves", 3, "flow")
    a, b = extract_many(records, store, [(rgb, ExtractOptions()), (moves, ExtractOptions(flow=FAST))])
    for record in records:
        of_rgb, of_flow = (store.read(s.feature_set, record.video_id) for s in (a, b))
        assert len(of_rgb.features) == len(of_flow.features)
        assert (of_rgb.clip_times_s == of_flow.clip_times_s).all()


def test_flow_features_are_those_of_the_flow_between_the_clips_frames(records, store) -> None:
    net = grid("moves", 3, "flow", resize="short40-center32")
    summary = extract(records, store, net, ExtractOptions(flow=FAST, dtype="float32"))
    assert store.spec(summary.feature_set).flow == FAST.describe()
    for record in records:
        assert record.path is not None
        resize = parse_resize("short40-center32")
        scaled = np.stack([scale_frame(frame, resize) for _, frame in FrameReader(record.path)])
        flow = compute_flow(scaled[:-1], scaled[1:], FAST, "cpu")
        (place,) = crop_places(resize, *scaled.shape[1:3])
        flow = flow[:, place.top : place.top + SIDE, place.left : place.left + SIDE]
        features = store.read(summary.feature_set, record.video_id)
        for start, found in zip(features.clip_starts, features.features, strict=True):
            numbers = np.minimum(np.arange(start, start + 3), len(flow) - 1)
            np.testing.assert_allclose(found, net(flow[numbers][None])[0].numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_features_of_a_size_that_changes_are_those_of_the_parts(tmp_path: Path, store, stream: Stream) -> None:
    parts = [
        make_video(tmp_path / "wide.ts", 12, codec="libx264", width=160, height=120),
        make_video(tmp_path / "tall.ts", 12, codec="libx264", width=120, height=160, seed=1),
    ]
    both = join(parts, tmp_path / "both.ts")
    records = [VideoRecord(video_id=path.stem, label="a", path=path) for path in (*parts, both)]
    clips = ClipSpec(sampling="dense", clip_len=3, num_clips=None)
    net = grid("grid", 3, stream, resize="short40-three32" if stream == "rgb" else "short40-center32")
    options = ExtractOptions(clips=clips, flow=FAST if stream == "flow" else None, dtype="float32", workers=1)
    summary = extract(records, store, net, options)
    assert not summary.failed
    found = read(store, summary.feature_set)
    # Clips that lie within one part; the last flow of the first part leads to the second.
    wide = 10 if stream == "rgb" else 9
    assert np.array_equal(found["both"][:wide], found["wide"][:wide])
    assert np.array_equal(found["both"][12:], found["tall"])
    assert "2 clips with frames of different sizes" in "; ".join(summary.notes["both"]) or stream == "flow"


def test_cached_flow_gives_the_same_features_and_is_not_computed_again(
    tmp_path: Path, records, store, monkeypatch
) -> None:
    options = ExtractOptions(flow=FAST, dtype="float32", flow_cache=tmp_path / "flow")
    name = extract(records, store, grid("moves", 3, "flow"), options).feature_set
    plain = FeatureStore(tmp_path / "plain.zarr", create=True)
    extract(records, plain, grid("moves", 3, "flow"), ExtractOptions(flow=FAST, dtype="float32"))
    again = FeatureStore(tmp_path / "again.zarr", create=True)

    def refuse(*arguments: object) -> torch.Tensor:
        raise AssertionError("flow was computed again")

    monkeypatch.setattr("har_pipeline.features.engine.compute_flow", refuse)
    extract(records, again, grid("moves", 3, "flow"), options)
    assert same(read(plain, name), read(store, name))
    assert same(read(again, name), read(store, name))


def test_a_frame_that_is_too_long_sided_is_a_reason(tmp_path: Path, store) -> None:
    path = make_video(tmp_path / "wide.avi", 40, width=960, height=64)
    record = VideoRecord(video_id="wide", label="a", path=path)
    net = grid("clips", 32)
    summary = extract([record], store, net, ExtractOptions(resize="short40-ten32"))
    assert "too long-sided" in summary.failed["wide"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (ExtractOptions(clips=ClipSpec(clip_len=100, num_clips=1)), "takes clips of 1 to 99 frames, not 100"),
        (ExtractOptions(flow=FAST), "reads rgb"),
        (ExtractOptions(resize="short256-center224"), "wants 32 px"),
        (ExtractOptions(resize="round-5"), "write stretch-<size>"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: ExtractOptions, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        feature_spec(grid("frames", 1), options)


def test_flow_that_cannot_be_computed_ends_the_job_with_its_reason(records, store) -> None:
    assert flow_module.MIN_SIDE_PX > 2
    net = grid("moves", 3, "flow")
    raft = FlowSpec(method="raft_small", raft_weights="/nowhere/raft.pth")
    with pytest.raises(Exception, match="raft"):
        extract(records, store, net, ExtractOptions(flow=raft))
