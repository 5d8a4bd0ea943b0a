"""What a training takes of the memory, estimated before anything is built, so that one that cannot fit is refused in words.

Parameters are counted exactly, on tensors without data; the activations that a batch keeps for the backward pass by
formulas of the layers, which a test compares with what torch keeps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import FeatureSpec, Split
from har_pipeline.features.frames import frame_shape
from har_pipeline.features.table import MEMORY_FRACTION, available_memory
from har_pipeline.models.config import RESIDUAL_HEADS, SCIKIT_HEADS
from har_pipeline.models.convlstm.networks import RawNetwork, Recurrent, build_network
from har_pipeline.models.device import free_memory, pick_device
from har_pipeline.models.heads import build_head
from har_pipeline.models.heads.pooling import is_wide
from har_pipeline.training.batches import EVAL_BATCH_VALUES
from har_pipeline.training.options import TrainConfig, VideoTrainConfig

FLOAT = 4  # bytes

# Values that an optimiser keeps of each parameter.
KEPT = {"rmsprop": 1, "adam": 2, "adamw": 2, "sgd": 1}

# Values of each unit and clip that an LSTM layer keeps, and a GRU layer: gates with what they are made of, cells, states.
OF_LSTM, OF_GRU = 24, 12
# Of each value of a clip or token that attention reads: normalised, its key and value; and of a whole block among them.
OF_CROSS_ATTENTION, OF_SELF_ATTENTION = 4, 20
# Of each channel, place and frame of a ConvLSTM: four gates, cell, its tanh, state; then normalised and activated.
OF_CONVLSTM = 10
# Of each px of a 3D-ConvNet's input: its normalised copy, and its maps.
OF_CONVNET3D = 21
# Copies of a batch's features: gathered, scaled (twice), packed.
COPIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes that a training takes at once."""

    parameters: int  # how many there are, each of 4 bytes
    weights: int  # with those of the best epoch and their mean, where a training keeps them
    gradients: int
    optimiser: int
    activations: int  # of a batch
    features: int  # of all videos

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.features

    def describe(self) -> str:
        """Return the sum and its parts in words."""
        names = ("weights", "gradients", "optimiser", "activations", "features")
        return f"{_gb(self.total)} ({', '.join(f'{name} {_gb(getattr(self, name))}' for name in names)})"


def head_need(
    config: TrainConfig,
    stream_dims: Sequence[int],
    num_classes: int,
    videos: int,
    clips: int,
    rows_per_clip: int = 1,
) -> MemoryNeed:
    """Return what a head takes that is trained on so many videos of up to so many clips.

    stream_dims: feature_dim of the stream, or with mid fusion of each. rows_per_clip: of token features their number.
    Raises: RunError if the streams cannot be joined.
    """
    dim, clips = sum(stream_dims), rows_per_clip * (config.num_steps or clips)
    shape = config.head_config
    # The layers are all alike: a few tell what each takes, however many a config names.
    few = min(shape.num_layers, 3)
    parameters = _parameters(_head_on_meta(config, few, stream_dims, num_classes))
    if shape.num_layers > few:
        fewer = _parameters(_head_on_meta(config, few - 1, stream_dims, num_classes))
        parameters += (shape.num_layers - few) * (parameters - fewer)
    features = min(FLOAT * videos * clips * dim, int(MEMORY_FRACTION * available_memory()))
    if config.head in SCIKIT_HEADS:
        # The means over time, in float64, and what the solver makes of them. A wide SVM: the means, and five matrices of the
        # scalar products of all videos, in float64.
        solver = 6 * FLOAT * videos * dim
        if config.head == "svm":
            solver = FLOAT * videos * dim + 40 * videos**2 if is_wide(videos, dim) else 7 * FLOAT * videos * dim
        return MemoryNeed(
            parameters=parameters,
            weights=FLOAT * parameters,
            gradients=0,
            optimiser=solver,
            activations=COPIES
            * FLOAT
            * (64 * clips * dim if rows_per_clip == 1 else max(EVAL_BATCH_VALUES, clips * dim)),
            features=features,
        )
    rows = min(config.batch_size, max(1, videos)) * clips
    return MemoryNeed(
        parameters=parameters,
        weights=FLOAT * parameters * (1 + (config.patience is not None) + bool(config.average_last)),
        gradients=FLOAT * parameters,
        optimiser=FLOAT * parameters * KEPT[config.optimizer],
        activations=FLOAT * rows * (COPIES * dim + _head_values(config, stream_dims, num_classes)),
        features=features,
    )


def _head_on_meta(config: TrainConfig, num_layers: int, dims: Sequence[int], num_classes: int) -> nn.Module:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_head(dataclasses.replace(config.head_config, num_layers=num_layers), list(dims), num_classes)


def _head_values(config: TrainConfig, stream_dims: Sequence[int], num_classes: int) -> int:
    """Return how many values a head keeps of each clip of a batch."""
    shape, dims = config.head_config, list(stream_dims)
    if shape.mid_fusion == "input":
        dims = [sum(dims) if shape.fusion_op == "concat" else dims[0]]
    values = 0
    for dim in dims:
        read = shape.input_projection or dim
        values += shape.input_projection or 0
        if shape.name in RESIDUAL_HEADS:
            values += shape.num_layers * (OF_LSTM + 2) * read
        elif shape.name == "attentive":
            values += (OF_CROSS_ATTENTION + (shape.num_layers - 1) * OF_SELF_ATTENTION) * read
        elif shape.name == "vote":
            values += dim + 3 * num_classes
        else:
            of_cell = OF_GRU if shape.name == "gru" else OF_LSTM
            values += (2 if shape.name == "bilstm" else 1) * shape.num_layers * of_cell * shape.units
            values += 6 * shape.units * (shape.name == "attention")
            values += (shape.units * (2 if shape.name == "bilstm" else 1) + 3 * num_classes) * (
                shape.readout == "steps"
            )
    return values


def network_need(
    config: VideoTrainConfig, shape: tuple[int, int, int], num_classes: int, videos: int, frames: int
) -> MemoryNeed:
    """Return what a network takes that is trained on so many videos of up to so many frames of `shape` (C, H, W)."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build_network(
            config.model, num_classes, channels=shape[0], width=config.width, gates=config.gates, motion=config.motion
        )
    parameters = _parameters(network)
    windows = 1
    if config.state_gradient == "video":
        windows = max(1, math.ceil(frames / network.clip_len))
    features = min(videos * frames * math.prod(shape), int(MEMORY_FRACTION * available_memory()))
    return MemoryNeed(
        parameters=parameters,
        weights=2 * FLOAT * parameters,
        gradients=FLOAT * parameters,
        optimiser=2 * FLOAT * parameters,
        activations=FLOAT * windows * config.videos_per_batch * network.clip_len * _network_values(network, shape),
        features=features,
    )


def _network_values(network: RawNetwork, shape: tuple[int, int, int]) -> int:
    """Return how many values a network keeps of each frame of a batch: its ConvLSTMs, or the convolutions of a 3D-ConvNet."""
    values = math.prod(shape)
    if network.votes:
        return OF_CONVNET3D * values
    for branch in network.children():
        size = shape[1:]
        for layer in branch if isinstance(branch, nn.ModuleList) else ():
            if isinstance(layer, Recurrent):
                inputs = layer.convlstm.input_kernel.shape[1] * math.prod(size)
                size = layer.convlstm.output_size(*size)
                values += inputs + OF_CONVLSTM * layer.convlstm.hidden_channels * math.prod(size)
    return values


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def planned_need(
    config: TrainConfig | VideoTrainConfig, specs: Sequence[FeatureSpec], split: Split, classes: int
) -> MemoryNeed:
    """Return what the run of a split takes at least, before its features are read: dense clips count as one a video."""
    videos = sum(map(len, (split.train, split.val, split.test)))
    if isinstance(config, VideoTrainConfig):
        return network_need(config, frame_shape(specs[0]), classes, videos, 1)
    clips = 1 if specs[0].encoding else specs[0].clips.num_clips or 1
    return head_need(config, [spec.feature_dim for spec in specs], classes, videos, clips, specs[0].rows_per_clip)


def require_memory(
    need: MemoryNeed, config: TrainConfig | VideoTrainConfig, stream_dims: Sequence[int], workers: int = 1
) -> None:
    """Check that the memory of the config's device is enough for trainings in so many processes at once.

    Raises: RunError with the numbers and the ways out.
    """
    device = pick_device(config.device)
    free = free_memory(device)
    memory = available_memory() if free is None else free
    # A GPU holds the features only if they take no more than a share of it.
    wanted = need.total if free is None else need.total - need.features
    if wanted * workers <= memory:
        return
    what = config.head if isinstance(config, TrainConfig) else config.model
    several = f"{workers} processes with " if workers > 1 else ""
    raise RunError(
        f"{several}{what} on {sum(stream_dims):,} values a clip would take about {need.describe()} of memory "
        f"{'each' * (workers > 1) or 'to train'}, and {_gb(memory)} are free ({device}): {_ways_out(config, workers)}"
    )


def _ways_out(config: TrainConfig | VideoTrainConfig, workers: int) -> str:
    ways = ["fewer --workers"] if workers > 1 else []
    if isinstance(config, VideoTrainConfig):
        return ", or ".join([*ways, "a smaller --batch-size or --width", "smaller frames (har frames --size)"])
    ways.append("reduce the features (`har features reduce`)")
    if config.head in SCIKIT_HEADS:
        ways.append("encode them with fewer --gaussians or --words")
    if config.reads("input_projection"):
        ways.append("--input-projection")
    smaller = [f"--{name.replace('_', '-')}" for name in ("units", "batch_size", "num_layers") if config.reads(name)]
    ways += [f"a smaller {' or '.join(smaller)}"] if smaller else []
    return ", or ".join(ways)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
