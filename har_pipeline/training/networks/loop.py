"""Batches through a raw-video network: the updates of training, and the scores of whole videos.

Both networks share one loop. A stateless network sees a video as one window, a stateful one as windows of 8 frames. Its
state starts at zero with every batch and is passed from window to window, by default without the gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from har_pipeline.models.config import Vote
from har_pipeline.models.convlstm.augment import draw_views, take_views
from har_pipeline.models.convlstm.networks import NetworkState, RawNetwork, detach_state
from har_pipeline.models.convlstm.windows import (
    PUBLISHED,
    Sampling,
    drawn_indices,
    length_batches,
    plain_batches,
    silent_windows,
    spread_indices,
    stateful_indices,
    stateful_length,
    stateless_indices,
    stepped_length,
    voting_indices,
    window_weights,
)
from har_pipeline.models.device import in_float64
from har_pipeline.models.heads.pooling import vote
from har_pipeline.training.batches import Frames
from har_pipeline.training.networks.distributed import ALONE, World
from har_pipeline.training.options import NormOver, StateGradient, VideoTrainConfig, WindowLoss

# Frames of an evaluation batch: 12 clips of 30, or 45 windows of 8. The first layer's gates of 360 frames at 64x64 px take
# 0.75 GB in fp32.
EVAL_FRAMES = 360

# Clips that vote at once, of 9 frames each.
VOTING_CLIPS = 64

# Keras's default, torch's is 1e-8; the paper does not say.
ADAM_EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class VideoBatch:
    """B videos that go through the network together, in n windows of T frames."""

    # (B,) in the table.
    rows: np.ndarray
    # (B, n, T) frame numbers.
    indices: np.ndarray
    # (B, 4) of `models.convlstm.augment`; None = the frames as they are.
    views: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a training batch gave."""

    # Of each predicted window, summed over videos.
    losses: tuple[torch.Tensor, ...]
    # Videos classified correctly.
    correct: torch.Tensor


def arrange(
    network: RawNetwork,
    lengths: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    sampling: Sampling = PUBLISHED,
    rng: np.random.Generator | None = None,
    augment: float = 0.0,
) -> Iterator[VideoBatch]:
    """Yield the videos `rows` in batches with the frames that the network sees of each; see `models.convlstm.windows`.

    lengths: frames of every video of the table. rng: shuffles and draws a stateless network's clips; None = evaluation.
    augment: how far `rng` moves and scales the frames of a video. Of a network that votes, a training batch holds clips, each
    drawn by itself, and an evaluation batch all clips of one video.
    """
    if network.votes:
        batches = (
            plain_batches(rows, 1) if rng is None else plain_batches(np.repeat(rows, sampling.drawn), batch_size, rng)
        )
    elif network.stateful:
        there = [stepped_length(int(lengths[row]), sampling.step) for row in rows]
        kept = [stateful_length(length, network.clip_len, whole=sampling.whole) for length in there]
        batches = length_batches(rows, kept, batch_size, rng)
    else:
        batches = plain_batches(rows, batch_size, rng)
    for batch in batches:
        indices = np.stack([_windows(network, int(lengths[row]), sampling, rng) for row in batch])
        views = None
        if rng is not None and (augment or sampling.flips):
            views = draw_views(len(batch), augment, rng, flips=sampling.flips)
        yield VideoBatch(batch, indices, views)


def _windows(network: RawNetwork, length: int, sampling: Sampling, rng: np.random.Generator | None) -> np.ndarray:
    """Return (n, T) frame numbers of a video of `length` frames."""
    if network.votes:
        if rng is not None:
            return drawn_indices(length, network.clip_len, rng)[None]
        return voting_indices(length, network.clip_len, sampling.stride)
    if network.stateful:
        return stateful_indices(length, network.clip_len, whole=sampling.whole, step=sampling.step)
    if sampling.spread:
        return spread_indices(length, network.clip_len)[None]
    return stateless_indices(length, network.clip_len, rng)[None]


def sampling_of(config: VideoTrainConfig) -> Sampling:
    """Return which frames a network sees that is trained with these options."""
    return Sampling(
        whole=config.long_videos == "whole",
        step=config.frame_step,
        spread=config.clip == "whole",
        stride=config.clip_stride,
        drawn=config.clips_per_video,
        flips=config.model == "convnet3d" and config.flips,
        vote=config.vote,
    )


class Learner:
    """A network with its optimiser, frames and arithmetic.

    precision: fp32, or bf16: autocast in forward passes. state_gradient: `window` = the gradient stops at each window,
    `video` = it goes back through the state to the video's start. norm_over, with the latter: whether batch normalisation
    takes its statistics from each `window` or from all of a `video`'s. window_loss, with it too: see `_train_together`.
    momentum: of plain gradient descent; None: Adam. With several processes gradients are averaged (DDP). Batch
    normalisation is not synchronised: each process normalises with its own batch of the published size, so the statistics
    do not depend on the number of processes; the running averages are those of the first process.
    """

    def __init__(
        self,
        network: RawNetwork,
        frames: Frames,
        num_classes: int,
        *,
        precision: str,
        state_gradient: StateGradient = "window",
        norm_over: NormOver = "window",
        window_loss: WindowLoss = "equal",
        momentum: float | None = None,
        world: World = ALONE,
    ) -> None:
        self.momentum = momentum
        self.network = network.to(frames.device)
        self.frames, self.num_classes, self.precision, self.world = frames, num_classes, precision, world
        self.state_gradient, self.norm_over, self.window_loss = state_gradient, norm_over, window_loss
        self.restart()
        self._forward: nn.Module = self.network
        if world.size > 1:
            # `probabilities` broadcasts the running averages, where they are used: not every window.
            self._forward = nn.parallel.DistributedDataParallel(self.network, broadcast_buffers=False)

    def restart(self) -> None:
        """Start with a fresh optimiser."""
        weights, fused = self.network.parameters(), self.frames.device.type == "cuda"
        self.optimizer: torch.optim.Optimizer
        if self.momentum is None:
            self.optimizer = torch.optim.Adam(weights, lr=0.0, eps=ADAM_EPSILON, fused=fused)
        else:
            self.optimizer = torch.optim.SGD(weights, lr=0.0, momentum=self.momentum, fused=fused)

    def train_batch(self, batch: VideoBatch, rates: Iterator[float]) -> BatchResult:
        """Update the weights after each window in the second half of a batch, at the next of `rates`.

        The first half of a video's windows, rounded down, only builds up its state: no gradient, no update. Batch
        normalisation runs in training mode there, and its running averages include them, as tests will; dropout comes
        after the recurrent block and is not reached. `correct` counts videos by the weighted mean over the predicted
        windows, here those of the second half.
        With the state gradient `video` there is one update, by the mean loss of all windows, and all are predicted.
        Source: Sanchez-Caballero 2020, section 4.2; the state gradient `video` is ours.
        """
        own, share = self.world.part(batch.rows)
        part = VideoBatch(batch.rows[own], batch.indices[own], None if batch.views is None else batch.views[own])
        self.network.train()
        labels = self.frames.labels[torch.from_numpy(part.rows).to(self.frames.device)]
        if self.state_gradient == "video":
            losses, votes = self._train_together(part, labels, share, next(rates))
        else:
            losses, votes = self._train_apart(part, labels, share, rates)
        reported = tuple(loss.detach() * len(batch.rows) / self.world.size for loss in losses)
        return BatchResult(reported, (votes.argmax(dim=1) == labels).sum() * bool(share))

    def _train_apart(
        self, part: VideoBatch, labels: torch.Tensor, share: float, rates: Iterator[float]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Update after each window of the second half; return their losses and the weighted probabilities (B, K)."""
        windows = part.indices.shape[1]
        silent = silent_windows(windows)
        state, losses, votes = None, [], torch.zeros((), device=labels.device)
        for window in range(silent):
            with torch.no_grad(), self._autocast():
                state = self.network.advance(self._clips(part, window), state)
        for window, weight in enumerate(window_weights(windows)[silent:], silent):
            # One context per window: autocast keeps its copies of the weights as long as a context lasts.
            with self._autocast():
                logits, state = self._forward(self._clips(part, window), state)
            logits = logits.float()
            loss = nn.functional.cross_entropy(logits, labels) * share
            self._update(loss, next(rates))
            state = detach_state(state)
            votes = votes + weight * logits.detach().softmax(dim=1)
            losses.append(loss)
        return losses, votes

    def _train_together(
        self, part: VideoBatch, labels: torch.Tensor, share: float, rate: float
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Update once, by the mean loss of all windows, or one weighted as their votes; return as `_train_apart`."""
        losses, votes = [], torch.zeros((), device=labels.device)
        with self._autocast():
            answers = self._window_logits(part)
            weights = window_weights(len(answers))
            for logits, weight in zip(answers, weights, strict=True):
                losses.append(nn.functional.cross_entropy(logits.float(), labels) * share)
                votes = votes + weight * logits.detach().float().softmax(dim=1)
        together = torch.stack(losses)
        by_vote = torch.from_numpy(weights).to(together) if self.window_loss == "vote" else None
        self._update(together.mean() if by_vote is None else (by_vote * together).sum(), rate)
        return losses, votes

    def _window_logits(self, part: VideoBatch) -> list[torch.Tensor]:
        """Return the logits (B, K) of each window, with the graph of the windows before it."""
        windows = range(part.indices.shape[1])
        if self.norm_over == "video":
            clips = torch.stack([self._clips(part, window) for window in windows], dim=1)
            return list(self._forward(clips, None)[0])
        state, found = None, []
        for window in windows:
            logits, state = self._forward(self._clips(part, window), state)
            found.append(logits)
        return found

    def _clips(self, batch: VideoBatch, window: int) -> torch.Tensor:
        clips = self.frames.clips(batch.rows, batch.indices[:, window])
        return clips if batch.views is None else take_views(clips, batch.views)

    def _update(self, loss: torch.Tensor, rate: float) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.frames.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def probabilities(self, rows: np.ndarray, *, sampling: Sampling = PUBLISHED) -> np.ndarray:
        """Return (len(rows), K) float64 class probabilities; all processes must call this, each does its share."""
        for buffer in self.network.buffers() if self.world.size > 1 else ():
            torch.distributed.broadcast(buffer, src=0)
        found = video_probabilities(
            self.network,
            self.frames,
            rows,
            self.num_classes,
            precision=self.precision,
            sampling=sampling,
            world=self.world,
        )
        if self.world.size == 1:
            return found
        return self.world.total(torch.from_numpy(found).to(self.frames.device)).cpu().numpy()


def video_probabilities(
    network: RawNetwork,
    frames: Frames,
    rows: np.ndarray,
    num_classes: int,
    *,
    precision: str,
    sampling: Sampling = PUBLISHED,
    world: World = ALONE,
) -> np.ndarray:
    """Return (len(rows), K) float64 class probabilities of the videos; zeros in other processes' rows.

    Stateful: the mean of the windows' probabilities with weights that grow as (t / T)^3. The network is in evaluation
    mode afterwards. Source: Sanchez-Caballero 2020, section 4.2 and equation 1. A network that votes: the vote of the video's
    clips (Baccouche 2011, section 4.2).
    """
    network.eval()
    places = np.arange(len(rows))
    result = np.zeros((len(rows), num_classes))
    batch_size = max(1, EVAL_FRAMES // network.clip_len)
    batches = arrange(network, frames.lengths[rows], places, batch_size, sampling=sampling)
    for batch in itertools.islice(batches, world.rank, None, world.size):
        if network.votes:
            (video,) = rows[batch.rows]
            result[batch.rows] = voted_probabilities(network, frames, video, batch.indices[0], sampling.vote, precision)
            continue
        result[batch.rows] = clip_probabilities(network, frames, rows[batch.rows], batch.indices, precision=precision)
    return result


def clip_probabilities(
    network: RawNetwork, frames: Frames, rows: np.ndarray, indices: np.ndarray, *, precision: str
) -> np.ndarray:
    """Return (B, K) float64: the windows' probabilities of one batch, weighted; see `video_probabilities`."""
    state: NetworkState | None = None
    votes = torch.zeros(())
    for window, weight in enumerate(window_weights(indices.shape[1])):
        enabled = precision == "bf16"
        with torch.inference_mode(), torch.autocast(frames.device.type, torch.bfloat16, enabled=enabled):
            logits, state = network(frames.clips(rows, indices[:, window]), state)
            logits = in_float64(logits)
            votes = votes.to(logits.device) + weight * logits.softmax(dim=1)
    return votes.cpu().numpy()


def voted_probabilities(
    network: RawNetwork, frames: Frames, row: int, indices: np.ndarray, how: Vote, precision: str
) -> np.ndarray:
    """Return (K,) float64 class probabilities of a video, the vote of its clips (n, T); see `heads.pooling.vote`."""
    found = []
    for part in np.array_split(indices, -(-len(indices) // VOTING_CLIPS)):
        enabled = precision == "bf16"
        with torch.inference_mode(), torch.autocast(frames.device.type, torch.bfloat16, enabled=enabled):
            logits, _ = network(frames.clips(np.full(len(part), row), part))
        found.append(in_float64(logits).log_softmax(dim=1).cpu())
    clips = torch.cat(found)[None]
    return vote(clips, torch.tensor([clips.shape[1]]), how).exp()[0].numpy()
