"""Batches through a raw-video network: the updates of training, and the scores of whole videos.

Both networks share one loop. A stateless network sees a video as one window, a stateful one as windows of 8 frames. Its
state starts at zero with every batch and is passed from window to window, by default without the gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from har_pipeline.models.convlstm.augment import draw_views, take_views
from har_pipeline.models.convlstm.networks import RawNetwork, detach_state
from har_pipeline.models.convlstm.windows import (
    length_batches,
    plain_batches,
    silent_windows,
    stateful_indices,
    stateful_length,
    stateless_indices,
    window_weights,
)
from har_pipeline.models.device import in_float64
from har_pipeline.training.batches import Frames
from har_pipeline.training.networks.distributed import ALONE, World
from har_pipeline.training.options import StateGradient

# Frames of an evaluation batch: 12 clips of 30, or 45 windows of 8. The first layer's gates of 360 frames at 64x64 px take
# 0.75 GB in fp32.
EVAL_FRAMES = 360

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
    whole: bool = False,
    rng: np.random.Generator | None = None,
    augment: float = 0.0,
) -> Iterator[VideoBatch]:
    """Yield the videos `rows` in batches with the frames that the network sees of each; see `models.convlstm.windows`.

    lengths: frames of every video of the table. rng: shuffles and draws a stateless network's clips; None = evaluation.
    whole: all windows of videos of more than 300 frames. augment: how far `rng` moves and scales the frames of a video.
    """
    if network.stateful:
        kept = [stateful_length(int(lengths[row]), network.clip_len, whole=whole) for row in rows]
        batches = length_batches(rows, kept, batch_size, rng)
    else:
        batches = plain_batches(rows, batch_size, rng)
    for batch in batches:
        if network.stateful:
            indices = np.stack([stateful_indices(int(lengths[v]), network.clip_len, whole=whole) for v in batch])
        else:
            indices = np.stack([stateless_indices(int(lengths[v]), network.clip_len, rng) for v in batch])[:, None]
        views = draw_views(len(batch), augment, rng) if augment and rng is not None else None
        yield VideoBatch(batch, indices, views)


class Learner:
    """A network with its optimiser, frames and arithmetic.

    precision: fp32, or bf16: autocast in forward passes. state_gradient: `window` = the gradient stops at each window,
    `video` = it goes back through the state to the video's start. With several processes gradients are averaged (DDP).
    Batch normalisation is not synchronised: each process normalises with its own batch of the published size, so the
    statistics do not depend on the number of processes; the running averages are those of the first process.
    """

    def __init__(
        self,
        network: RawNetwork,
        frames: Frames,
        num_classes: int,
        *,
        precision: str,
        state_gradient: StateGradient = "window",
        world: World = ALONE,
    ) -> None:
        self.network = network.to(frames.device)
        self.frames, self.num_classes, self.precision, self.world = frames, num_classes, precision, world
        self.state_gradient = state_gradient
        self.restart()
        self._forward: nn.Module = self.network
        if world.size > 1:
            # `probabilities` broadcasts the running averages, where they are used: not every window.
            self._forward = nn.parallel.DistributedDataParallel(self.network, broadcast_buffers=False)

    def restart(self) -> None:
        """Start with a fresh Adam optimiser."""
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=0.0, eps=ADAM_EPSILON, fused=self.frames.device.type == "cuda"
        )

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
        """Update once, by the mean loss of all windows; return as `_train_apart`."""
        state, losses, votes = None, [], torch.zeros((), device=labels.device)
        with self._autocast():
            for window, weight in enumerate(window_weights(part.indices.shape[1])):
                logits, state = self._forward(self._clips(part, window), state)
                logits = logits.float()
                losses.append(nn.functional.cross_entropy(logits, labels) * share)
                votes = votes + weight * logits.detach().softmax(dim=1)
        self._update(torch.stack(losses).mean(), rate)
        return losses, votes

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

    def probabilities(self, rows: np.ndarray, *, whole: bool = False) -> np.ndarray:
        """Return (len(rows), K) float64 class probabilities; all processes must call this, each does its share."""
        for buffer in self.network.buffers() if self.world.size > 1 else ():
            torch.distributed.broadcast(buffer, src=0)
        found = video_probabilities(
            self.network, self.frames, rows, self.num_classes, precision=self.precision, whole=whole, world=self.world
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
    whole: bool = False,
    world: World = ALONE,
) -> np.ndarray:
    """Return (len(rows), K) float64 class probabilities of the videos; zeros in other processes' rows.

    Stateful: the mean of the windows' probabilities with weights that grow as (t / T)^3. The network is in evaluation
    mode afterwards. Source: Sanchez-Caballero 2020, section 4.2 and equation 1.
    """
    network.eval()
    places = np.arange(len(rows))
    result = np.zeros((len(rows), num_classes))
    batch_size = max(1, EVAL_FRAMES // network.clip_len)
    batches = arrange(network, frames.lengths[rows], places, batch_size, whole=whole)
    for batch in itertools.islice(batches, world.rank, None, world.size):
        result[batch.rows] = clip_probabilities(network, frames, rows[batch.rows], batch.indices, precision=precision)
    return result


def clip_probabilities(
    network: RawNetwork, frames: Frames, rows: np.ndarray, indices: np.ndarray, *, precision: str
) -> np.ndarray:
    """Return (B, K) float64: the windows' probabilities of one batch, weighted; see `video_probabilities`."""
    state: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None
    votes = torch.zeros(())
    for window, weight in enumerate(window_weights(indices.shape[1])):
        enabled = precision == "bf16"
        with torch.inference_mode(), torch.autocast(frames.device.type, torch.bfloat16, enabled=enabled):
            logits, state = network(frames.clips(rows, indices[:, window]), state)
            logits = in_float64(logits)
            votes = votes.to(logits.device) + weight * logits.softmax(dim=1)
    return votes.cpu().numpy()
