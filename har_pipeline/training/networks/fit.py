"""The epochs of training a network on raw frames: schedule, validation, best weights, checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from har_pipeline.core.errors import RunError
from har_pipeline.core.memory import keep_freed_memory
from har_pipeline.features.frames import frame_shape
from har_pipeline.features.options import WINDOWS, RawOptions
from har_pipeline.features.table import FeatureTable
from har_pipeline.models.convlstm.networks import build_network, set_memory
from har_pipeline.models.device import in_float64, pick_device, pick_precision
from har_pipeline.training.batches import Frames
from har_pipeline.training.checkpoint import CHECKPOINT, damaged, load_checkpoint, save_checkpoint
from har_pipeline.training.data import TrainingData
from har_pipeline.training.history import Epoch, OnEpoch, loss_and_accuracy
from har_pipeline.training.memory import network_need, require_memory
from har_pipeline.training.networks.distributed import ALONE, World
from har_pipeline.training.networks.loop import Learner, arrange, sampling_of
from har_pipeline.training.options import VideoTrainConfig
from har_pipeline.training.schedules import MOMENTUM_CONVNET3D, halvings, no_longer_rises
from har_pipeline.training.threads import continue_with

REPORT_SECONDS = 0.5

# In smaller frames the last convolution of the stateful network leaves one px, too few for batch normalisation.
SMALLEST_FRAME = 48

WINDOW_SHAPES = [RawOptions(stream="rgb", window=window).shape for window in WINDOWS]


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Where training stands."""

    epoch: int  # from 1
    epochs: int
    batch: int  # batches done of this epoch
    batches: int
    loss: float  # mean of the epoch so far
    accuracy: float  # mean of the epoch so far
    learning_rate: float


OnBatch = Callable[[BatchProgress], None]


@dataclass(frozen=True, slots=True)
class FittedNetwork:
    """A trained network, on the device, with the weights of its best epoch."""

    learner: Learner
    history: tuple[Epoch, ...]
    best_epoch: int
    # Of the epochs that the training found in the checkpoint.
    seconds_before: float


def make_learner(
    table: FeatureTable, shape: tuple[int, int, int], num_classes: int, config: VideoTrainConfig, world: World = ALONE
) -> Learner:
    """Return a learner with fresh weights drawn from the seed.

    Raises: RunError if the frames are smaller than 48x48 px or no windows where the network reads these, or
    the memory is too small; DeviceError if the device is absent.
    """
    _check_shape(shape, config)
    device = pick_device(config.device)
    need = network_need(config, shape, num_classes, len(table.lengths), int(table.lengths.max()))
    # The frames are there already.
    require_memory(dataclasses.replace(need, features=0), config, [table.feature_dim])
    torch.manual_seed(config.seed)
    network = build_network(
        config.model, num_classes, channels=shape[0], width=config.width, gates=config.gates, motion=config.motion
    )
    if config.memory_frames is not None:
        set_memory(network, config.memory_frames)
    precision = pick_precision(config.arithmetic, device)
    return Learner(
        network,
        Frames(table, shape, device),
        num_classes,
        precision=precision,
        state_gradient=config.state_gradient,
        norm_over=config.norm_over,
        window_loss=config.window_loss,
        momentum=MOMENTUM_CONVNET3D if config.model == "convnet3d" else None,
        world=world,
    )


def _check_shape(shape: tuple[int, int, int], config: VideoTrainConfig) -> None:
    if config.model == "convnet3d":
        if shape not in WINDOW_SHAPES:
            raise RunError(
                f"convnet3d reads grey windows of people, not frames of {shape[2]}x{shape[1]} px: prepare them with "
                "`har frames --stream rgb --window person`"
            )
    elif min(shape[1:]) < SMALLEST_FRAME:
        raise RunError(
            f"the networks need frames of at least {SMALLEST_FRAME} px, not {min(shape[1:])}; the paper's have 64"
        )


def fit_network(
    data: TrainingData,
    config: VideoTrainConfig,
    *,
    checkpoint: Path | None = None,
    world: World = ALONE,
    on_epoch: OnEpoch = lambda epoch: None,
    on_batch: OnBatch = lambda progress: None,
) -> FittedNetwork:
    """Train a network on the training rows; the validation rows choose the epoch whose weights are kept.

    The best epoch has the highest validation accuracy, of equals the lowest loss; without validation videos it is the
    last one. The restart of the published stateless schedule goes on from the best epoch so far, and halves its rate by
    validation accuracy; without validation videos it goes on from the epoch before it, and halves by training accuracy.
    The paper seems to choose by the test videos: it shows validation curves, but describes only a training and a test part.
    Here validation videos come from the training subjects, and the test rows are never looked at.
    The 3D-ConvNet's training also ends when its accuracy on the drawn clips no longer rises, and keeps the epoch after which
    it did not; its paper has no validation videos.
    checkpoint: a file written at the end of each epoch; if it exists, training resumes from it, and the history is that of a
    training which was never interrupted. All that is random in an epoch (order, clips, dropout) is drawn from (seed, epoch,
    process), so no random state has to be stored. torch's global random state is left as it was.
    Raises: RunError if the device is absent, the checkpoint is damaged, or the loss is not finite; FeatureMismatchError
    if the data are not raw frames.
    """
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    (spec,) = data.specs
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        learner = make_learner(data.table, frame_shape(spec), len(data.classes), config, world)
        state = _Progress(learner, config)
        found = world.share(load_checkpoint(checkpoint) if checkpoint and world.first else None)
        if found is not None:
            try:
                state.resume(found)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise damaged(checkpoint or Path(CHECKPOINT), error) from error
        seconds_before = sum(epoch.seconds for epoch in state.history)
        while len(state.history) < config.num_epochs and not state.ended:
            start = time.perf_counter()
            state.begin_epoch()
            rate, loss, accuracy = _train_epoch(state, data.parts.train, on_batch)
            val_loss, val_accuracy = _val_measures(learner, data, config)
            seconds = round(time.perf_counter() - start, 3)
            number = len(state.history) + 1
            state.end_epoch(Epoch(number, rate, loss, accuracy, val_loss, val_accuracy, seconds))
            if checkpoint and world.first:
                save_checkpoint(checkpoint, state.to_dict())
            on_epoch(state.history[-1])
        learner.network.load_state_dict(state.best_weights)
        best = best_epoch(state.history, learned=config.stops_early)
        return FittedNetwork(learner, tuple(state.history), best, seconds_before)


class _Progress:
    """What a checkpoint holds: the epochs so far, the weights, the optimiser, and the best weights."""

    def __init__(self, learner: Learner, config: VideoTrainConfig) -> None:
        self.learner, self.config = learner, config
        self.history: list[Epoch] = []
        self.best_weights = copy.deepcopy(learner.network.state_dict())

    def resume(self, state: dict[str, Any]) -> None:
        self.history = [Epoch(**row) for row in list(state["history"])]
        if not self.history:
            raise ValueError("it holds no epoch")
        self.best_weights = state["best_weights"]
        self.learner.network.load_state_dict(self.best_weights)  # which fails now rather than after the last epoch
        self.learner.network.load_state_dict(state["weights"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        continue_with(int(state.get("threads", torch.get_num_threads())))

    def to_dict(self) -> dict[str, Any]:
        return {
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
            "weights": self.learner.network.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "threads": torch.get_num_threads(),
            "best_weights": self.best_weights,
        }

    @property
    def ended(self) -> bool:
        """Whether training stops before its last epoch."""
        accuracies = [epoch.train_accuracy for epoch in self.history]
        return self.config.stops_early and no_longer_rises(accuracies, self.config.stop_after)

    def begin_epoch(self) -> None:
        done, config = len(self.history), self.config
        drawn = np.random.SeedSequence([config.seed, done, self.learner.world.rank]).generate_state(1)
        torch.manual_seed(int(drawn[0]))
        if 0 < done == config.main_epochs:
            self.learner.network.load_state_dict(self.best_weights)
            self.learner.restart()

    def end_epoch(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        if not math.isfinite(epoch.train_loss):
            raise RunError(
                f"the loss became {epoch.train_loss} in epoch {epoch.epoch}: train with a lower --learning-rate "
                "(`har lr-range` suggests one), or --precision fp32"
            )
        if best_epoch(self.history, learned=self.config.stops_early) == epoch.epoch:
            self.best_weights = copy.deepcopy(self.learner.network.state_dict())

    def rate(self, share: float) -> float:
        """Return the learning rate after a share of the current epoch."""
        later = self.history[self.config.main_epochs :]
        gains = [e.train_accuracy if e.val_accuracy is None else e.val_accuracy for e in later]
        return self.config.rate(len(self.history) + share, halvings(gains, self.config.patience))


def best_epoch(history: Sequence[Epoch], *, learned: bool = False) -> int:
    """Return the epoch with the highest validation accuracy, then the lowest loss, then the first; else the last.

    learned: without validation videos the epoch with the best training numbers, after which training no longer learned.
    """
    best = history[-1]
    for epoch in history[-2::-1] if learned or best.val_accuracy is not None else ():
        if _merit(epoch) >= _merit(best):
            best = epoch
    return best.epoch


def _merit(epoch: Epoch) -> tuple[float, float]:
    if epoch.val_accuracy is None or epoch.val_loss is None:
        return epoch.train_accuracy, -epoch.train_loss
    return epoch.val_accuracy, -epoch.val_loss


def _train_epoch(state: _Progress, rows: np.ndarray, on_batch: OnBatch) -> tuple[float, float, float]:
    """Train for one epoch; returns its first learning rate, mean loss, accuracy."""
    learner, config, number = state.learner, state.config, len(state.history) + 1
    rng = np.random.default_rng([config.seed, number])
    batches = list(
        arrange(
            learner.network,
            learner.frames.lengths,
            rows,
            config.videos_per_batch * learner.world.size,
            sampling=sampling_of(config),
            rng=rng,
            augment=config.augment,
        )
    )
    # sums: loss and correct videos of this process; counts: predictions and videos of all processes.
    sums, counts, reported = in_float64(torch.zeros(2, device=learner.frames.device)), [0, 0], 0.0
    for place, batch in enumerate(batches):
        rate = state.rate(place / len(batches))
        result = learner.train_batch(batch, itertools.repeat(rate))
        sums += torch.stack([in_float64(torch.stack(result.losses).sum()), in_float64(result.correct)])
        counts = [counts[0] + len(result.losses) * len(batch.rows), counts[1] + len(batch.rows)]
        # Reading a number waits for the device, so not every batch is reported.
        if time.perf_counter() - reported > REPORT_SECONDS or place + 1 == len(batches):
            loss, correct = (sums * learner.world.size).tolist()
            progress = (place + 1, len(batches), loss / counts[0], min(1.0, correct / counts[1]), rate)
            on_batch(BatchProgress(number, config.num_epochs, *progress))
            reported = time.perf_counter()
    loss, correct = learner.world.total(sums).tolist()
    return state.rate(0.0), loss / counts[0], correct / counts[1]


def _val_measures(
    learner: Learner, data: TrainingData, config: VideoTrainConfig
) -> tuple[float, float] | tuple[None, None]:
    """Return the loss and accuracy of the validation videos, if there are any."""
    rows = data.parts.val
    if not len(rows):
        return None, None
    return loss_and_accuracy(learner.probabilities(rows, sampling=sampling_of(config)), data.table.labels[rows])
