"""Each training option does what it says, on features in memory."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from feature_sets import blobs, feature_store, manifest, split_of
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.features.table import FeatureTable, take_steps
from har_pipeline.inference.load import load_run
from har_pipeline.inference.predict import predict_scores
from har_pipeline.models.config import FusionOp, HeadName
from har_pipeline.models.heads import SequenceClassifier, build_head
from har_pipeline.training.batches import FeatureBatches
from har_pipeline.training.data import Parts
from har_pipeline.training.estimator import HeadClassifier
from har_pipeline.training.heads import fit
from har_pipeline.training.heads.fit import Fitted, classification_loss, fit_head, learning_rate
from har_pipeline.training.history import Epoch
from har_pipeline.training.options import TrainConfig
from har_pipeline.video.clips import sparse_clip_indices

SMALL = TrainConfig(units=8, epochs=4, batch_size=5, learning_rate=1e-2, device="cpu")


def table_of(videos: int = 24, classes: int = 3, dim: int = 6, clips: tuple[int, int] = (1, 6)) -> FeatureTable:
    rng = np.random.default_rng(0)
    labels = np.arange(videos) % classes
    centres = 2 * rng.standard_normal((classes, dim))
    parts = [
        (centres[k] + rng.standard_normal((int(rng.integers(*clips)), dim))).astype(np.float32) for k in labels.tolist()
    ]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return FeatureTable(tuple(map(str, range(videos))), labels, np.concatenate(parts), offsets)


PARTS = Parts(np.arange(15), np.arange(15, 21), np.arange(21, 24))


def fitted(config: TrainConfig, table: FeatureTable | None = None, parts: Parts = PARTS, **more: object) -> Fitted:
    return fit_head(table or table_of(), parts, 3, config, **more)  # type: ignore[arg-type]


def weights_of(one: Fitted) -> dict[str, torch.Tensor]:
    return one.head.state_dict()


def equal(one: Fitted, other: Fitted) -> bool:
    mine, theirs = weights_of(one), weights_of(other)
    return all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("head", get_args(HeadName))
def test_one_seed_gives_the_same_weights_for_every_head(head: HeadName) -> None:
    config = dataclasses.replace(SMALL, head=head, dropout=0.2, temporal_jitter=0.3)
    assert equal(fitted(config), fitted(config))
    if head not in ("mean_pool", "linear"):
        assert not equal(fitted(config), fitted(dataclasses.replace(config, seed=1))) or head in ("svm", "ridge")


@pytest.mark.parametrize("head", get_args(HeadName))
def test_every_head_learns(head: HeadName) -> None:
    one = fitted(dataclasses.replace(SMALL, head=head, epochs=25))
    assert one.history[-1].train_accuracy > 0.9


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.3},
        {"input_dropout": 0.3},
        {"weight_decay": 0.1},
        {"label_smoothing": 0.2},
        {"clip_norm": 0.01},
        {"class_weights": "balanced"},
        {"temporal_jitter": 0.5},
        {"temporal_crop": 0.5},
        {"schedule": "cosine"},
        {"schedule": "step", "schedule_epochs": 1},
        {"optimizer": "adamw"},
        {"precision": "bf16"},
        {"num_layers": 2},
        {"average_last": 0.5},
    ],
)
def test_each_option_changes_the_weights(change: dict[str, object]) -> None:
    parts = Parts(np.arange(14), PARTS.val, PARTS.test)  # of unlike classes, so that weights of classes matter
    plain = fitted(SMALL, parts=parts)
    other = fitted(dataclasses.replace(SMALL, **change), parts=parts)  # type: ignore[arg-type]
    assert not torch.equal(plain.head.classifier.weight, other.head.classifier.weight)


def test_learning_rates_of_the_schedules() -> None:
    config = TrainConfig(learning_rate=0.5, epochs=10, schedule_epochs=3, schedule_factor=0.1)
    assert learning_rate(config, 9.5) == 0.5
    cosine = dataclasses.replace(config, schedule="cosine")
    assert [learning_rate(cosine, done) for done in (0, 5, 10)] == pytest.approx([0.5, 0.25, 0])
    assert learning_rate(cosine, 2.5) == pytest.approx(0.25 * (1 + math.sqrt(0.5)))
    step = dataclasses.replace(config, schedule="step")
    assert [learning_rate(step, done) for done in (0, 2.9, 3, 6.5)] == pytest.approx([0.5, 0.5, 0.05, 0.005])
    assert learning_rate(dataclasses.replace(config, schedule="plateau"), 9, drops=2) == pytest.approx(0.005)


def test_the_schedule_reaches_the_optimizer_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = torch.optim.RMSprop.step

    def step(self: torch.optim.RMSprop, closure: None = None) -> None:
        seen.append(self.param_groups[0]["lr"])
        original(self)

    monkeypatch.setattr(torch.optim.RMSprop, "step", step)
    config = dataclasses.replace(SMALL, schedule="cosine", epochs=2)
    history = fitted(config).history  # 15 videos, batches of 5: 3 steps an epoch
    assert seen == pytest.approx([0.005 * (1 + math.cos(math.pi * i / 6)) for i in range(6)])
    assert [epoch.learning_rate for epoch in history] == pytest.approx([seen[0], seen[3]])


def test_a_plateau_lowers_the_rate_after_epochs_without_a_lower_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 0.9, 0.95, 0.91, 0.8, 0.85, 0.86, 0.87])
    monkeypatch.setattr(fit, "val_measures", lambda *args: (next(losses), 0.5))
    config = dataclasses.replace(SMALL, epochs=8, schedule="plateau", schedule_epochs=2, schedule_factor=0.5)
    one = fitted(config)
    assert [epoch.learning_rate for epoch in one.history] == pytest.approx([0.01] * 4 + [0.005] * 3 + [0.0025])
    assert one.best_epoch == 8  # without patience the last epoch stays


@pytest.mark.parametrize(("share", "first"), [(0.5, 3), (1.0, 1), (0.01, 4)])
def test_the_weights_of_the_last_epochs_are_averaged(monkeypatch: pytest.MonkeyPatch, share: float, first: int) -> None:
    after: list[dict[str, torch.Tensor]] = []
    original = fit.val_measures

    def measure(head: torch.nn.Module, *rest: Any) -> object:
        after.append({name: value.clone() for name, value in head.state_dict().items()})
        return original(head, *rest)

    monkeypatch.setattr(fit, "val_measures", measure)
    one = fitted(dataclasses.replace(SMALL, average_last=share))
    assert len(after) == 4
    for name, value in weights_of(one).items():
        wanted = torch.stack([weights[name].double() for weights in after[first - 1 :]]).mean(dim=0)
        assert torch.allclose(value.double(), wanted, rtol=0, atol=1e-6), name
    # The epochs themselves are those of a training without.
    assert [row.train_loss for row in one.history] == [row.train_loss for row in fitted(SMALL).history]


def test_adamw_is_torchs() -> None:
    config = dataclasses.replace(
        SMALL, optimizer="adamw", weight_decay=0.3, epochs=3, batch_size=100, standardise=False
    )
    one = fitted(config)
    torch.manual_seed(config.seed)
    head = build_head(config.head_config, 6, 3)
    decayed = [value for value in head.parameters() if value.ndim > 1]
    plain = [value for value in head.parameters() if value.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}], lr=config.learning_rate
    )
    (batch,) = FeatureBatches(table_of()).batches(100, rows=PARTS.train)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(head(batch.features, batch.lengths), batch.labels).backward()
        optimizer.step()
    for name, value in head.state_dict().items():
        torch.testing.assert_close(weights_of(one)[name], value, rtol=0, atol=1e-4)


def test_the_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.RMSprop.step

    def step(self: torch.optim.RMSprop, closure: None = None) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        original(self)

    monkeypatch.setattr(torch.optim.RMSprop, "step", step)
    fitted(SMALL)
    assert max(norms) > 0.05
    norms.clear()
    fitted(dataclasses.replace(SMALL, clip_norm=0.05))
    assert 0.04 < max(norms) <= 0.0501


def test_the_loss_by_hand() -> None:
    torch.manual_seed(0)
    log_p, labels = torch.randn(5, 4).log_softmax(dim=1), torch.tensor([0, 3, 3, 1, 2])
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0])
    for smoothing in (0.0, 0.3):
        for own in (None, weights):
            # On normalised log probabilities torch's cross-entropy of logits is the same.
            expected = torch.nn.functional.cross_entropy(log_p, labels, own, label_smoothing=smoothing)
            if smoothing and own is not None:
                # torch weighs the smoothed part by every class's weight; here a video has one weight, its label's.
                target = (1 - smoothing) * torch.nn.functional.one_hot(labels, 4) + smoothing / 4
                losses = -(target * log_p).sum(dim=1)
                expected = (own[labels] * losses).sum() / own[labels].sum()
            torch.testing.assert_close(classification_loss(log_p, labels, smoothing, own), expected)


def test_balanced_weights_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    seen = []
    original = fit.classification_loss

    def loss(log_p: torch.Tensor, labels: torch.Tensor, smoothing: float, weights: torch.Tensor) -> torch.Tensor:
        seen.append(weights)
        return original(log_p, labels, smoothing, weights)

    monkeypatch.setattr(fit, "classification_loss", loss)
    table, rows = table_of(), np.array([0, 1, 2, 3, 6, 9, 12])
    parts = Parts(rows, rows[:0], rows[:0])
    fitted(dataclasses.replace(SMALL, class_weights="balanced"), table, parts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=table.labels[rows])
    np.testing.assert_allclose(seen[0], expected, rtol=1e-6)


@pytest.mark.parametrize("option", ["temporal_jitter", "temporal_crop"])
def test_jitter_and_crop_act_in_training_only(option: str) -> None:
    table = table_of(clips=(4, 9))
    lengths: dict[bool, set[int]] = {True: set(), False: set()}
    config = dataclasses.replace(SMALL, epochs=2, **{option: 0.5})
    head = fitted(config, table).head
    original = type(head).forward

    def forward(self: torch.nn.Module, features: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        lengths[self.training] |= set(own.tolist())
        return original(self, features, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(head), "forward", forward)
        fitted(config, table)
    assert lengths[True] == {math.ceil(n / 2) for n in table.lengths[PARTS.train]}
    assert lengths[False] == set(table.lengths[PARTS.val].tolist())


def test_the_steps_of_a_sub_video_are_taken_of_the_sub_video() -> None:
    """As many steps as tests have, from half of each training video: clips that the whole video's steps leave out."""
    table = table_of(clips=(12, 13))
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    config = dataclasses.replace(SMALL, temporal_crop=0.5, num_steps=4, epochs=3)
    original = SequenceClassifier.forward

    def forward(self: SequenceClassifier, features: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        assert own.tolist() == [4] * len(own)
        seen[self.training].append(features.flatten(0, 1))
        return original(self, features, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceClassifier, "forward", forward)
        fitted(config, table)
    clips = {training: {tuple(row) for row in torch.cat(own).tolist()} for training, own in seen.items()}
    stepped = {tuple(row) for row in take_steps(table, 4).features.astype(np.float32).tolist()}
    assert clips[False] <= stepped
    assert len(clips[True] - stepped) > 20


@pytest.mark.parametrize("head", get_args(HeadName))
def test_every_head_learns_in_bf16(head: HeadName) -> None:
    one = fitted(dataclasses.replace(SMALL, head=head, epochs=25, precision="bf16"))
    assert one.history[-1].train_accuracy > 0.9


def test_bf16_stays_close_and_scores_in_fp32() -> None:
    plain = fitted(dataclasses.replace(SMALL, epochs=15))
    mixed = fitted(dataclasses.replace(SMALL, epochs=15, precision="bf16"))
    assert mixed.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, abs=0.1)
    assert {value.dtype for value in weights_of(mixed).values()} == {torch.float32}
    batch = next(iter(mixed.data.batches(4)))
    assert mixed.head(batch.features, batch.lengths).dtype == torch.float32


def test_mid_fusion_needs_the_sizes_of_the_streams() -> None:
    config = dataclasses.replace(SMALL, mid_fusion="input")
    assert fitted(config, stream_dims=[3, 3]).head.stream_dims == (3, 3)
    with pytest.raises(RunError, match="two or more feature sets"):
        fitted(config)


@pytest.mark.parametrize("op", ["sum", "product", "concat"])
def test_mid_fusion_scales_by_the_joined_features_of_the_training_clips(op: FusionOp) -> None:
    one = fitted(dataclasses.replace(SMALL, mid_fusion="input", fusion_op=op, standardise=True), stream_dims=[3, 3])
    table = table_of()
    clips = np.concatenate([table.features[table.offsets[row] : table.offsets[row + 1]] for row in PARTS.train])
    rgb, flow = np.split(clips.astype(np.float64), 2, axis=1)
    joined = {"sum": rgb + flow, "product": rgb * flow, "concat": clips}[op]
    np.testing.assert_allclose(one.head.input_mean, joined.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(one.head.input_scale, 1 / joined.std(axis=0), rtol=1e-5)


def test_epochs_are_told_as_they_end() -> None:
    told: list[Epoch] = []
    one = fitted(SMALL, on_epoch=told.append)
    assert told == one.history
    assert [epoch.epoch for epoch in told] == [1, 2, 3, 4]


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_holds_the_features_and_learns_the_same() -> None:
    cuda, cpu = (fitted(dataclasses.replace(SMALL, epochs=15, device=name)) for name in ("cuda", "cpu"))
    assert cuda.data.resident
    assert cuda.history[-1].train_loss == pytest.approx(cpu.history[-1].train_loss, abs=0.05)


@pytest.mark.parametrize("head", ["lstm", "mean_pool"])
def test_time_steps_are_those_of_features_that_were_sampled_so(tmp_path: Path, head: str) -> None:
    features, labels = blobs(("boxing", "running"), 8)
    sampled = {video_id: array[sparse_clip_indices(len(array), 2)] for video_id, array in features.items()}
    split = split_of([v for v in labels if int(v[-1]) < 6], [v for v in labels if int(v[-1]) >= 6])
    config = TrainConfig(head=head, units=4, epochs=3, device="cpu")
    scores = []
    for name, stored, own in (
        ("all", features, dataclasses.replace(config, num_steps=2)),
        ("two", sampled, config),
    ):
        store, feature_set = feature_store(tmp_path / f"{name}.zarr", stored)
        train_split(store, feature_set, manifest(labels), split, own, tmp_path / name)
        run = load_run(tmp_path / name)
        scores.append(run.scores().probabilities)
        asked = [predict_scores(run, stored[video_id]) for video_id in run.scores().video_ids]
        np.testing.assert_allclose(asked, scores[-1], atol=1e-6)
    np.testing.assert_array_equal(scores[0], scores[1])
    clf = HeadClassifier(head=head, units=4, epochs=3, device="cpu", num_steps=2)
    clf.fit([features[v] for v in split.train], [labels[v] for v in split.train])
    np.testing.assert_allclose(clf.predict_proba([features[v] for v in split.test]), scores[0], atol=1e-6)
