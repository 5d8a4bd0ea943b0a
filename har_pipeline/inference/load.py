"""Finished runs with their weights, ready to predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import nn

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, RunError, StoreError, first_few
from har_pipeline.evaluation.plan import require_single_run
from har_pipeline.evaluation.run_folder import RUN_JSON, VIDEO, WEIGHTS, RunRecord, fit_file, read_run
from har_pipeline.features.fitted import Fit, fit_of
from har_pipeline.features.frames import frame_shape, options_of
from har_pipeline.features.table import available_memory
from har_pipeline.models.convlstm.networks import RawNetwork, build_network
from har_pipeline.models.heads import SequenceClassifier, build_head
from har_pipeline.models.state import key_differences
from har_pipeline.training.networks.train import NETWORK
from har_pipeline.training.options import TrainConfig, VideoTrainConfig

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRun(RunRecord):
    """A loaded run of a head on stored features."""

    config: TrainConfig
    head: SequenceClassifier  # in evaluation mode, on the CPU

    def fit(self, stream: int = 0) -> Fit | None:
        """Read the fit that made a stream's features, None if they were neither reduced nor encoded.

        Raises: RunError if the file is missing or does not fit the run.
        """
        spec = self.streams[stream].spec
        path = self.path / fit_file(spec, stream)
        if spec.fit is None:
            return None
        self.check_file(path.name)
        try:
            return fit_of(load_arrays(path), spec)
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

    Raises: RunError if the folder is not a single run, a file is missing, malformed or not the one that was written, or the
    weights do not fit.
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
    if record.older_rules:
        raise RunError(
            f"{path}: {first_few(record.older_rules, '; ')}; train it again with --overwrite to predict with it"
        )
    try:
        config = (VideoTrainConfig if record.kind == VIDEO else TrainConfig)(**record.info["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: {RUN_JSON} is malformed ({error!r}); train it again") from error
    classes = len(record.classes)
    if isinstance(config, TrainConfig):
        record.check_file(WEIGHTS)
        dims, shape = [one.spec.feature_dim for one in record.streams], config.head_config
        _check_steps(path, config.num_steps, sum(dims), record.spec.rows_per_clip)
        sizes = {"feature_dim": sum(dims), "classes": classes}
        sizes |= {name: getattr(shape, name) or 0 for name in ("units", "input_projection") if config.reads(name)}
        head = _loaded(path / WEIGHTS, sizes, shape.num_layers, lambda: build_head(shape, dims, classes))
        return HeadRun(**common, config=config, head=head)
    record.check_file(NETWORK)
    channels, height, width = _frame_shape(record)
    network = _loaded(
        path / NETWORK,
        {"channels": channels, "classes": classes},
        1,
        lambda: build_network(
            config.model, classes, channels=channels, width=config.width, gates=config.gates, motion=config.motion
        ),
    )
    return NetworkRun(**common, config=config, network=network, frame_shape=(channels, height, width))


def _frame_shape(record: RunRecord) -> tuple[int, int, int]:
    """Return (C, H, W) of the frames that a network reads. Raises: RunError if `har frames` makes no such frames."""
    try:
        options_of(record.spec)
        shape = frame_shape(record.spec)
        if math.prod(shape) != record.spec.feature_dim:
            raise ValueError(f"frames of shape {shape} do not have {record.spec.feature_dim} values")
    except (FeatureMismatchError, ExtractionError, ValueError, ArithmeticError) as error:
        raise RunError(f"{record.path}: {RUN_JSON} is malformed ({error}); train it again") from error
    return shape


def _check_steps(path: Path, num_steps: int | None, dim: int, rows_per_clip: int) -> None:
    """Raise RunError if the features of one video, taken at `num_steps`, or the tokens of a clip do not fit into memory."""
    size = 4 * (num_steps or 1) * rows_per_clip * dim
    if (num_steps is not None or rows_per_clip > 1) and size > available_memory():
        says = f"num_steps {num_steps}" if rows_per_clip == 1 else f"{rows_per_clip} tokens a clip"
        raise RunError(
            f"{path}: {RUN_JSON} says {says}: of {dim} values each, a single video would take {size / 1e9:.1f} GB"
        )


def _loaded(path: Path, sizes: Mapping[str, int], num_layers: int, build: Callable[[], M]) -> M:
    """Return a module in evaluation mode, filled from a safetensors file; it is built only if the file's header fits it.

    sizes, num_layers: what run.json says of it: no more than the largest size of a tensor, and than there are tensors.
    Raises: RunError if the file is missing or not a whole safetensors file, or the module does not fit it.
    """
    why = f"{path}: missing or not the weights of this run"
    try:
        with safetensors.safe_open(path, "pt") as file:
            held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{why} ({error})") from error
    if (count := sum(math.prod(shape) for shape in held.values())) > available_memory() // 8:
        raise RunError(
            f"{path}: {4 * count / 1e9:.1f} GB of weights take twice that to load, and there is less memory free"
        )
    largest = max((size for shape in held.values() for size in shape), default=0)
    limits = [(name, value, largest) for name, value in sizes.items()] + [("num_layers", num_layers, len(held))]
    for name, value, limit in limits:
        if value > limit:
            raise RunError(f"{why} ({RUN_JSON} says {name} {value}, for which the file is too small)")
    try:
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in build().state_dict().items()}
        if differing := key_differences(wanted, held):
            raise RunError(f"{why} ({differing})")
        module = build()
    except (TypeError, ValueError, RuntimeError) as error:
        raise error if isinstance(error, RunError) else RunError(f"{path.parent}: {error}; train it again") from error
    load_weights(module, path)
    return module


def load_network(run: NetworkRun | Path | str) -> NetworkRun:
    """Load the run of a network on raw video. Raises: RunError as `load_run` does, or if it is the run of a head."""
    found = run if isinstance(run, NetworkRun) else load_run(run)
    if isinstance(found, HeadRun):
        raise RunError(f"{found.path} is a run of `har train`, a head on stored features, not a network on raw video")
    return found


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file and set it to evaluation mode.

    Raises: RunError if they do not fit, or a weight is not finite or of another type.
    """
    try:
        state = load_file(path)
        module.load_state_dict(state, strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: missing or not the weights of this run ({error})") from error
    for key, value in module.state_dict().items():
        if state[key].dtype != value.dtype or not torch.isfinite(value).all():
            raise RunError(f"{path}: {key} is not finite, or of another type than {value.dtype}; train the run again")
    module.eval()
