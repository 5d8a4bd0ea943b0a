"""Runs as ONNX files: the same probabilities as the run, for any number of videos and steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from har_command import har
from raw_runs import make_depth_set
from train_split import train_split
from video_files import make_video

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import ClipSpec, VideoRecord, VideoSource
from har_pipeline.features.extract import extract
from har_pipeline.features.options import ExtractOptions, RawOptions
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference import export
from har_pipeline.inference.export import export_onnx
from har_pipeline.inference.load import HeadRun, load_run
from har_pipeline.inference.predict import predict, predict_scores
from har_pipeline.models.config import HeadName
from har_pipeline.models.extractors import build_extractor
from har_pipeline.training.options import TrainConfig, VideoTrainConfig
from har_pipeline.video.clips import clip_indices
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.preprocess import parse_resize, resize_frame

CLASSES = ["box", "wave", "läuft"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two streams of features of twelve videos, and their labels."""
    folder = tmp_path_factory.mktemp("export")
    features, labels = blobs(CLASSES, 4, dim=6)
    features = {video_id.replace("läuft", "run"): rows for video_id, rows in features.items()}
    labels = {video_id.replace("läuft", "run"): label for video_id, label in labels.items()}
    store, name = feature_store(folder / "s.zarr", features)
    other, second = feature_store(
        folder / "s.zarr", {v: rows[:, ::-1].copy() for v, rows in features.items()}, weights="random:0"
    )
    assert isinstance(other, FeatureStore)
    return folder, store, [name, second], manifest(labels)


def trained(made: Any, folder: Path, streams: int = 1, **options: Any) -> HeadRun:
    _, store, names, records = made
    ids = [record.video_id for record in records]
    options = {"units": 5, "epochs": 2, "device": "cpu", **options}
    config = TrainConfig(**options)
    train_split(store, names[:streams], records, split_of(ids[::2], ids[1::2]), config, folder / "run")
    run = load_run(folder / "run")
    assert isinstance(run, HeadRun)
    return run


WITH_OPTIONS: list[dict[str, Any]] = [
    {"head": "lstm", "num_layers": 2, "dropout": 0.3},
    {"head": "bilstm", "num_layers": 2, "readout": "steps"},
    {"head": "gru", "input_projection": 4, "output": "sigmoid"},
    {"head": "vote", "vote": "majority"},
    {"head": "attention", "num_steps": 1},
    {"head": "attentive", "num_layers": 3, "input_projection": 4},
    {"head": "res_lstm", "streams": 2, "mid_fusion": "input", "fusion_op": "product"},
]
# Every head, those of the list above with its options; without them, and with more of them, in `make test-all`.
MORE_OPTIONS: list[dict[str, Any]] = [
    {"head": "lstm", "forget_gate": False},
    {"head": "lstm", "num_steps": 4, "standardise": True},
    {"head": "lstm", "streams": 2, "mid_fusion": "hidden", "fusion_op": "concat"},
]
VARIANTS = [
    *(
        pytest.param({"head": head}, marks=pytest.mark.exhaustive)
        if head in {options["head"] for options in WITH_OPTIONS}
        else {"head": head}
        for head in get_args(HeadName)
    ),
    *WITH_OPTIONS,
    *(pytest.param(options, marks=pytest.mark.exhaustive) for options in MORE_OPTIONS),
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(map(str, options.values())))
def test_a_head_gives_the_same_in_onnx(tmp_path: Path, made: Any, options: dict[str, Any]) -> None:
    run = trained(made, tmp_path, **options)
    done = export_onnx(run, tmp_path / "model.onnx")
    assert done.difference <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    dim = sum(run.head.stream_dims)
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [
        ("features", ["videos", "steps", dim], "tensor(float)"),
        ("lengths", ["videos"], "tensor(int64)"),
    ]
    assert session.get_outputs()[0].shape == ["videos", 3]
    rng = np.random.default_rng(1)
    lengths = [1, 9, 4, 20]
    videos = [rng.normal(size=(length, dim)).astype(np.float32) for length in lengths]
    # Whatever stands after a video's end.
    given = np.full((4, 23, dim), 7.5, np.float32)
    for place, video in zip(given, videos, strict=True):
        place[: len(video)] = video
    (found,) = session.run(["probabilities"], {"features": given, "lengths": np.array(lengths)})
    np.testing.assert_allclose(found, [predict_scores(run, video) for video in videos], atol=1e-5)
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["classes"]) == list(run.classes) == sorted(CLASSES)
    specs = json.loads(held["spec"])
    assert (specs if len(run.streams) > 1 else [specs]) == [stream.spec.to_dict() for stream in run.streams]
    assert json.loads(held["options"])["head"] == options["head"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[VideoRecord]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        VideoRecord(video_id=f"v{i}", label="ab"[i % 2], path=make_video(folder / f"v{i}.avi", 9, seed=i))
        for i in range(6)
    ]


def of_videos(folder: Path, records: list[VideoRecord], name: str, *, dim: int | None = None, **how: Any) -> HeadRun:
    """Return a run of a head on features of a net, reduced to `dim`."""
    store = FeatureStore(folder / "store.zarr", create=True)
    stream = how.pop("stream", "rgb")
    net = build_extractor(name, stream=stream, device="cpu")
    made = extract(records, store, net, ExtractOptions(**how)).feature_set
    ids = [record.video_id for record in records]
    split = split_of(ids[:4], ids[4:])
    if dim is not None:
        made = reduce_features(store, made, split, ReduceOptions(dim=dim, whiten=True, l2=True)).feature_set
    train_split(store, made, records, split, TrainConfig(head="lstm", units=4, epochs=2, device="cpu"), folder / "run")
    run = load_run(folder / "run")
    assert isinstance(run, HeadRun)
    return run


def test_extractor_and_head_are_one_model(tmp_path: Path, records: list[VideoRecord]) -> None:
    """On the very frames of a file: the scores of `predict`, through a PCA."""
    clips = ClipSpec(sampling="uniform", num_clips=3)
    run = of_videos(tmp_path, records, "efficientnet_lite0", clips=clips, dim=3)
    export_onnx(run, tmp_path / "model.onnx", with_extractor=True)
    path = records[5].path
    assert path is not None
    frames = np.stack([resize_frame(frame, parse_resize(run.spec.resize)) for _, frame in FrameReader(path)])
    given = frames[clip_indices(len(frames), clips)][None]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"clips": given, "lengths": np.array([3])})
    (expected,) = predict([path], run, device="cpu", workers=1)
    np.testing.assert_allclose(found[0], expected.probabilities, atol=1e-4)
    assert session.get_inputs()[0].shape == ["videos", "clips", 1, 224, 224, 3]
    assert session.get_outputs()[0].shape == ["videos", 2]
    (several,) = session.run(None, {"clips": given.repeat(3, 0), "lengths": np.array([3, 1, 3])})
    np.testing.assert_allclose(several[[0, 2]], found.repeat(2, 0), atol=1e-5)


@pytest.mark.slow
def test_a_net_of_flow_reads_flow(tmp_path: Path, records: list[VideoRecord]) -> None:
    clips = ClipSpec(sampling="segments", num_clips=2, clip_len=5)
    flow = FlowSpec(method="farneback", bound_px=15.0)
    run = of_videos(tmp_path, records, "tsn_efficientnet_lite0", stream="flow", clips=clips, flow=flow)
    done = export_onnx(run, tmp_path / "model.onnx", with_extractor=True)
    assert done.inputs["clips"] == ("videos", "clips", "5", "224", "224", "2", "float32")


@pytest.mark.slow
def test_the_3d_convnet_is_exported_and_networks_with_a_recurrence_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "frames.zarr", create=True)
    name = store.create_feature_set(RawOptions(stream="rgb", window="person").spec())
    ids = [f"v{number}" for number in range(4)]
    for number, video_id in enumerate(ids):
        starts = np.arange(12)
        frames = np.random.default_rng(number).integers(0, 256, (12, 54 * 34), np.uint8)
        store.write(
            name, video_id, frames, VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=12, fps=25.0)
        )
    records = manifest({video_id: "ab"[number % 2] for number, video_id in enumerate(ids)})
    config = VideoTrainConfig(model="convnet3d", epochs=1, device="cpu")
    train_split(store, name, records, split_of(ids[:2], ids[2:]), config, tmp_path / "run")
    done = export_onnx(tmp_path / "run", tmp_path / "model.onnx")
    assert done.inputs == {"frames": ("videos", "9", "54", "34", "1", "uint8")}
    with pytest.raises(RunError, match="has no extractor"):
        export_onnx(tmp_path / "run", tmp_path / "model.onnx", with_extractor=True)
    stateful = make_depth_set(tmp_path / "depth").train()
    with pytest.raises(RunError, match="convnet3d is"):
        export_onnx(stateful, tmp_path / "other.onnx")


def test_what_cannot_be_exported_is_refused_in_one_line(
    tmp_path: Path, made: Any, records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(made, tmp_path, streams=2, mid_fusion="hidden", fusion_op="concat")
    out = tmp_path / "model.onnx"
    with pytest.raises(RunError, match="reads 2 streams"):
        export_onnx(run, out, with_extractor=True)
    with pytest.raises(RunError, match="belong to --with-extractor"):
        export_onnx(run, out, weights="x.pt")
    of_crops = of_videos(
        tmp_path / "crops", records, "efficientnet_lite0", resize="short256-ten224", clips=ClipSpec(num_clips=1)
    )
    with pytest.raises(RunError, match="means over several crops"):
        export_onnx(of_crops, out, with_extractor=True)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match=r"probabilities are up to \S+ from the run's.*not kept"):
        export_onnx(run, out)
    monkeypatch.setattr(export, "PACKAGES", ("onnx", "not_installed", "onnxruntime"))
    with pytest.raises(RunError, match=r"pip install 'har-pipeline\[onnx\]'"):
        export_onnx(run, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".*partial*"))


def test_the_command_says_what_the_model_reads(tmp_path: Path, made: Any) -> None:
    run = trained(made, tmp_path, head="mean_pool")
    done = har("export", "run", "-o", "model.onnx", cwd=tmp_path)
    assert "model.onnx" in done.stdout
    assert "features (videos, steps, 6) float32" in done.stdout
    found = json.loads(har("export", "run", "-o", "model.onnx", "--json", cwd=tmp_path).stdout)
    assert found["classes"] == list(run.classes)
    assert found["difference"] <= 1e-4
    assert "does not exist" in har("export", "nothing", "-o", "model.onnx", cwd=tmp_path, code=1).stderr
