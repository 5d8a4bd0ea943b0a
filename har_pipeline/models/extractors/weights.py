"""Where weights come from: a local file, an installed package, the cache, or the published url with its hash checked."""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path

import pooch
import torch

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.files import cached_weights, file_sha256
from har_pipeline.core.records import Stream
from har_pipeline.models.extractors.base import Net, Preprocess, Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """A weights choice made concrete: the file (None for random weights), its label in the spec, its preprocessing."""

    path: Path | None
    label: str
    preprocess: Preprocess


def find_weights(net: Net, choice: str | None, layer: str, stream: Stream, seed: int) -> FoundWeights:
    """Return the weights named by `choice`: a name of `net.weights`, a file, `random`, or None for the net's default.

    Raises: WeightsError if the choice is unknown, a file is missing, a download fails, or its hash is not the published one.
    """
    default = net.inputs[stream].weights
    choice = choice or default
    if choice == "random":
        return FoundWeights(None, f"random:{seed}", net.weights[default].preprocess)
    if choice in net.weights:
        weights = net.weights[choice]
        if weights.layers is not None and layer not in weights.layers:
            raise WeightsError(f"{net.name} weights {choice!r} end before layer {layer}; they reach {weights.layers}")
        if weights.stream != stream:
            raise WeightsError(f"{net.name} weights {choice!r} are for {weights.stream}, not for {stream}")
        path = _published_file(net, choice, weights)
        return FoundWeights(path, f"sha256:{file_sha256(path)}", weights.preprocess)
    path = Path(choice).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"{net.name}: {choice!r} is neither a file nor one of {', '.join([*net.weights, 'random'])} (see `har models`)"
        )
    return FoundWeights(path, f"sha256:{file_sha256(path)}", net.file_preprocess(path, stream))


def _published_file(net: Net, name: str, weights: Weights) -> Path:
    if weights.packaged is not None:
        path = weights.packaged()
    else:
        path = cached_weights(weights.url.rsplit("/", 1)[1])
        if not path.exists():
            _download(net, name, weights, path)
    found = file_sha256(path)
    if weights.sha256 and not found.startswith(weights.sha256):
        raise WeightsError(
            f"{path}: sha256 {found[:16]}... is not the published {weights.sha256[:16]}...: "
            f"the file is damaged or was changed; delete it and try again"
        )
    return path


def _download(net: Net, name: str, weights: Weights, path: Path) -> None:
    log.warning("downloading %s weights %r from %s to %s", net.name, name, weights.url, path)
    pooch.get_logger().setLevel("ERROR")
    try:
        # pooch writes to a temporary file and renames it; the hash is checked by the caller, against the published digits.
        pooch.retrieve(weights.url, known_hash=None, fname=path.name, path=path.parent)
    except Exception as error:
        raise WeightsError(
            f"{net.name}: cannot download {weights.url} ({type(error).__name__}: {error}). Download it on another "
            f"machine and give the file with `--weights PATH`, or put it at {path} (HAR_CACHE moves that folder)"
        ) from error
    if not weights.sha256:
        log.warning("no hash is published for %s; this file's sha256 is %s", weights.url, file_sha256(path))


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors`, `.pt` or `.pth` file; no pickled code is ever run.

    Raises: WeightsError if the file is not a state dict of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The library's own text would suggest to run the code.
        raise WeightsError(
            f"{path}: not a readable weights file: damaged, or with pickled code, which is never run; save the tensors as "
            "safetensors, or with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # bytes that are no weights can break the reader anywhere
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: not a readable weights file ({first})") from error
    for key in ("state_dict", "model_state"):  # a checkpoint of a training run
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
    if not isinstance(values, dict) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise WeightsError(f"{path}: holds no state dict of tensors")
    return values


def load_strictly(module: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copy a state dict into a module.

    Raises: WeightsError naming keys that are missing, unknown, of another shape or not finite.
    """
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: {key} holds non-finite values")
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise WeightsError(f"{path}: does not fit the net: {' '.join(lines)[:400]}") from error


def load_cut(module: torch.nn.Module, classifier: str, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copy a state dict into a module, strictly, but without its classifier where the module was cut before it.

    classifier: the dotted name of the layer that maps features to classes; a module that was cut has an Identity there.
    Raises: WeightsError naming keys that are missing, unknown or of another shape.
    """
    if isinstance(module.get_submodule(classifier), torch.nn.Identity):
        state = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
    load_strictly(module, state, path)
