"""The options that shape a head or a network, and the names of the nets; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from har_pipeline.core.errors import ExtractionError

# The nets of `extractors.nets.all_nets`: known here too, so that a wrong name is reported before torch is loaded.
NET_NAMES = (
    *("c3d", "csn_r101", "efficientnet_lite0", "i3d", "i3d_r50", "mc3_18", "mvit_base_16x4", "r2plus1d_18"),
    *("r2plus1d_r50", "r3d_18", "s3d", "slow_r50", "swin3d_t", "tsn_bninception", "tsn_efficientnet_lite0"),
    *("tsn_resnet101", "tsn_resnet50", "vgg16", "x3d_m"),
)


def check_net_name(name: str) -> None:
    """Raise ExtractionError listing the nets, if there is none of that name."""
    if name not in NET_NAMES:
        raise ExtractionError(f"unknown extractor {name!r}; choose from: {', '.join(NET_NAMES)}")


HeadName = Literal[
    "lstm",
    "gru",
    "bilstm",
    "res_lstm",
    "stacked_lstm",
    "attention",
    "mean_pool",
    "linear",
    "svm",
    "vote",
]

Output = Literal["softmax", "sigmoid"]
Vote = Literal["soft", "majority"]
Fusion = Literal["input", "hidden"]
FusionOp = Literal["sum", "product", "concat"]
SCIKIT_HEADS = ("mean_pool", "linear", "svm")
RESIDUAL_HEADS = ("res_lstm", "stacked_lstm")
UNITS_HEADS = ("lstm", "gru", "bilstm", "attention")
RECURRENT_HEADS = (*UNITS_HEADS, *RESIDUAL_HEADS)


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


NetworkName = Literal["convlstm-stateless", "convlstm-stateful"]
