"""Every option of a training run, with its default; imports no torch, so that the CLI can read the defaults."""

from __future__ import annotations

import dataclasses
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
    Output,
    Vote,
)

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
