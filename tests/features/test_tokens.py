"""Token features: several rows for each clip, one for each position of a net's map, through everything that reads a store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_sets import feature_store, manifest, split_of
from pixel_nets import pixel_extractor
from train_split import train_split
from video_files import make_video

from har_pipeline.core.errors import FeatureMismatchError, RunError, StoreError, UsageError
from har_pipeline.core.records import ClipSpec, FeatureSpec, VideoRecord, VideoSource
from har_pipeline.features.copy import copy_features
from har_pipeline.features.encode import encode_features
from har_pipeline.features.export import export_features
from har_pipeline.features.extract import extract, feature_spec
from har_pipeline.features.fitted import source_spec
from har_pipeline.features.options import EncodeOptions, ExtractOptions
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams, FeatureTable, load_features, take_steps
from har_pipeline.features.words import differences
from har_pipeline.inference.load import HeadRun, load_run
from har_pipeline.inference.moments import moments_of
from har_pipeline.inference.predict import predict_scores
from har_pipeline.models.config import RECURRENT_HEADS, HeadName
from har_pipeline.models.extractors import all_nets, build_extractor, find_net
from har_pipeline.models.extractors.i3d import I3D
from har_pipeline.models.extractors.vgg16 import VGG16
from har_pipeline.training.batches import FeatureBatches
from har_pipeline.training.options import TrainConfig
from har_pipeline.video.clips import sparse_clip_indices
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.preprocess import parse_resize, resize_frame

M, D = 8, 3
CLIPS = ClipSpec(sampling="uniform", clip_len=4, num_clips=5)


def drawn(videos: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Tokens (N * M, D) of 1 to 4 clips each."""
    rng = np.random.default_rng(seed)
    return {f"v{i}": rng.standard_normal((int(rng.integers(1, 5)) * M, D)).astype(np.float32) for i in range(videos)}


def test_tokens_are_stored_as_rows_of_their_clips_in_order(tmp_path: Path) -> None:
    """Batches that end within a video, and a video shorter than its clips, whose last clip repeats."""
    net = pixel_extractor(tokens=True)
    records = [
        VideoRecord(video_id=f"v{i}", label="a", path=make_video(tmp_path / f"v{i}.avi", frames, seed=i))
        for i, frames in enumerate((20, 3))
    ]
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    first = ClipSpec(sampling="first", clip_len=4, num_clips=5, clip_stride=2)
    summary = extract(records, store, net, ExtractOptions(clips=first, batch_size=3, dtype="float32", workers=1))
    assert (summary.done, summary.clips) == (2, 10)
    assert store.spec(summary.feature_set).tokens == store.spec(summary.feature_set).rows_per_clip == M
    assert store.num_clips(summary.feature_set) == {"v0": 5, "v1": 5}
    for record in records:
        assert record.path is not None
        found = FeatureStore(store.path).read(summary.feature_set, record.video_id, check=True)
        frames = [resize_frame(frame, parse_resize("stretch-32")) for _, frame in FrameReader(record.path)]
        numbers = [[min(2 * clip + i, len(frames) - 1) for i in range(4)] for clip in range(5)]
        clips = torch.from_numpy(np.stack([[frames[number] for number in own] for own in numbers]))
        assert found.features.shape == (5 * M, D)
        np.testing.assert_allclose(found.features.reshape(5, M, D), net(clips).numpy(), rtol=1e-6)
        assert found.clip_starts.shape == found.clip_ends.shape == (5,)
        assert found.clip_times_s.shape == (5, 2)
    assert list(store.verify(summary.feature_set)) == [None, None]
    again = extract(records, store, net, ExtractOptions(clips=first, batch_size=3, dtype="float32", workers=1))
    assert (again.already, again.done) == (2, 0)


def test_a_set_without_tokens_is_called_what_it_was_called() -> None:
    spec = FeatureSpec(extractor="i3d", weights="sha256:" + "a" * 64, layer="Mixed_5c", feature_dim=1024)
    assert spec.name == "i3d-rgb-7ca0776168"
    assert "tokens" not in spec.to_dict()
    tokens = FeatureSpec.from_dict({**spec.to_dict(), "tokens": 49})
    assert (tokens.tokens, tokens.name != spec.name) == (49, True)
    assert FeatureSpec.from_dict(tokens.to_dict()) == tokens
    assert differences({"one": spec, "two": tokens}) == {"one": "one row a clip", "two": "49 tokens a clip"}
    for wrong in (-1, 2.0, True, "49"):
        with pytest.raises(ValueError, match="tokens must be"):
            FeatureSpec.from_dict({**spec.to_dict(), "tokens": wrong})


def test_rows_that_are_no_whole_clips_are_refused(tmp_path: Path) -> None:
    store, name = feature_store(tmp_path / "store.zarr", drawn(), tokens=M)
    one = np.zeros(1, np.int64)
    source = VideoSource(clip_starts=one, clip_ends=one + 1, num_frames=1, fps=25.0)
    with pytest.raises(FeatureMismatchError, match="D=3 and 8 rows a clip"):
        store.write(name, "v9", np.zeros((M + 1, D), np.float32), source)
    with pytest.raises(StoreError, match="1 clips are described, not 2"):
        store.write(name, "v9", np.zeros((2 * M, D), np.float32), source)
    assert "v9" not in store.video_ids(name)


def test_tokens_of_i3d_are_the_positions_whose_mean_is_its_feature() -> None:
    """At Mixed_5c for two steps of time, which the paper's window covers as a whole."""
    generator = torch.Generator().manual_seed(0)
    for layer, frames, size, tokens in (("Mixed_4f", 9, 48, 3 * 9), ("Mixed_5c", 9, 224, 2 * 49)):
        clips = torch.randn(1, 3, frames, size, size, generator=generator)
        pooled = I3D(layer).eval()
        whole = I3D(layer, tokens=True).eval()
        whole.load_state_dict(pooled.state_dict())
        with torch.inference_mode():
            found = whole(clips)
            assert found.shape[1] == tokens
            torch.testing.assert_close(found.mean(dim=1), pooled(clips))


def test_tokens_of_vgg16_are_the_positions_of_pool5() -> None:
    with torch.device("meta"):
        net, tokens = VGG16("pool5"), VGG16("pool5", tokens=True)
    small = net.features[:5]  # any convolutions do: the rest is reshaping
    small.to_empty(device="cpu")
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net.features = tokens.features = small
    frames = torch.randn(2, 3, 1, 8, 8)
    with torch.inference_mode():
        flat, found = net(frames), tokens(frames)
    assert found.shape == (2, 16, 64)
    assert torch.equal(found.transpose(1, 2).reshape(2, -1), flat)


@pytest.mark.parametrize("name", [name for name, net in all_nets().items() if net.tokens])
def test_nets_say_how_many_tokens_they_give(name: str) -> None:
    net = find_net(name)
    assert net.tokens is not None
    read = net.inputs["rgb"]
    for clip_len in {read.clip_lens[0], min(17, read.clip_lens[1])}:
        for layer, dim in net.tokens.layers.items():
            assert layer in net.layers
            with torch.device("meta"):
                found = net.tokens.build(layer, "rgb").eval()(torch.empty(1, 3, clip_len, *read.shape))
            assert found.shape == (1, net.tokens.count(layer, clip_len), dim)


def test_what_has_no_tokens_is_refused() -> None:
    for name in ("c3d", "efficientnet_lite0", "timm:resnet18"):
        told = rf"{name} has no tokens, .*: leave --tokens out, or take a net that has some: i3d, vgg16, or .*hf:NAME_OR_FOLDER"
        with pytest.raises(UsageError, match=told):
            build_extractor(name, weights="random", tokens=True)
    with pytest.raises(UsageError, match=r"vgg16 has no tokens at fc6: .* give --layer pool5"):
        build_extractor("vgg16", layer="fc6", weights="random", tokens=True)
    ten = ExtractOptions(resize="stretch-40x40-ten32")
    with pytest.raises(UsageError, match="several crops have no mean: leave --crops out"):
        feature_spec(pixel_extractor(tokens=True), ten)


# The readers.


def store_of(folder: Path, features: dict[str, np.ndarray] | None = None) -> tuple[FeatureStore, str]:
    return feature_store(folder / "store.zarr", features or drawn(), tokens=M)


def test_batches_take_whole_clips_of_tokens(tmp_path: Path) -> None:
    features = drawn()
    store, name = store_of(tmp_path, features)
    records = manifest(dict.fromkeys(features, "a"))
    table = load_features(FeatureStreams(store, [name]), records, list(features), ["a"])
    clips = [len(one) // M for one in features.values()]
    assert table.lengths.tolist() == clips
    batches = FeatureBatches(table)
    (batch,) = batches.batches(9)
    assert batch.lengths.tolist() == [M * count for count in clips]
    for row, one in zip(batch.features, features.values(), strict=True):
        np.testing.assert_array_equal(row[: len(one)], one)
        assert not row[len(one) :].any()
    generator = torch.Generator().manual_seed(0)
    for how in ({"jitter": 0.5}, {"crop": 0.5}, {"crop": 0.5, "num_steps": 2}):
        (kept,) = FeatureBatches(table).batches(9, rows=np.arange(6), generator=generator, **how)
        of_clips = {one[M * k : M * (k + 1)].tobytes() for one in features.values() for k in range(len(one) // M)}
        assert all(length % M == 0 for length in kept.lengths)
        for row, length in zip(kept.features.numpy(), kept.lengths.tolist(), strict=True):
            assert {part.tobytes() for part in np.split(row[:length], length // M)} <= of_clips
    stepped = take_steps(table, 2)
    assert stepped.lengths.tolist() == [2] * 6
    first = features["v0"].reshape(-1, M, D)
    np.testing.assert_array_equal(stepped.features[: 2 * M].reshape(2, M, D), first[sparse_clip_indices(len(first), 2)])


def test_long_token_videos_are_scored_in_small_batches() -> None:
    flat = np.broadcast_to(np.zeros(1, np.float16), (12_544, 768))  # 8 clips of 1,568 tokens, of no memory
    table = FeatureTable(
        ("v",), np.zeros(1, np.int64), np.ascontiguousarray(flat), np.array([0, 12_544]), (), (), 1_568
    )
    assert FeatureBatches(table).scored_at_once == 6
    short = FeatureTable(("v",), np.zeros(1, np.int64), np.zeros((8, 4), np.float32), np.array([0, 8]))
    assert FeatureBatches(short).scored_at_once == 64


def test_a_pack_and_an_export_hold_the_tokens_of_each_clip(tmp_path: Path) -> None:
    features = drawn()
    store, name = store_of(tmp_path, features)
    summary = pack_features(store, name, tmp_path / "store.pack")
    assert summary.clips == sum(len(one) // M for one in features.values())
    pack = PackedStore(tmp_path / "store.pack")
    assert all(damage is None for damage in pack.verify(name))
    for video_id in features:
        mine, theirs = store.read(name, video_id), pack.read(name, video_id)
        np.testing.assert_array_equal(mine.features, theirs.features)
        np.testing.assert_array_equal(mine.clip_times_s, theirs.clip_times_s)
        assert len(theirs.clip_starts) == len(theirs.features) // M
    other = FeatureStore(tmp_path / "other.zarr", create=True)
    assert copy_features(pack, name, other).done == len(features)
    for opened in (store, pack, other):
        done = export_features(opened, name, tmp_path / "all.npz")
        with np.load(done.path) as held:
            assert held["lengths"].tolist() == [len(one) for one in features.values()]
            np.testing.assert_array_equal(held["features"], np.concatenate(list(features.values())))
            starts = np.concatenate([np.arange(len(one)) // M for one in features.values()])
            assert held["clip_starts"].tolist() == starts.tolist()
    pandas = pytest.importorskip("pyarrow.parquet")
    export_features(store, name, tmp_path / "all.parquet")
    table = pandas.read_table(tmp_path / "all.parquet").to_pydict()
    assert table["step"] == starts.tolist()
    assert table["token"] == [row % M for one in features.values() for row in range(len(one))]
    X, _, _ = store.load(name, manifest(dict.fromkeys(features, "a")))
    assert [len(video) for video in X] == [len(one) for one in features.values()]


def test_tokens_are_reduced_each_and_encoded_together(tmp_path: Path) -> None:
    features = drawn(8)
    store, name = store_of(tmp_path, features)
    ids = list(features)
    split = split_of(ids[:6], ids[6:])
    reduced = reduce_features(store, name, split, ReduceOptions(dim=2))
    assert reduced.num_rows == sum(len(features[video_id]) for video_id in ids[:6])
    spec = store.spec(reduced.feature_set)
    assert (spec.tokens, spec.rows_per_clip) == (M, M)
    assert source_spec(spec, D).name == name
    for video_id, one in features.items():
        found = store.read(reduced.feature_set, video_id)
        assert found.features.shape == (len(one), 2)
        assert len(found.clip_starts) == len(one) // M
    encoded = encode_features(store, name, split, EncodeOptions(encoding="words", words=3))
    spec = store.spec(encoded.feature_set)
    assert (spec.rows_per_clip, source_spec(spec, D).name) == (1, name)
    assert all(store.read(encoded.feature_set, video_id).features.shape[0] == 1 for video_id in ids)
    assert all(damage is None for one in store.feature_sets() for damage in store.verify(one))
    assert FeatureStreams(store, [encoded.feature_set]).specs[0].rows_per_clip == 1


def test_streams_are_joined_token_by_token_or_not_at_all(tmp_path: Path) -> None:
    features = drawn(2)
    store, name = store_of(tmp_path, features)
    second = store.create_feature_set(dataclasses.replace(store.spec(name), stream="flow"))
    clips = store.create_feature_set(dataclasses.replace(store.spec(name), stream="flow", tokens=0))
    for video_id, one in features.items():
        of = store.read(name, video_id)
        store.write(second, video_id, -one, of)
        store.write(clips, video_id, one.reshape(-1, M, D).mean(axis=1), of)
    joined = FeatureStreams(store, [name, second]).read("v0").features
    np.testing.assert_array_equal(joined, np.concatenate([features["v0"], -features["v0"]], axis=1))
    with pytest.raises(RunError, match=r"v0: feature sets of 8 and 1 rows a clip .* fuse their scores"):
        FeatureStreams(store, [name, clips]).read("v0")


def marked(classes: str = "ab", videos: int = 40) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Videos whose class is told by one token of each clip, at a place that is not the same twice."""
    rng = np.random.default_rng(0)
    features, labels = {}, {}
    for number in range(videos * len(classes)):
        clips = rng.standard_normal((2, M, 16)).astype(np.float32)
        label = classes[number % len(classes)]
        clips[np.arange(2), rng.integers(M, size=2), classes.index(label)] = 20
        features[f"v{number:02d}"], labels[f"v{number:02d}"] = clips.reshape(-1, 16), label
    return features, labels


@pytest.mark.parametrize("head", ["attentive", "mean_pool", "svm", "vote"])
def test_heads_without_time_learn_from_tokens(tmp_path: Path, head: HeadName) -> None:
    features, labels = marked()
    store, name = store_of(tmp_path, features)
    ids = list(labels)
    config = TrainConfig(
        head=head, epochs=20, batch_size=4, optimizer="adamw", learning_rate=1e-2, device="cpu", num_steps=2
    )
    train_split(store, name, manifest(labels), split_of(ids[:56], ids[56:]), config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert isinstance(run, HeadRun)
    scores = run.scores()
    said = dict(zip(scores.video_ids, scores.probabilities, strict=True))
    for video_id in ids[56:]:
        np.testing.assert_allclose(predict_scores(run, features[video_id]), said[video_id], atol=1e-6)
    if head in ("attentive", "mean_pool"):
        best = [scores.classes[k] for k in scores.probabilities.argmax(axis=1)]
        assert sum(map(str.__eq__, best, scores.labels)) >= 22
    found = moments_of(run, ids[56:58], store.path)
    assert [len(one.times_s) for one in found.values()] == [2, 2]
    with pytest.raises(RunError, match="no whole clips of 8 tokens"):
        predict_scores(run, features[ids[0]][:-1])


@pytest.mark.parametrize("head", RECURRENT_HEADS)
def test_heads_that_read_steps_in_time_refuse_tokens(tmp_path: Path, head: HeadName) -> None:
    features, labels = marked(videos=3)
    store, name = store_of(tmp_path, features)
    ids = list(labels)
    with pytest.raises(RunError, match=rf"8 tokens a clip, .* as {head} reads them: use --head attentive"):
        train_split(store, name, manifest(labels), split_of(ids[:4], ids[4:]), TrainConfig(head=head), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_a_head_on_tokens_is_one_onnx_model(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from har_pipeline.inference.export import export_onnx

    features, labels = marked(videos=3)
    store, name = store_of(tmp_path, features)
    ids = list(labels)
    config = TrainConfig(head="attentive", epochs=1, device="cpu", num_steps=3)
    train_split(store, name, manifest(labels), split_of(ids[:4], ids[4:]), config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    export_onnx(run, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    video = np.random.default_rng(1).standard_normal((5 * M, 16)).astype(np.float32)
    given = np.concatenate([video, np.ones((M, 16), np.float32)])[None]
    (found,) = session.run(None, {"features": given, "lengths": np.array([5 * M])})
    np.testing.assert_allclose(found[0], predict_scores(run, video), atol=1e-5)
