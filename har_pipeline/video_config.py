"""Every option of training a network on raw video, with its default; imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from har_pipeline import schedules
from har_pipeline.models.config import NetworkName

VideoSchedule = Literal["published", "one-cycle", "constant"]


LongVideos = Literal["cut", "whole"]


VideoPrecision = Literal["auto", "fp32", "bf16"]


StateGradient = Literal["window", "video"]


MAX_WIDTH = 8


NETWORK_CHOICES = {
    "model": NetworkName,
    "schedule": VideoSchedule,
    "long_videos": LongVideos,
    "state_gradient": StateGradient,
    "precision": VideoPrecision,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTrainConfig:
    """Options of `train_video.train_video`; None = as published for the model.

    model: see `convlstm.networks`. width: factor on the filters of every layer; 1 is the paper's network, anything else
    is another one and named so in every report. batch_size: videos of an update, 12 stateless, 6 stateful; with several
    processes each has as many. schedule: `published`, see `schedules`; `one-cycle`: linearly up to learning_rate over
    the first 30 % of the epochs and down to 1 % of it; `constant`. epochs: 75 stateless, of which 27 go on from the
    best of the first 48; 25 stateful. Fewer (or more) epochs of the published schedule run through the whole of it,
    faster (or slower): every boundary moves in proportion, the split into 48 and 27 is rounded to whole epochs, and
    patience stays what it is. learning_rate: of one-cycle and constant, by default the highest published one, 9.8e-4
    and 9e-5. cycle_epochs: a whole period of the stateless schedule, in epochs of the unshortened one, see
    `schedules.stateless_rate`. patience: epochs without a gain in accuracy before the stateless schedule halves its
    last rate. long_videos: of more than 300 frames, stateful: `cut` to 208 as NTU's longest are, or `whole`: all
    windows. state_gradient: stateful: `window` as published: the state is cut off from the gradient at each window, the
    first half of a video's windows moves no weights and each later one does; `video`, ours: the gradient goes back
    through the state to the video's start, and a batch makes one update by the mean loss of all its windows. That
    needs the memory for the activations of whole videos. memory_frames: ours: how long the ConvLSTMs' cells remember at the
    start of training, 2 to so many frames, see `convlstm.layer.ConvLSTM.remember`; None = as Keras begins, a few frames.
    precision: `auto` takes bf16 arithmetic (autocast; weights and optimiser stay fp32) where the device has it, else fp32.
    device: `auto`, `cpu`, `cuda`, `cuda:1` ... augment: ours: each time a training video is seen,
    its frames are moved by up to this share of their size and scaled by up to 1 + augment, all in the same way; 0 = not, as
    published.
    Raises: ValueError if a number is out of range.
    Source: Sanchez-Caballero 2020, sections 4.1 and 4.2. one-cycle and constant are ours, for sets that the published
    rates are too small for: 25 epochs of 400 videos are a hundredth of the updates of 25 epochs of NTU RGB+D.
    """

    model: NetworkName = "convlstm-stateful"
    width: float = 1.0
    batch_size: int | None = None
    schedule: VideoSchedule = "published"
    epochs: int | None = None
    learning_rate: float | None = None
    cycle_epochs: float = schedules.CYCLE_EPOCHS
    patience: int = schedules.FINE_TUNE_PATIENCE
    long_videos: LongVideos = "cut"
    state_gradient: StateGradient = "window"
    memory_frames: int | None = None
    augment: float = 0.0
    precision: VideoPrecision = "auto"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in NETWORK_CHOICES.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, not {getattr(self, name)!r}")
        for name in ("batch_size", "epochs", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("width", "learning_rate", "cycle_epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.memory_frames is not None and self.memory_frames < 2:
            raise ValueError(f"memory_frames must be at least 2, not {self.memory_frames}")
        if not 0 <= self.augment < 1:
            raise ValueError(f"augment must be in [0, 1), not {self.augment}")
        if self.width > MAX_WIDTH:
            raise ValueError(f"width must be at most {MAX_WIDTH}, not {self.width}")
        if self.long_videos == "whole" and not self.stateful:
            raise ValueError("long_videos belongs to convlstm-stateful: the other network sees one clip of a video")
        later = (self.cycle_epochs, self.patience) != (schedules.CYCLE_EPOCHS, schedules.FINE_TUNE_PATIENCE)
        if later and (self.stateful or self.schedule != "published"):
            raise ValueError("cycle_epochs and patience belong to the published schedule of convlstm-stateless")
        if self.state_gradient == "video" and not self.stateful:
            raise ValueError(
                "state_gradient belongs to convlstm-stateful: the other network has no state to go back through"
            )
        if self.schedule == "published" and self.learning_rate is not None:
            raise ValueError(
                "learning_rate belongs to the schedules one-cycle and constant; the published one has its own"
            )

    @property
    def stateful(self) -> bool:
        """Whether the model passes a state on from window to window."""
        return self.model == "convlstm-stateful"

    @property
    def videos_per_batch(self) -> int:
        """The batch size, or the published one."""
        return self.batch_size or (6 if self.stateful else 12)

    @property
    def published_epochs(self) -> int:
        """Epochs of the published schedule."""
        if self.stateful:
            return schedules.STATEFUL_EPOCHS
        return schedules.STATELESS_EPOCHS + schedules.FINE_TUNE_EPOCHS

    @property
    def num_epochs(self) -> int:
        """The epochs, or the published number."""
        return self.epochs or self.published_epochs

    @property
    def main_epochs(self) -> int:
        """Epochs before training goes on from the best one; all, where the schedule has no such restart."""
        if self.stateful or self.schedule != "published":
            return self.num_epochs
        return max(1, round(self.num_epochs * schedules.STATELESS_EPOCHS / self.published_epochs))

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of one-cycle, and the only one of constant."""
        return self.learning_rate or (schedules.PEAK_STATEFUL if self.stateful else schedules.PEAK_STATELESS)

    def rate(self, done: float, halvings: int = 0) -> float:
        """Return the learning rate after `done` epochs (a fraction counts).

        halvings: how often the last part of the published stateless schedule has met no gain, see `schedules.halvings`.
        """
        if self.schedule == "constant":
            return self.peak_rate
        if self.schedule == "one-cycle":
            return schedules.one_cycle_rate(done, self.num_epochs, self.peak_rate)
        if self.stateful:
            return schedules.stateful_rate(done * schedules.STATEFUL_EPOCHS / self.num_epochs)
        if done >= self.main_epochs:
            return schedules.fine_tune_rate(halvings)
        return schedules.stateless_rate(done * schedules.STATELESS_EPOCHS / self.main_epochs, self.cycle_epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a plain dict, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoTrainConfig:
        """Build the options from what `to_dict` returned; options that a run of an older version lacks are defaults."""
        return cls(**values)
