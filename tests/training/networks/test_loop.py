"""Batches through the raw-video networks: which windows move weights, what carries over, how scores are made."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from raw_learners import frames_of, learner_on, only_batch
from raw_sets import SIZE, drawn_videos, table_of
from torch import nn

from har_pipeline.features.table import FeatureTable
from har_pipeline.models.convlstm.augment import take_views
from har_pipeline.models.convlstm.networks import NetworkState, RawNetwork
from har_pipeline.models.convlstm.windows import Sampling
from har_pipeline.training.batches import Frames
from har_pipeline.training.networks.loop import arrange, video_probabilities
from har_pipeline.training.options import NormOver, WindowLoss

CPU = torch.device("cpu")
SHAPE = (1, SIZE, SIZE)


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_clips_are_the_stored_pixels_over_255() -> None:
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (7, 4 * 4 * 3), dtype=np.uint8)
    table = FeatureTable(("a", "b"), np.array([1, 0]), flat, np.array([0, 3, 7]))
    frames = Frames(table, (3, 4, 4), CPU)
    clips = frames.clips(np.array([1, 0]), np.array([[3, 0], [2, 2]]))
    assert clips.shape == (2, 2, 3, 4, 4)
    assert clips.dtype == torch.float32
    images = flat.reshape(7, 4, 4, 3)
    for video, places in enumerate([[6, 3], [2, 2]]):
        for time, place in enumerate(places):
            wanted = images[place].transpose(2, 0, 1).astype(np.float32) / 255
            assert np.allclose(clips[video, time].numpy(), wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("windows", [1, 2, 5, 6])
def test_the_first_half_of_the_windows_moves_no_weights(windows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = (
        learner_on({"0-1": 8 * windows + 3, "1-1": 8 * windows + 5})
        if windows < 3
        else learner_on({"0-1": {5: 40, 6: 48}[windows], "1-1": {5: 47, 6: 63}[windows]})
    )
    start = weights_of(learner.network)
    advanced: list[list[torch.Tensor]] = []
    updated: list[list[torch.Tensor]] = []
    averages = [buffer.clone() for buffer in learner.network.recurrent[0].norm.buffers()]  # type: ignore[union-attr,index]
    advance, update = learner.network.advance, learner._update

    def watched_advance(*args: object) -> object:
        assert not torch.is_grad_enabled()
        assert learner.network.training
        state = advance(*args)  # type: ignore[arg-type]
        advanced.append(weights_of(learner.network))
        return state

    def watched_update(loss: torch.Tensor, rate: float) -> None:
        if not updated:
            assert same(start, weights_of(learner.network))
        update(loss, rate)
        updated.append(weights_of(learner.network))

    monkeypatch.setattr(learner.network, "advance", watched_advance)
    monkeypatch.setattr(learner, "_update", watched_update)
    batch = only_batch(learner)
    assert batch.indices.shape == (2, windows, 8)
    result = learner.train_batch(batch, itertools.repeat(1e-3))
    assert len(advanced) == windows // 2
    assert all(same(start, seen) for seen in advanced)
    assert len(updated) == len(result.losses) == windows - windows // 2
    for before, after in itertools.pairwise([start, *updated]):
        assert not same(before, after)
    after = list(learner.network.recurrent[0].norm.buffers())  # type: ignore[union-attr,index]
    # Silent windows count in the running averages: num_batches_tracked is the last buffer.
    assert int(after[-1]) - int(averages[-1]) == windows


def test_each_update_has_its_own_rate() -> None:
    learner = learner_on({"0-1": 64, "1-1": 64})
    rates = iter([1e-3, 2e-3, 3e-3, 4e-3, 5e-3])
    learner.train_batch(only_batch(learner), rates)
    assert learner.optimizer.param_groups[0]["lr"] == 4e-3
    assert next(rates) == 5e-3


def test_training_starts_every_batch_without_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_on({"0-1": 24, "1-1": 24})
    given: list[bool] = []
    advance = learner.network.advance

    def watched(clips: torch.Tensor, state: object) -> object:
        given.append(state is None)
        return advance(clips, state)  # type: ignore[arg-type]

    monkeypatch.setattr(learner.network, "advance", watched)
    for _ in range(2):
        learner.train_batch(only_batch(learner), itertools.repeat(0.0))
    assert given == [True, True]


def test_a_gradient_ends_at_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_on({"0-1": 48, "1-1": 48})
    states: list[object] = []
    forward = learner.network.forward

    def watched(clips: torch.Tensor, state: NetworkState | None = None) -> object:
        states.append(state)
        assert state is None or not any(part.requires_grad for layer in state for part in layer)
        return forward(clips, state)

    monkeypatch.setattr(learner.network, "forward", watched)
    learner.train_batch(only_batch(learner), itertools.repeat(1e-3))
    assert len(states) == 3
    assert all(state is not None for state in states)


@pytest.mark.parametrize(
    ("norm_over", "window_loss", "weights"),
    [
        ("window", "equal", (1 / 3, 1 / 3, 1 / 3)),
        ("video", "equal", (1 / 3, 1 / 3, 1 / 3)),
        ("video", "vote", (1 / 36, 8 / 36, 27 / 36)),
    ],
)
def test_the_state_gradient_of_a_video_is_that_of_one_long_window(
    monkeypatch: pytest.MonkeyPatch, norm_over: NormOver, window_loss: WindowLoss, weights: tuple[float, ...]
) -> None:
    learner = learner_on({"0-1": 24, "1-1": 24})
    learner.state_gradient, learner.norm_over, learner.window_loss = "video", norm_over, window_loss
    network, batch = learner.network, only_batch(learner)
    # Without normalisation by the batch and dropout, three windows of 8 frames are one of 24 but for the answers between.
    network.eval()
    monkeypatch.setattr(network, "train", lambda: network)
    labels = learner.frames.labels[torch.from_numpy(batch.rows)]
    whole = learner.frames.clips(batch.rows, batch.indices.reshape(2, 24))
    losses = [nn.functional.cross_entropy(network(whole[:, : 8 * n])[0], labels) for n in (1, 2, 3)]
    together = (torch.tensor(weights) * torch.stack(losses)).sum()
    wanted = torch.autograd.grad(together, list(network.parameters()))
    rates = iter([0.0, 1.0])
    result = learner.train_batch(batch, rates)
    assert next(rates) == 1.0, "one update"
    assert [float(loss) for loss in result.losses] == pytest.approx([2 * loss.item() for loss in losses], rel=1e-4)
    for found, expected in zip((p.grad for p in network.parameters()), wanted, strict=True):
        assert found is not None
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-9)


@pytest.mark.parametrize("model", ["convlstm-stateful", "convlstm-stateless"])
def test_videos_share_a_batch_but_nothing_else(model: str) -> None:
    lengths = {"0-1": 40, "1-1": 46, "0-2": 70, "1-3": 9, "0-4": 3}
    learner = learner_on(lengths, model)
    rows = np.arange(5)
    together = learner.probabilities(rows)
    assert np.allclose(together.sum(axis=1), 1, rtol=0, atol=1e-9)
    for row in rows:
        alone = learner.probabilities(np.array([row]))
        assert np.allclose(alone[0], together[row], rtol=0, atol=1e-6)
    backwards = learner.probabilities(rows[::-1].copy())
    assert np.allclose(backwards[::-1], together, rtol=0, atol=1e-6)
    # A table without the others gives the same.
    videos = drawn_videos(lengths)[0]
    other = frames_of(table_of({"0-2": videos["0-2"]}))
    found = video_probabilities(learner.network, other, np.array([0]), 2, precision="fp32")
    assert np.allclose(found[0], together[2], rtol=0, atol=1e-6)


class Counting(RawNetwork):
    """Knows nothing of the frames: its logits are given for each window, and its state counts them."""

    clip_len, stateful = 8, True
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])

    def forward(self, clips: torch.Tensor, state: NetworkState | None = None) -> tuple[torch.Tensor, NetworkState]:
        window = int(state[0][0]) if state else 0
        count = torch.tensor(window + 1)
        return self.logits[window].expand(len(clips), 2), ((count, count),)

    def advance(self, clips: torch.Tensor, state: NetworkState | None = None) -> NetworkState:
        return self(clips, state)[1]


def test_scores_are_the_weighted_mean_of_the_windows_by_hand() -> None:
    frames = frames_of(table_of(drawn_videos({"0-1": 24, "1-1": 31, "0-2": 16, "0-3": 8})[0]))
    found = video_probabilities(Counting(), frames, np.arange(4), 2, precision="fp32")
    p = np.exp(Counting.logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    three, two = (p[0] + 8 * p[1] + 27 * p[2]) / 36, (p[0] + 8 * p[1]) / 9
    assert np.allclose(found, [three, three, two, p[0]], rtol=0, atol=1e-12)


def test_videos_of_more_than_300_frames_are_cut_or_taken_whole() -> None:
    learner = learner_on({"0-1": 330})
    lengths, rows = learner.frames.lengths, np.array([0])
    (cut,) = arrange(learner.network, lengths, rows, 6)
    (whole,) = arrange(learner.network, lengths, rows, 6, sampling=Sampling(whole=True))
    assert (cut.indices.shape[1], whole.indices.shape[1]) == (26, 41)


def test_a_step_takes_windows_of_every_nth_frame() -> None:
    learner = learner_on({"0-1": 49, "1-1": 50})
    (batch,) = arrange(learner.network, learner.frames.lengths, np.arange(2), 6, sampling=Sampling(step=2))
    assert np.array_equal(batch.indices, 2 * np.arange(24).reshape(1, 3, 8).repeat(2, axis=0))


def test_a_spread_clip_covers_the_video_in_training_and_tests() -> None:
    learner = learner_on({"0-1": 100, "1-1": 20}, "convlstm-stateless")
    for rng in (None, np.random.default_rng(0)):
        batches = arrange(
            learner.network, learner.frames.lengths, np.arange(2), 12, sampling=Sampling(spread=True), rng=rng
        )
        for batch in batches:
            assert batch.indices.shape[1:] == (1, 30)
            assert batch.indices[:, 0, [0, -1]].tolist() == [[0, (99, 19)[row]] for row in batch.rows]


def test_stateless_clips_are_drawn_in_training_and_the_middle_in_tests() -> None:
    learner = learner_on({"0-1": 100, "1-1": 50}, "convlstm-stateless")
    lengths, rows = learner.frames.lengths, np.arange(2)
    (test,) = arrange(learner.network, lengths, rows, 12)
    assert test.indices.shape == (2, 1, 30)
    assert test.indices[:, 0, 0].tolist() == [20, 10]
    starts = {
        tuple(np.sort(batch.indices[:, 0, 0]).tolist())
        for seed in range(5)
        for batch in arrange(learner.network, lengths, rows, 12, rng=np.random.default_rng(seed))
    }
    assert len(starts) == 5


@pytest.mark.parametrize("model", ["convlstm-stateless", "convlstm-stateful"])
def test_augmented_videos_are_seen_in_their_views(model: str) -> None:
    learner = learner_on({"0-1": 8, "1-1": 8, "1-2": 8}, model)
    lengths, rows = learner.frames.lengths, np.arange(3)
    rng = np.random.default_rng(0)
    (plain,) = arrange(learner.network, lengths, rows, 12, augment=0.3)
    (batch,) = arrange(learner.network, lengths, rows, 12, rng=rng, augment=0.3)
    assert plain.views is None
    assert batch.views is not None
    torch.manual_seed(5)
    network = learner.network.train()
    with torch.no_grad():
        logits, _ = network(take_views(learner.frames.clips(batch.rows, batch.indices[:, 0]), batch.views))
    labels = learner.frames.labels[torch.from_numpy(batch.rows)]
    torch.manual_seed(5)
    (loss,) = learner.train_batch(batch, itertools.repeat(0.0)).losses
    assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(logits, labels, reduction="sum")), rel=1e-5)


def test_the_loss_is_summed_over_videos_and_correct_counts_them() -> None:
    learner = learner_on({"0-1": 8, "1-1": 8, "1-2": 8})
    network = learner.network.train()
    batch = only_batch(learner)
    torch.manual_seed(5)
    with torch.no_grad():
        logits, _ = network(learner.frames.clips(batch.rows, batch.indices[:, 0]))
    labels = learner.frames.labels[torch.from_numpy(batch.rows)]
    torch.manual_seed(5)
    result = learner.train_batch(batch, itertools.repeat(0.0))
    wanted = nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert float(result.losses[0]) == pytest.approx(float(wanted), rel=1e-5)
    assert int(result.correct) == int((logits.argmax(dim=1) == labels).sum())


def test_bf16_is_near_fp32() -> None:
    learner = learner_on({"0-1": 40, "1-1": 46})
    exact = learner.probabilities(np.arange(2))
    learner.precision = "bf16"
    rough = learner.probabilities(np.arange(2))
    assert not np.array_equal(exact, rough)
    assert np.allclose(exact, rough, rtol=0, atol=0.02)
    learner.train_batch(only_batch(learner), itertools.repeat(1e-3))
    assert all(parameter.dtype == torch.float32 for parameter in learner.network.parameters())
