"""Finished runs with their weights, ready to predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import nn

from har_pipeline.core.errors import RunError, StoreError
from har_pipeline.evaluation.run_folder import HEAD, RUN_JSON, VIDEO, WEIGHTS, RunRecord, read_run, reduction_file
from har_pipeline.features.frames import frame_shape
from har_pipeline.features.pca import Projection
from har_pipeline.features.reduce import projection_of
from har_pipeline.models.convlstm.networks import RawNetwork, build_network
from har_pipeline.models.heads import SequenceClassifier, build_head
from har_pipeline.training.configs import TrainConfig, VideoTrainConfig
from har_pipeline.training.networks.train import NETWORK


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(RunRecord):
    """A loaded run of a head on stored features; `head` is in evaluation mode on the CPU."""

    config: TrainConfig
    head: SequenceClassifier

    def projection(self, stream: int = 0) -> Projection | None:
        """Read what reduces a net's features to those the head learned from, None if they were not reduced.

        Raises: RunError if the file is missing or does not fit the run.
        """
        reduction, path = self.streams[stream].spec.reduction, self.path / reduction_file(stream)
        if reduction is None:
            return None
        try:
            return projection_of(load_arrays(path), reduction)
        except (OSError, StoreError, safetensors.SafetensorError) as error:
            raise RunError(f"{path}: missing or not of this run ({error}); train it again") from error


def load_run(path: Path | str) -> Run:
    """Load the run of a head.

    Raises: RunError if a file is missing or malformed, the weights do not fit the options, or no head was trained.
    """
    record = read_run(path)
    if record.kind != HEAD:
        raise RunError(f"{record.path} is a run of `har train-video`, whose network reads raw video, not features")
    try:
        config = TrainConfig.from_dict(record.info["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{record.path}: {RUN_JSON} is malformed ({error!r}); train it again") from error
    head = build_head(config.head_config, [stream.spec.feature_dim for stream in record.streams], len(record.classes))
    load_weights(head, record.path / WEIGHTS)
    return Run(
        path=record.path,
        config=config,
        streams=record.streams,
        classes=record.classes,
        split=record.split,
        head=head,
        info=record.info,
    )


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file and put it into evaluation mode. Raises: RunError if they do not fit."""
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: missing or not the weights of this run ({error})") from error
    module.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRun(RunRecord):
    """A loaded run of a network on raw video; `network` is in evaluation mode on the CPU.

    frame_shape: (C, H, W) of the frames it reads.
    """

    config: VideoTrainConfig
    network: RawNetwork
    frame_shape: tuple[int, int, int]


def load_video_run(path: Path | str) -> VideoRun:
    """Load the run of a network on raw video.

    Raises: RunError if a file is missing or malformed, the weights do not fit, or a head was trained instead.
    """
    record = read_run(path)
    if record.kind != VIDEO:
        raise RunError(f"{record.path} is a run of `har train`, a head on stored features, not a network on raw video")
    try:
        config = VideoTrainConfig.from_dict(record.info["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{record.path}: {RUN_JSON} is malformed ({error!r}); train it again") from error
    shape = frame_shape(record.spec)
    network = build_network(config.model, len(record.classes), channels=shape[0], width=config.width)
    load_weights(network, record.path / NETWORK)
    return VideoRun(
        path=record.path,
        streams=record.streams,
        classes=record.classes,
        split=record.split,
        info=record.info,
        config=config,
        network=network,
        frame_shape=shape,
    )
