"""Every option of a training run, with its default; imports no torch, so that the CLI can read the defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from har_pipeline.models.config import (
    RECURRENT_HEADS,
    RESIDUAL_HEADS,
    SCIKIT_HEADS,
    UNITS_HEADS,
    Fusion,
    FusionOp,
    HeadConfig,
    HeadName,
    NetworkName,
    Output,
    Vote,
)
from har_pipeline.training import schedules

Optimizer = Literal["rmsprop", "adam", "adamw", "sgd"]


Schedule = Literal["constant", "cosine", "step", "plateau"]


ClassWeights = Literal["none", "balanced"]


HeadPrecision = Literal["fp32", "bf16"]


# What a head fitted by scikit-learn reads beside its own name.
SCIKIT_OPTIONS = (
    "logistic_c",
    "class_weights",
    "standardise",
    "max_iterations",
    "num_steps",
    "seed",
    "device",
    "mid_fusion",
    "fusion_op",
)


CHOICES = {
    "head": HeadName,
    "output": Output,
    "vote": Vote,
    "fusion_op": FusionOp,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "class_weights": ClassWeights,
    "precision": HeadPrecision,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Options of `train_head`.

    head: `lstm`, `gru`, `bilstm`; `res_lstm` (Lakhal) and `stacked_lstm`, the same stack without its skips, whose hidden
    size is the size of their input; `attention` = weighted mean of an LSTM's states; `mean_pool` (also called `linear`) =
    mean over time + logistic regression and `svm` = mean over time + linear support vector machine, both fitted by
    scikit-learn, which read only `logistic_c`, `class_weights`, `standardise` and `max_iterations` of what follows;
    `vote` = a dense layer on each clip, whose answers are averaged (`vote="soft"`) or counted (`majority`).
    units: n_u of the paper, best at 360 (KTH), 320 (UCF-11), 400 (HMDB-51). num_layers: recurrent layers; None = 2 for
    res_lstm and stacked_lstm, 1 otherwise. input_projection: size of a dense layer before the first recurrent one.
    output: `softmax`, or `sigmoid` as Orozco prints; sigmoids are divided by their sum before the cross-entropy, as
    Keras does, so that both give probabilities. dropout: on the hidden state that leaves each layer. input_dropout: on
    the features, one mask for all clips of a video. weight_decay: decoupled from the gradient: each step shrinks all
    weights but biases by learning_rate * weight_decay (so adam is adamw). sgd has a momentum of 0.9.
    mid_fusion: of several streams, None with one: `input` joins their features clip by clip before one encoder, `hidden`
    joins the states of an encoder each; fusion_op: how.
    schedule: `cosine` falls to 0 over the epochs, step by step; `step` multiplies by schedule_factor every schedule_epochs
    epochs, `plateau` after as many epochs without a lower validation loss. clip_norm: largest norm of the gradient.
    label_smoothing: share of the target that is spread over all classes. class_weights: `balanced` = V / (K * videos of
    the class). temporal_jitter: each epoch leaves out this share of every training video's clips, at random.
    num_steps: T, the clips of each video that are taken of the stored ones, evenly (`clips.sparse_clip_indices`; Lakhal's
    sigma(t)), in training, tests and predictions; None = all.
    patience: epochs without a lower validation loss before training stops and the best epoch is kept; None = never
    stop, keep the last epoch. average_last: the head gets the mean of the weights after each epoch of this last share of
    them; 0 = the last epoch's weights. standardise: shift and scale each feature by its mean and deviation over the
    training clips. logistic_c: inverse strength of the L2 penalty. precision: `bf16` computes in mixed precision; scores are
    always computed in fp32. device: `auto`, `cpu`, `cuda`, `cuda:1` ...
    Raises: ValueError if a number is out of range.
    Source: Orozco 2020, algorithm 2 and section 3: epochs, batch size, RMSProp, units; it names no learning rate, so
    Keras's default stands here, which is also Lakhal's (2018, section 4). `standardise` is ours: the papers feed plain
    features (`standardise=False`). On three held-out parts of the training groups of real VGG16 fc6 features
    it once changed the LSTM's accuracy by nothing, dropout by 0.2 points: the defaults have none. average_last: Izmailov
    2018, without its cyclic learning rate.
    """

    head: HeadName = "lstm"
    units: int = 320
    num_layers: int | None = None
    input_projection: int | None = None
    epochs: int = 50
    batch_size: int = 25
    optimizer: Optimizer = "rmsprop"
    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    schedule_epochs: int = 20
    schedule_factor: float = 0.1
    output: Output = "softmax"
    vote: Vote = "soft"
    mid_fusion: Fusion | None = None
    fusion_op: FusionOp = "sum"
    dropout: float = 0.0
    input_dropout: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    class_weights: ClassWeights = "none"
    temporal_jitter: float = 0.0
    num_steps: int | None = None
    patience: int | None = None
    average_last: float = 0.0
    standardise: bool = True
    logistic_c: float = 1.0
    max_iterations: int = 1000
    precision: HeadPrecision = "fp32"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, not {getattr(self, name)!r}")
        if self.mid_fusion is not None and self.mid_fusion not in get_args(Fusion):
            raise ValueError(f"mid_fusion must be None or one of {get_args(Fusion)}, not {self.mid_fusion!r}")
        for name in (
            "units",
            "num_layers",
            "input_projection",
            "epochs",
            "batch_size",
            "max_iterations",
            "num_steps",
            "patience",
            "schedule_epochs",
        ):
            value = getattr(self, name)
            if value is not None and (value < 1 or value != int(value)):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value}")
        for name in ("dropout", "input_dropout", "label_smoothing", "temporal_jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("learning_rate", "logistic_c", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if not 0 <= self.average_last <= 1:
            raise ValueError(f"average_last must be in [0, 1], not {self.average_last}")
        if self.average_last and self.patience is not None:
            raise ValueError(
                "average_last takes the mean over the last epochs, patience keeps the best one: choose one"
            )
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, but is {self.weight_decay}")
        if not 0 < self.schedule_factor < 1:
            raise ValueError(f"schedule_factor must be in (0, 1), not {self.schedule_factor}")
        self._check_head()

    def _check_head(self) -> None:
        recurrent = self.head in RECURRENT_HEADS
        if self.head in SCIKIT_HEADS and self.output != "softmax":
            raise ValueError(f"{self.head} is fitted by scikit-learn as a softmax: its output must be softmax")
        if self.num_layers is not None and not recurrent:
            raise ValueError(f"num_layers belongs to recurrent heads {RECURRENT_HEADS}, not to {self.head}")
        if self.input_projection is not None and not recurrent:
            raise ValueError(f"input_projection belongs to recurrent heads {RECURRENT_HEADS}, not to {self.head}")
        if self.mid_fusion == "hidden" and not recurrent:
            raise ValueError(f"mid_fusion=hidden joins the states of recurrent heads; {self.head} has none: use input")

    @property
    def needs_validation(self) -> bool:
        """Whether training reads the validation loss."""
        return self.head not in SCIKIT_HEADS and (self.patience is not None or self.schedule == "plateau")

    def reads(self, option: str) -> bool:
        """Return whether an option of one stream's run changes anything beside these other options."""
        if self.head in SCIKIT_HEADS:
            return option == "head" or option in SCIKIT_OPTIONS
        drops = self.schedule in ("step", "plateau")
        conditions = {
            "units": self.head in UNITS_HEADS,
            "num_layers": self.head in RECURRENT_HEADS,
            "input_projection": self.head in RECURRENT_HEADS,
            "vote": self.head == "vote",
            "schedule_epochs": drops,
            "schedule_factor": drops,
            "logistic_c": False,
            "max_iterations": False,
        }
        return conditions.get(option, True)

    @property
    def head_config(self) -> HeadConfig:
        """The part that shapes the head."""
        return HeadConfig(
            name=self.head,
            units=self.units,
            num_layers=self.num_layers or (2 if self.head in RESIDUAL_HEADS else 1),
            input_projection=self.input_projection,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            output=self.output,
            vote=self.vote,
            mid_fusion=self.mid_fusion,
            fusion_op=self.fusion_op,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a plain dict, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build the options from what `to_dict` returned; options that a run of an older version lacks are defaults."""
        return cls(**values)


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
