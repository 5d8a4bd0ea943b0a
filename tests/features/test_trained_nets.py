"""Features of a net that was trained here: its weights file through the ordinary extraction, and with its own split only."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_sets import split_of
from har_command import har
from safetensors.torch import load_file, save_file
from train_split import train_split
from video_files import make_video

from har_pipeline.core.errors import FeatureMismatchError, RunError, WeightsError
from har_pipeline.core.files import file_sha256
from har_pipeline.core.known_files import remember
from har_pipeline.core.records import FeatureSpec, Split, TrainedOn, VideoRecord
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.evaluation.plan import require_one_job
from har_pipeline.evaluation.run_folder import read_run
from har_pipeline.features.extract import extract
from har_pipeline.features.fitted import train_ids_sha256
from har_pipeline.features.frames import store_raw_frames
from har_pipeline.features.options import ExtractOptions, RawOptions
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams
from har_pipeline.inference.load import load_network
from har_pipeline.inference.predict import predict
from har_pipeline.models.convlstm.networks import ClipVoter
from har_pipeline.models.convlstm.windows import voting_indices
from har_pipeline.models.extractors import build_extractor
from har_pipeline.training.data import load_training_data
from har_pipeline.training.options import TrainConfig, VideoTrainConfig
from har_pipeline.video.contrast import local_contrast

CONFIG = VideoTrainConfig(model="convnet3d", epochs=1, device="cpu")
HEAD = TrainConfig(head="lstm", units=4, epochs=1, device="cpu")


@dataclasses.dataclass(frozen=True)
class Trained:
    """Eight videos of two classes; a net trained on the first six, and the features that it makes of all."""

    folder: Path
    records: list[VideoRecord]
    split: Split
    frames: FeatureStore
    windows: str
    weights: Path
    store: FeatureStore
    features: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    lengths = [5, 14, 22, 25, 18, 30, 21, 40]
    records = [
        VideoRecord(
            video_id=f"v{i}",
            label="ab"[i % 2],
            path=make_video(folder / f"v{i}.avi", count, seed=i),
            group=f"g{i // 2}",
        )
        for i, count in enumerate(lengths)
    ]
    frames = FeatureStore(folder / "frames.zarr", create=True)
    windows = store_raw_frames(records, frames, RawOptions(stream="rgb", window="person", workers=1)).feature_set
    split = split_of([f"v{i}" for i in range(6)], ["v6", "v7"])
    train_split(frames, windows, records, split, CONFIG, folder / "net")
    weights = folder / "net" / "network.safetensors"
    store = FeatureStore(folder / "store.zarr", create=True)
    net = build_extractor("convnet3d", weights=str(weights), device="cpu")
    summary = extract(records, store, net, ExtractOptions(workers=1, dtype="float32"))
    assert (summary.done, summary.failed) == (8, {})
    return Trained(folder, records, split, frames, windows, weights, store, summary.feature_set)


def test_features_are_c3_of_the_clips_that_vote(trained: Trained) -> None:
    network = load_network(trained.folder / "net").network
    assert isinstance(network, ClipVoter)
    for record in trained.records:
        windows = trained.frames.read(trained.windows, record.video_id).features.reshape(-1, 54, 34)
        indices = voting_indices(len(windows), 9, 4)
        clips = torch.from_numpy(windows[indices])[:, None].float() / 255
        with torch.no_grad():
            expected = network.net.descriptors(local_contrast(clips)).numpy()
        stored = trained.store.read(trained.features, record.video_id)
        assert stored.features.shape == (len(indices), 120)
        assert stored.clip_starts.tolist() == indices[:, 0].tolist()
        np.testing.assert_allclose(stored.features, expected, atol=1e-5)


def test_a_net_trained_on_the_windows_of_pairs_reads_such_windows(trained: Trained, tmp_path: Path) -> None:
    options = RawOptions(stream="rgb", window="pair", workers=1)
    frames = FeatureStore(tmp_path / "frames.zarr", create=True)
    windows = store_raw_frames(trained.records, frames, options).feature_set
    train_split(frames, windows, trained.records, trained.split, CONFIG, tmp_path / "net")
    net = build_extractor("convnet3d", weights=str(tmp_path / "net" / "network.safetensors"), device="cpu")
    summary = extract(trained.records, trained.store, net, ExtractOptions(workers=1, dtype="float32"))
    assert trained.store.spec(summary.feature_set).resize == "fit-54x34"
    network = load_network(tmp_path / "net").network
    assert isinstance(network, ClipVoter)
    seen = frames.read(windows, "v3").features.reshape(-1, 34, 54)
    clips = torch.from_numpy(seen[voting_indices(len(seen), 9, 4)])[:, None].float() / 255
    with torch.no_grad():
        expected = network.net.descriptors(local_contrast(clips)).numpy()
    np.testing.assert_allclose(trained.store.read(summary.feature_set, "v3").features, expected, atol=1e-5)


def test_the_spec_names_the_preprocessing_and_what_the_net_was_trained_on(trained: Trained) -> None:
    spec = trained.store.spec(trained.features)
    assert (spec.extractor, spec.layer, spec.feature_dim) == ("convnet3d", "c3", 120)
    assert spec.resize == "short60-person34x54"
    assert "local contrast 7x7x7" in spec.preprocess
    assert spec.trained_on == TrainedOn(protocol="holdout", split=0, train_ids_sha256=train_ids_sha256(trained.split))
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    published = dataclasses.replace(spec, trained_on=None)
    assert published.name != spec.name
    assert "trained_on" not in published.to_dict()


def test_a_head_on_them_may_be_trained_with_that_split_only(trained: Trained, tmp_path: Path) -> None:
    train_split(trained.store, trained.features, trained.records, trained.split, HEAD, tmp_path / "head")
    other = split_of([f"v{i}" for i in range(2, 8)], ["v0", "v1"], index=1)
    message = (
        r"was made by a net that was trained on the training videos of holdout split 0 .*holdout split 1 trains on 6"
    )
    with pytest.raises(FeatureMismatchError, match=message + r".* --model convnet3d --protocol holdout --split 1"):
        load_training_data(FeatureStreams(trained.store, [trained.features]), trained.records, [other])
    same = dataclasses.replace(trained.split, train=trained.split.train[:-1], val=trained.split.train[-1:])
    with pytest.raises(FeatureMismatchError, match="another holdout split 0"):
        load_training_data(FeatureStreams(trained.store, [trained.features]), trained.records, [same])


def test_reduced_features_keep_the_guard(trained: Trained) -> None:
    other = split_of([f"v{i}" for i in range(2, 8)], ["v0", "v1"], index=1)
    reduced = reduce_features(trained.store, trained.features, other, ReduceOptions(dim=3)).feature_set
    with pytest.raises(FeatureMismatchError, match="was made by a net"):
        load_training_data(FeatureStreams(trained.store, [reduced]), trained.records, [other])


def test_new_videos_are_classified_with_the_weights_used_last(trained: Trained, tmp_path: Path) -> None:
    train_split(trained.store, trained.features, trained.records, trained.split, HEAD, tmp_path / "head")
    scores = read_run(tmp_path / "head").scores()
    paths = [path for path in (trained.records[i].path for i in (6, 7)) if path]
    for given in (None, str(trained.weights), f"rgb={trained.weights}", f"convnet3d-rgb={trained.weights}"):
        found = predict(paths, tmp_path / "head", weights=given, device="cpu")
        for one, expected in zip(found, scores.probabilities, strict=True):
            np.testing.assert_allclose(one.probabilities, expected, atol=1e-5)


def test_a_net_of_all_videos_has_no_votes_to_count(trained: Trained, tmp_path: Path) -> None:
    every = Split(protocol="all", index=0, train=tuple(record.video_id for record in trained.records), test=())
    summary = train_split(trained.frames, trained.windows, trained.records, every, CONFIG, tmp_path / "net")
    assert (summary.test_accuracy, summary.val_accuracy, summary.num_train) == (None, None, 8)
    run = read_run(tmp_path / "net")
    assert "test_accuracy_by_vote" not in run.info
    assert any("no test part" in text for text in run.notes)
    path = trained.records[0].path
    assert path is not None
    assert predict([path], tmp_path / "net", device="cpu")[0].error is None


def test_weights_that_are_gone_are_asked_for_by_name(trained: Trained, tmp_path: Path) -> None:
    train_split(trained.store, trained.features, trained.records, trained.split, HEAD, tmp_path / "head")
    path, sha256 = trained.records[6].path, file_sha256(trained.weights)
    assert path is not None
    moved = tmp_path / "moved.safetensors"
    other = Path(shutil.copy(trained.weights, tmp_path / "other.safetensors"))
    remember(trained.weights, sha256)
    trained.weights.rename(moved)
    try:
        with pytest.raises(FeatureMismatchError) as told:
            predict([path], tmp_path / "head", device="cpu")
        # Another file in its place is not taken for it.
        trained.weights.write_bytes(b"no weights")
        with pytest.raises(FeatureMismatchError, match="give the file with --weights FILE"):
            predict([path], tmp_path / "head", device="cpu")
        (one,) = predict([path], tmp_path / "head", weights=str(moved), device="cpu")
        assert one.error is None
    finally:
        other.replace(trained.weights)
    for part in (
        "convnet3d",
        "rgb",
        trained.features,
        sha256,
        str(trained.weights),
        "give the file with --weights FILE",
    ):
        assert part in str(told.value)
    (again,) = predict([path], tmp_path / "head", device="cpu")
    assert again.top == one.top
    with pytest.raises(RunError, match="there is no stream or feature set 'flow', but rgb"):
        predict([path], tmp_path / "head", weights="flow=x.pt", device="cpu")


def test_folds_with_a_net_each_are_one_job(trained: Trained, tmp_path: Path) -> None:
    other = split_of([f"v{i}" for i in range(2, 8)], ["v0", "v1"], index=1)
    train_split(trained.frames, trained.windows, trained.records, other, CONFIG, tmp_path / "net1")
    net = build_extractor("convnet3d", weights=str(tmp_path / "net1" / "network.safetensors"), device="cpu")
    second = extract(trained.records, trained.store, net, ExtractOptions(workers=1, dtype="float32")).feature_set
    for number, (features, split) in enumerate([(trained.features, trained.split), (second, other)]):
        train_split(trained.store, features, trained.records, split, HEAD, tmp_path / f"split{number}")
    require_one_job([read_run(tmp_path / f"split{number}") for number in range(2)])


def test_a_file_that_says_nothing_of_its_training_has_no_guard_and_a_damaged_one_is_refused(
    trained: Trained, tmp_path: Path
) -> None:
    tensors = load_file(trained.weights)
    save_file(tensors, tmp_path / "plain.safetensors")
    plain = build_extractor("convnet3d", weights=str(tmp_path / "plain.safetensors"), device="cpu")
    assert plain.trained_on is None
    save_file(tensors, tmp_path / "odd.safetensors", {"har_trained_on": '{"split": 3}'})
    with pytest.raises(WeightsError, match=r"odd.safetensors: what it says of its training is damaged"):
        build_extractor("convnet3d", weights=str(tmp_path / "odd.safetensors"), device="cpu")
    del tensors["net.c2.weight"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match="does not fit the net"):
        build_extractor("convnet3d", weights=str(tmp_path / "part.safetensors"), device="cpu")


def test_from_the_command_line(trained: Trained) -> None:
    write_manifest(trained.folder / "m.csv", trained.records)
    command = ("extract", "m.csv", "cli.zarr", "--extractor", "convnet3d", "--workers", "1", "--device", "cpu")
    failed = har(*command, cwd=trained.folder, code=1).stderr
    assert "convnet3d has no published weights: train it with `har train-video MANIFEST --model convnet3d" in failed
    har(*command, "--weights", "net/network.safetensors", "--dtype", "float32", cwd=trained.folder)
    store = FeatureStore(trained.folder / "cli.zarr")
    (name,) = store.feature_sets()
    assert name == trained.features
    assert np.array_equal(store.read(name, "v3").features, trained.store.read(name, "v3").features)
    wrong = har(*command, "--weights", "net/network.safetensors", "--resize", "stretch-54", cwd=trained.folder, code=2)
    assert "convnet3d wants 34x54 px, resize 'stretch-54' gives 54" in " ".join(wrong.stderr.replace("│", " ").split())
    common = ("--device", "cpu", "--epochs", "1", "--protocol", "leave_one_group_out", "--val-fraction", "0")
    depth = har(
        "train-video", "m.csv", "--model", "convnet3d", "--stream", "depth", *common, cwd=trained.folder, code=2
    )
    assert "convnet3d reads rgb: omit --stream depth" in depth.stderr
    run = har("train-video", "m.csv", "--model", "convnet3d", *common, "-o", "cli_run", cwd=trained.folder)
    assert "convnet3d, test video accuracy" in run.stdout
    assert "frames of 8 videos prepared" not in run.stderr  # they are in frames.zarr beside the run
    head = ("train", "m.csv", "cli.zarr", "-o", "head", *common)
    assert "was made by a net that was trained on" in har(*head, cwd=trained.folder, code=1).stderr
