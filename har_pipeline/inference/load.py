"""Finished runs with their weights, ready to predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import nn

from har_pipeline.core.errors import RunError, StoreError
from har_pipeline.evaluation.plan import require_single_run
from har_pipeline.evaluation.run_folder import RUN_JSON, VIDEO, WEIGHTS, RunRecord, read_run, reduction_file
from har_pipeline.features.frames import frame_shape
from har_pipeline.features.pca import Projection
from har_pipeline.features.reduce import projection_of
from har_pipeline.models.convlstm.networks import RawNetwork, build_network
from har_pipeline.models.heads import SequenceClassifier, build_head
from har_pipeline.training.networks.train import NETWORK
from har_pipeline.training.options import TrainConfig, VideoTrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRun(RunRecord):
    """A loaded run of a head on stored features."""

    config: TrainConfig
    head: SequenceClassifier  # in evaluation mode, on the CPU

    def projection(self, stream: int = 0) -> Projection | None:
        """Read the reduction of a stream's features, None if they were not reduced.

        Raises: RunError if the file is missing or does not fit the run.
        """
        reduction, path = self.streams[stream].spec.reduction, self.path / reduction_file(stream)
        if reduction is None:
            return None
        try:
            return projection_of(load_arrays(path), reduction)
        except (OSError, StoreError, safetensors.SafetensorError) as error:
            raise RunError(f"{path}: missing or not of this run ({error}); train it again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRun(RunRecord):
    """A loaded run of a network on raw video."""

    config: VideoTrainConfig
    network: RawNetwork  # in evaluation mode, on the CPU
    frame_shape: tuple[int, int, int]  # (C, H, W) of the frames it reads


def load_run(path: Path | str) -> HeadRun | NetworkRun:
    """Load a run with its weights.

    Raises: RunError if the folder is not a single run, a file is missing or malformed, or the weights do not fit.
    """
    path = Path(path)
    require_single_run(path, "load one")
    record = read_run(path)
    common: dict[str, Any] = {
        "path": record.path,
        "streams": record.streams,
        "classes": record.classes,
        "split": record.split,
        "info": record.info,
    }
    try:
        config = (VideoTrainConfig if record.kind == VIDEO else TrainConfig)(**record.info["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: {RUN_JSON} is malformed ({error!r}); train it again") from error
    if isinstance(config, TrainConfig):
        head = build_head(config.head_config, [one.spec.feature_dim for one in record.streams], len(record.classes))
        load_weights(head, path / WEIGHTS)
        return HeadRun(**common, config=config, head=head)
    shape = frame_shape(record.spec)
    network = build_network(config.model, len(record.classes), channels=shape[0], width=config.width)
    load_weights(network, path / NETWORK)
    return NetworkRun(**common, config=config, network=network, frame_shape=shape)


def load_network(run: NetworkRun | Path | str) -> NetworkRun:
    """Load the run of a network on raw video. Raises: RunError as `load_run` does, or if it is the run of a head."""
    found = run if isinstance(run, NetworkRun) else load_run(run)
    if isinstance(found, HeadRun):
        raise RunError(f"{found.path} is a run of `har train`, a head on stored features, not a network on raw video")
    return found


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file and set it to evaluation mode. Raises: RunError if they do not fit."""
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: missing or not the weights of this run ({error})") from error
    module.eval()
