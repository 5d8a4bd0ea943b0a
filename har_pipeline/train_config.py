"""Every option of a training run, with its default; imports no torch, so that the CLI can read the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

HeadName = Literal["lstm", "mean_pool"]
Output = Literal["softmax", "sigmoid"]
Optimizer = Literal["rmsprop", "adam", "sgd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """What shapes a head: its name, the LSTM's units, dropout on features and state, and the output's activation."""

    name: HeadName = "lstm"
    units: int = 320
    dropout: float = 0.0
    input_dropout: float = 0.0
    output: Output = "softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Options of `train_head`.

    head: `lstm`, or `mean_pool` = mean over time + logistic regression, which reads only `logistic_c`, `standardise`
    and `max_iterations` of what follows. units: n_u of the paper, best at 360 (KTH), 320 (UCF-11), 400 (HMDB-51).
    output: `softmax`, or `sigmoid` as the paper prints; sigmoids are divided by their sum before the cross-entropy, as
    Keras does, so that both give probabilities. dropout: on the last hidden state. input_dropout: on the features, one
    mask for all clips of a video. weight_decay: decoupled from the gradient: each step shrinks all weights but biases
    by learning_rate * weight_decay. sgd has a momentum of 0.9.
    patience: epochs without a lower validation loss before training stops and the best epoch is kept; None = never
    stop, keep the last epoch. standardise: shift and scale each feature by its mean and deviation over the training
    clips. logistic_c: inverse strength of the L2 penalty. device: `auto`, `cpu`, `cuda`, `cuda:1` ...
    Raises: ValueError if a number is out of range.
    Source: Orozco 2020, algorithm 2 and section 3: epochs, batch size, RMSProp, units; it names no learning rate, so
    Keras's default stands here. `standardise` is ours: the paper feeds plain features (`standardise=False`). It is all
    the regularisation that VGG16 fc6 features of UCF-101 needed: on three held-out parts of the training groups the
    LSTM scored 97.3 % with it and 96.6 % without, the logistic regression 96.9 %; dropout on the state or the features
    and weight decay changed that by no more than half a point.
    """

    head: HeadName = "lstm"
    units: int = 320
    epochs: int = 50
    batch_size: int = 25
    optimizer: Optimizer = "rmsprop"
    learning_rate: float = 1e-3
    output: Output = "softmax"
    dropout: float = 0.0
    input_dropout: float = 0.0
    weight_decay: float = 0.0
    patience: int | None = None
    standardise: bool = True
    logistic_c: float = 1.0
    max_iterations: int = 1000
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("units", "epochs", "batch_size", "max_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("learning_rate", "logistic_c"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.head == "mean_pool" and self.output != "softmax":
            raise ValueError("mean_pool is fitted as a softmax regression: its output must be softmax")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, but is {self.weight_decay}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 or None, not {self.patience}")
        for name, allowed in (("head", HeadName), ("output", Output), ("optimizer", Optimizer)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, not {getattr(self, name)!r}")

    @property
    def head_config(self) -> HeadConfig:
        """The part that shapes the head."""
        return HeadConfig(
            name=self.head,
            units=self.units,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            output=self.output,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a plain dict, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build the options from what `to_dict` returned."""
        return cls(**values)
