"""The options that shape a head or a network; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HeadName = Literal[
    "lstm",
    "gru",
    "bilstm",
    "res_lstm",
    "stacked_lstm",
    "attention",
    "attentive",
    "mean_pool",
    "linear",
    "svm",
    "ridge",
    "vote",
]

Output = Literal["softmax", "sigmoid"]
Vote = Literal["soft", "majority"]
Fusion = Literal["input", "hidden"]
FusionOp = Literal["sum", "product", "concat"]
Readout = Literal["last", "steps"]
SCIKIT_HEADS = ("mean_pool", "linear", "svm", "ridge")
# What scikit-learn fits for them.
LinearKind = Literal["logistic", "svm", "ridge"]
# Better with scaled features than with plain ones on held-out training videos, see docs/results.md. ridge was not
# measured: it is meant for motion maps, which have unit length.
SCALED_HEADS = ("mean_pool", "linear", "svm", "attention", "stacked_lstm", "vote")
RESIDUAL_HEADS = ("res_lstm", "stacked_lstm")
UNITS_HEADS = ("lstm", "gru", "bilstm", "attention")
# Whose state after every clip can be classified.
STEP_HEADS = ("lstm", "gru", "bilstm")
RECURRENT_HEADS = (*UNITS_HEADS, *RESIDUAL_HEADS)
# Whose layers are counted, and may be narrower than the features.
LAYERED_HEADS = (*RECURRENT_HEADS, "attentive")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """What shapes a head; the fields mean what they mean in `TrainConfig`."""

    name: HeadName = "lstm"
    units: int = 320
    num_layers: int = 1
    input_projection: int | None = None
    dropout: float = 0.0
    input_dropout: float = 0.0
    output: Output = "softmax"
    vote: Vote = "soft"
    mid_fusion: Fusion | None = None
    fusion_op: FusionOp = "sum"
    readout: Readout = "last"
    forget_gate: bool = True


NetworkName = Literal["convlstm-stateless", "convlstm-stateful", "convnet3d"]

# Activation of a ConvLSTM's gates, see `models.convlstm.layer.ConvLSTM`.
Gates = Literal["sigmoid", "hard-sigmoid"]
