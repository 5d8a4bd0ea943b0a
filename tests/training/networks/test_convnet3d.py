"""The 3D-ConvNet in the path of the raw-video networks: which clips it sees, how they vote, when training stops."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_sets import split_of
from raw_sets import drawn_videos, raw_store
from safetensors import safe_open
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import ClipSpec, Split, VideoRecord, VideoSource
from har_pipeline.evaluation.run_folder import RunSummary, read_history
from har_pipeline.features.fitted import train_ids_sha256
from har_pipeline.features.options import RawOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureTable
from har_pipeline.inference.load import load_network
from har_pipeline.inference.maps import first_maps
from har_pipeline.inference.predict import predict_scores
from har_pipeline.models.convlstm.augment import take_views
from har_pipeline.models.convlstm.networks import ClipVoter, build_network
from har_pipeline.models.convlstm.windows import Sampling, drawn_indices, voting_indices
from har_pipeline.training.batches import Frames
from har_pipeline.training.networks import fit as video_fit
from har_pipeline.training.networks.loop import Learner, arrange, sampling_of, video_probabilities
from har_pipeline.training.networks.train import NETWORK, config_notes
from har_pipeline.training.options import CONVLSTM_OPTIONS, CONVNET3D_OPTIONS, VideoTrainConfig
from har_pipeline.training.schedules import no_longer_rises
from har_pipeline.video.clips import clip_indices
from har_pipeline.video.contrast import local_contrast

SHAPE = (1, 54, 34)
FAST = VideoTrainConfig(model="convnet3d", epochs=4, clips_per_video=2, device="cpu", learning_rate=5e-3)


def bar(label: int, num_frames: int, seed: int) -> np.ndarray:
    """Return (F, 54 * 34) uint8 of a bright bar that moves down (1) or to the right (0) over noise."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(60, 80, (num_frames, 54, 34)).astype(np.uint8)
    for number, frame in enumerate(frames):
        start = (2 * number + 3 * seed) % 30
        if label:
            frame[start : start + 4] = 200
        else:
            frame[:, start : start + 4] = 200
    return frames.reshape(num_frames, -1)


def bars(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {f"{k}-{i}": bar(k, 12 + 3 * i, seed + i) for k in range(2) for i in range(count)}


def table_of(videos: dict[str, np.ndarray]) -> FeatureTable:
    offsets = np.cumsum([0, *map(len, videos.values())]).astype(np.int64)
    labels = np.array([int(v[0]) for v in videos], np.int64)
    return FeatureTable(tuple(videos), labels, np.concatenate(list(videos.values())), offsets)


@dataclass(frozen=True)
class Task:
    store: FeatureStore
    name: str
    records: list[VideoRecord]
    split: Split

    def train(self, config: VideoTrainConfig, path: Path, **options: Any) -> RunSummary:
        return train_split(self.store, self.name, self.records, self.split, config, path, **options)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    videos = bars(6)
    store = FeatureStore(tmp_path_factory.mktemp("bars") / "store.zarr", create=True)
    name = store.create_feature_set(RawOptions(stream="rgb", window="person").spec())
    for video_id, frames in videos.items():
        starts = np.arange(len(frames))
        store.write(
            name,
            video_id,
            frames,
            VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=len(frames), fps=25.0),
        )
    records = [VideoRecord(video_id=v, label=("right", "down")[int(v[0])], path=Path("/nowhere") / v) for v in videos]
    split = split_of([v for v in videos if v[2] in "0123"], [v for v in videos if v[2] in "45"])
    return Task(store, name, records, split)


def test_the_network_is_the_net_on_clips_of_normalised_contrast() -> None:
    torch.manual_seed(0)
    network = build_network("convnet3d", 3).eval()
    assert isinstance(network, ClipVoter)
    assert (network.clip_len, network.stateful, network.votes) == (9, False, True)
    clips = torch.rand(2, 9, *SHAPE)
    logits, state = network(clips)
    assert state == network.advance(clips) == ()
    torch.testing.assert_close(logits, network.net(local_contrast(clips[:, :, 0])[:, None]))
    with pytest.raises(ValueError, match="grey windows"):
        build_network("convnet3d", 3, channels=3)


@pytest.mark.parametrize("length", [1, 5, 9, 10, 40])
def test_the_clips_that_vote_are_those_of_the_features(length: int) -> None:
    clips = ClipSpec(sampling="dense", num_clips=None, clip_len=9, clip_stride=4)
    assert np.array_equal(voting_indices(length, 9, 4), clip_indices(length, clips))


def test_drawn_clips_are_frames_in_a_row_from_anywhere() -> None:
    rng = np.random.default_rng(0)
    drawn = [drawn_indices(12, 9, rng) for _ in range(60)]
    assert {int(one[0]) for one in drawn} == {0, 1, 2, 3}
    assert all((np.diff(one) == 1).all() for one in drawn)
    assert drawn_indices(3, 9, rng).tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 2]


def test_each_video_is_drawn_several_times_in_an_epoch() -> None:
    network, lengths = build_network("convnet3d", 2), np.array([20, 9, 30])
    batches = list(
        arrange(network, lengths, np.array([0, 2]), 4, sampling=Sampling(drawn=5), rng=np.random.default_rng(0))
    )
    assert [batch.indices.shape for batch in batches] == [(4, 1, 9), (4, 1, 9), (2, 1, 9)]
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == [0] * 5 + [2] * 5
    assert all(batch.views is None for batch in batches)
    tests = list(arrange(network, lengths, np.array([0, 1]), 4, sampling=Sampling(stride=3, drawn=5)))
    assert [batch.rows.tolist() for batch in tests] == [[0], [1]]
    assert np.array_equal(tests[0].indices[0], voting_indices(20, 9, 3))


def test_training_clips_are_seen_in_all_four_ways_round() -> None:
    network, clip = build_network("convnet3d", 2), torch.rand(1, 9, *SHAPE)
    sampling = Sampling(drawn=64, flips=True)
    (batch,) = arrange(network, np.array([9]), np.array([0]), 64, sampling=sampling, rng=np.random.default_rng(0))
    assert batch.views is not None
    ways = [clip, clip.flip(3), clip.flip(4), clip.flip(3, 4)]
    seen = take_views(clip.expand(64, -1, -1, -1, -1), batch.views)
    counts = [sum(torch.equal(one, way[0]) for one in seen) for way in ways]
    assert sum(counts) == 64
    assert min(counts) > 6


def test_updates_have_a_momentum() -> None:
    torch.manual_seed(0)
    table = table_of(bars(2))
    learner = Learner(
        build_network("convnet3d", 2), Frames(table, SHAPE, torch.device("cpu")), 2, precision="fp32", momentum=0.9
    )
    weight = next(iter(learner.network.parameters()))
    batches = list(
        arrange(
            learner.network, table.lengths, np.arange(4), 4, sampling=Sampling(drawn=2), rng=np.random.default_rng(0)
        )
    )
    values, gradients = [weight.detach().clone()], []
    for batch in batches:
        learner.train_batch(batch, itertools.repeat(0.1))
        assert weight.grad is not None
        gradients.append(weight.grad.clone())
        values.append(weight.detach().clone())
    torch.testing.assert_close(values[1], values[0] - 0.1 * gradients[0])
    torch.testing.assert_close(values[2], values[1] - 0.1 * (gradients[1] + 0.9 * gradients[0]))


def test_clips_vote() -> None:
    torch.manual_seed(0)
    network = build_network("convnet3d", 2).eval()
    table = table_of({"0-0": bar(0, 300, 0), "1-0": bar(1, 4, 1)})
    frames, rows = Frames(table, SHAPE, torch.device("cpu")), np.array([1, 0])
    for how in ("soft", "majority"):
        found = video_probabilities(
            network,
            frames,
            rows,
            2,
            precision="fp32",
            sampling=Sampling(stride=2, vote=how),  # type: ignore[arg-type]
        )
        assert found.dtype == np.float64
        np.testing.assert_allclose(found.sum(axis=1), 1)
        for row, probabilities in zip(rows, found, strict=True):
            indices = voting_indices(int(table.lengths[row]), 9, 2)
            with torch.no_grad():
                each = network(frames.clips(np.full(len(indices), row), indices))[0].double().softmax(dim=1).numpy()
            expected = each.mean(axis=0) if how == "soft" else np.bincount(each.argmax(axis=1), minlength=2) / len(each)
            np.testing.assert_allclose(probabilities, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("accuracies", "stops"),
    [([], False), ([0.5, 0.5], False), ([0.5, 0.5, 0.5], True), ([0.5, 0.4, 0.6], False), ([0.1, 0.9, 0.8, 0.9], True)],
)
def test_training_stops_when_its_accuracy_no_longer_rises(accuracies: list[float], stops: bool) -> None:
    assert no_longer_rises(accuracies, 2) is stops


def test_it_learns_stops_and_is_kept(task: Task, tmp_path: Path) -> None:
    config = dataclasses.replace(FAST, epochs=60, stop_after=5, clips_per_video=4, batch_size=4)
    summary = task.train(config, tmp_path / "run")
    assert summary.test_accuracy == 1.0
    assert summary.epochs < 60
    accuracies = read_history(tmp_path / "run")["train_accuracy"]
    assert max(accuracies[-5:]) <= max(accuracies[:-5])  # type: ignore[type-var]
    assert not any(no_longer_rises(accuracies[:n], 5) for n in range(len(accuracies)))  # type: ignore[arg-type]
    assert accuracies[summary.best_epoch - 1] == max(accuracies)  # type: ignore[type-var]
    run = load_network(tmp_path / "run")
    assert run.frame_shape == SHAPE
    assert run.info["parameters"] == sum(p.numel() for p in build_network("convnet3d", 2).parameters())
    assert run.info["test_accuracy_by_vote"] == {"soft": 1.0, "majority": 1.0}
    windows = task.store.read(task.name, "0-4").features
    maps, window = first_maps(tmp_path / "run", windows)
    middle = (len(windows) - 8) // 2
    assert np.array_equal(window, windows.reshape(-1, 54, 34)[middle + 4])
    with torch.no_grad():
        clip = torch.from_numpy(windows.reshape(-1, 54, 34)[middle : middle + 9])[None, None].float() / 255
        expected = run.network.get_submodule("net.c1")(local_contrast(clip))[0, :, 2]
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-6)
    scores = run.scores()
    for video_id, expected in zip(scores.video_ids, scores.probabilities, strict=True):
        found = predict_scores(run, task.store.read(task.name, video_id).features)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_interrupted_training_gives_the_same_network(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.train(FAST, tmp_path / "whole")
    epochs = []

    def stop(epoch: Any) -> None:
        epochs.append(epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.train(FAST, tmp_path / "cut", on_epoch=stop)
    task.train(FAST, tmp_path / "cut")
    assert (tmp_path / "cut" / NETWORK).read_bytes() == (tmp_path / "whole" / NETWORK).read_bytes()


def test_the_weights_file_says_what_it_was_trained_on(task: Task, tmp_path: Path) -> None:
    task.train(dataclasses.replace(FAST, epochs=1), tmp_path / "run")
    with safe_open(tmp_path / "run" / NETWORK, "pt") as file:
        told = json.loads(file.metadata()["har_trained_on"])
    assert told == {
        "protocol": "holdout",
        "split": 0,
        "train_ids_sha256": train_ids_sha256(task.split),
        "resize": "short60-person34x54",
    }


def test_other_frames_are_refused_in_words(tmp_path: Path) -> None:
    videos, labels = drawn_videos({f"{k}-{i}": 12 for k in range(2) for i in range(2)})
    store, name = raw_store(tmp_path / "store.zarr", videos)
    records = [VideoRecord(video_id=v, label=label, path=Path("/nowhere") / v) for v, label in labels.items()]
    with pytest.raises(
        RunError, match=r"windows of people, not frames of 48x48 px: .*har frames --stream rgb --window person"
    ):
        train_split(store, name, records, split_of(["0-0", "1-0"], ["0-1", "1-1"]), FAST, tmp_path / "run")


def test_options_of_the_other_networks_are_refused() -> None:
    changed = {
        "width": 0.5,
        "gates": "hard-sigmoid",
        "memory_frames": 20,
        "motion": True,
        "clip": "whole",
        "frame_step": 2,
        "long_videos": "whole",
        "state_gradient": "video",
        "norm_over": "video",
        "window_loss": "vote",
        "cycle_epochs": 3.0,
        "patience": 2,
    }
    assert set(changed) == set(CONVLSTM_OPTIONS)
    for name, value in changed.items():
        with pytest.raises(ValueError, match=f"{name} belongs to the ConvLSTMs, not to convnet3d"):
            VideoTrainConfig(model="convnet3d", **{name: value})
    changed = {"clips_per_video": 3, "clip_stride": 2, "vote": "soft", "flips": False, "stop_after": 3}
    assert set(changed) == set(CONVNET3D_OPTIONS)
    for name, value in changed.items():
        with pytest.raises(ValueError, match=f"{name} belongs to convnet3d, not to convlstm-stateful"):
            VideoTrainConfig(**{name: value})


def test_defaults_and_what_is_told_of_them() -> None:
    config = VideoTrainConfig(model="convnet3d")
    assert (config.num_epochs, config.main_epochs, config.videos_per_batch, config.arithmetic) == (100, 100, 16, "fp32")
    assert config.rate(0.0) == config.rate(99.5) == 2.5e-3
    assert VideoTrainConfig(model="convnet3d", learning_rate=1e-3).rate(4.0) == 1e-3
    assert sampling_of(config) == Sampling(stride=4, drawn=4, flips=True, vote="majority")
    assert sampling_of(VideoTrainConfig()) == Sampling()
    notes = " ".join(
        config_notes(dataclasses.replace(config, precision="fp32", flips=False, vote="soft", clip_stride=2))
    )
    assert "clips that start every 2 frames voted, soft" in notes
    assert "upside down" in notes
    assert SHAPE in video_fit.WINDOW_SHAPES


def test_a_rate_that_is_still_to_fall_ends_no_training(task: Task, tmp_path: Path) -> None:
    config = dataclasses.replace(FAST, schedule="one-cycle", learning_rate=1e-12, stop_after=1)
    summary = task.train(config, tmp_path / "run")
    assert (summary.epochs, summary.best_epoch) == (4, 4)
    assert "the network of the last epoch was kept" in " ".join(summary.notes)
    assert task.train(dataclasses.replace(config, schedule="constant"), tmp_path / "flat").epochs < 4
