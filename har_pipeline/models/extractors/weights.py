"""Where weights come from: a local file, an installed package, the cache, or the published url with its hash checked."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import torch
from safetensors import safe_open

from har_pipeline.core.errors import UsageError, WeightsError
from har_pipeline.core.files import cached_weights, file_sha256, weights_cache
from har_pipeline.core.known_files import find_used, remember
from har_pipeline.core.records import Stream, TrainedOn
from har_pipeline.core.text import did_you_mean
from har_pipeline.models.extractors.base import Net, Preprocess, Weights
from har_pipeline.models.extractors.hub import weights_sha256
from har_pipeline.models.state import key_differences

log = logging.getLogger(__name__)

# In the header of a safetensors file that `har train-video` wrote: the values of a `TrainedOn` and the resize mode of its
# frames as JSON. One entry: several would be written in any order, and the same net would have files that differ.
TRAINING = "har_trained_on"

# Under what a training's checkpoint has the state dict, and what modules that hold a net put before all of its keys.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
PREFIXES = ("model.", "net.")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32)
VIEWS_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """A weights choice made concrete: the file (None for random weights), its label in the spec, its preprocessing."""

    path: Path | None
    label: str
    preprocess: Preprocess


def find_weights(net: Net, choice: str | None, layer: str, stream: Stream, seed: int) -> FoundWeights:
    """Return the weights named by `choice`: a name of `net.weights`, a file, `random`, or None for the net's default.

    Raises: UsageError if the choice is unknown, WeightsError if a file is missing, a download fails, or its hash is not the
    published one.
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
        path = published_file(net, choice)
        sha256 = weights_sha256(path)
        if not weights.sha256:  # else it is found by the published hash
            remember(path, sha256)
        return FoundWeights(path, f"sha256:{sha256}", weights.preprocess)
    path = Path(choice).expanduser()
    if not path.is_file():
        names = [*net.weights, "random"]
        raise UsageError(
            f"{net.name}: {choice!r} is neither a file nor one of {', '.join(names)}; {did_you_mean(choice, names)}(see "
            "`har models`)"
        )
    sha256 = file_sha256(path)
    remember(path, sha256)
    return FoundWeights(path, f"sha256:{sha256}", net.file_preprocess(path, stream))


def weights_with_hash(weights_of_net: Mapping[str, Weights], stream: Stream, sha256: str) -> str | None:
    """Return what `find_weights` is to be told for the weights with this hash (in hex); None if they are nowhere.

    That is the name of published weights, where they are in the cache or come with a package, or else the file where one
    with this hash was used last, or else the name of what would have to be downloaded.
    """
    of_stream = {name: weights for name, weights in weights_of_net.items() if weights.stream == stream}
    published = [name for name, one in of_stream.items() if one.sha256 and sha256.startswith(one.sha256)]
    for name in published or of_stream:
        if of_stream[name].packaged is not None:
            if published:
                return name
            continue
        file = weights_cache() / of_stream[name].url.rsplit("/", 1)[1]
        if file.is_file() and file_sha256(file) == sha256:
            return name
    used = find_used(sha256, weights_sha256)
    return str(used) if used is not None else next(iter(published), None)


def published_file(net: Net, name: str) -> Path:
    """Return the file of a net's published weights, downloaded into the cache if it is not there, its hash checked.

    Raises: WeightsError if the net has no such weights, the cache cannot be used, the download fails, or the hash differs.
    """
    if name not in net.weights:
        raise WeightsError(f"{net.name} has no weights {name!r}; it has: {', '.join(net.weights)}")
    weights = net.weights[name]
    if weights.packaged is not None:
        path = weights.packaged()
    else:
        assert weights.file is not None
        path = cached_weights(weights.file)
        if not path.exists():
            _download(net, name, weights, path)
    found = weights_sha256(path) if weights.sha256 else ""
    if weights.sha256 and not found.startswith(weights.sha256):
        raise WeightsError(
            f"{path}: sha256 {found[:16]}... is not the published {weights.sha256[:16]}...: "
            f"the file is damaged or was changed; delete it and try again"
        )
    if weights.md5 and _md5(path) != weights.md5:
        raise WeightsError(
            f"{path}: its md5 is not the published one: it is damaged or was changed; delete it and try again"
        )
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(net: Net, name: str, weights: Weights, path: Path) -> None:
    log.warning("downloading %s weights %r from %s to %s", net.name, name, weights.url, path)
    pooch.get_logger().setLevel("ERROR")
    try:
        # pooch writes to a temporary file and renames it; the hash is checked by the caller, against the published digits.
        pooch.retrieve(weights.url, known_hash=None, fname=path.name, path=path.parent)
    except Exception as error:
        raise WeightsError(
            f"{net.name}: cannot download {weights.url} ({_why(error)}). Download it on another "
            f"machine and give the file with `--weights PATH`, or put it at {path} (HAR_CACHE moves that folder)"
        ) from error
    if not weights.sha256 and not weights.md5:
        log.warning("no hash is published for %s; this file's sha256 is %s", weights.url, file_sha256(path))


def _why(error: Exception) -> str:
    """Return why a download failed: of an error that the library wrapped in others, what the innermost says."""
    inner: BaseException = error
    while (nested := _wrapped(inner)) is not None:
        inner = nested
    reason = getattr(inner, "reason", inner)
    # The library begins with the object that failed: HTTPSConnection(host=..., port=443): Failed to resolve ...
    said = " ".join(str(reason).split()).split("): ", 1)[-1]
    return said if reason is not error else f"{type(error).__name__}: {said}"


def _wrapped(error: BaseException) -> BaseException | None:
    """Return the error that another was made of, such as that of a proxy or of the last of several tries."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException) and inner is not error:
            return inner
    return None


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors`, `.pt` or `.pth` file; no pickled code is ever run.

    The dict may stand under a name of `WRAPPERS`, as in the checkpoint of a training, and its keys may have what
    DataParallel and other wrappers put into them.
    Raises: WeightsError if the file is not a state dict of plain tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            values: Any = load_file(path)
        else:
            _check_archive(path)
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The library's own text would suggest to run the code.
        raise WeightsError(
            f"{path}: not a readable weights file: damaged, or with pickled code, which is never run; save the tensors as "
            "safetensors, or with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # bytes that are no weights can break the reader anywhere
        raise _unreadable(path, error) from error
    while isinstance(values, dict) and (inner := [k for k in WRAPPERS if isinstance(values.get(k), dict)]):
        values = values[inner[0]]
    if not isinstance(values, dict) or not values:
        raise WeightsError(f"{path}: holds no state dict of tensors, but {_described(values)}")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or not _is_plain(value):
            raise WeightsError(f"{path}: holds no state dict of tensors: {str(key)[:80]!r} is {_described(value)}")
    # A view may claim to be larger than its data.
    if sum(value.numel() * value.element_size() for value in values.values()) > path.stat().st_size + VIEWS_BYTES:
        raise WeightsError(f"{path}: holds tensors that are larger than their data")
    return _without_wrappers(values, path)


def _unreadable(path: Path, error: Exception) -> WeightsError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return WeightsError(f"{path}: not a readable weights file ({first})")


def read_training(path: Path) -> tuple[TrainedOn | None, str | None]:
    """Return what `har train-video` trained the net of a weights file on, and its resize mode; None for every other file.

    Raises: WeightsError if that is damaged.
    """
    if path.suffix != ".safetensors" or path.is_dir():
        return None, None
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except Exception as error:  # bytes that are no weights can break the reader anywhere
        raise _unreadable(path, error) from error
    if TRAINING not in header:
        return None, None
    try:
        values = dict(json.loads(header[TRAINING]))
        resize = values.pop("resize", None)
        return TrainedOn(**values), resize
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: what it says of its training is damaged ({error}); train the net again") from error


def _check_archive(path: Path) -> None:
    """Raise ValueError if a zip file would unpack to more than it holds; torch's never do."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("a compressed archive")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")


def _is_plain(value: torch.Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {str(value.layout).removeprefix('torch.')} tensor of {str(value.dtype).removeprefix('torch.')}"
    return "an empty dict" if value == {} else f"a {type(value).__name__}"


def _without_wrappers(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return a state dict without the `module.` of DataParallel anywhere, and without a wrapper's name before all keys."""
    names = {key: ".".join(part for part in key.split(".") if part != "module") for key in state}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in names.values())), None):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    if len(set(names.values())) < len(names):
        raise WeightsError(f"{path}: holds the same part twice, with and without `module.` in its name")
    return {names[key]: value for key, value in state.items()}


def load_strictly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy a state dict into a module; counters of batches, which older files lack and no forward pass reads, may be missing.

    Raises: WeightsError naming some of the keys that are missing, unexpected, of another shape or type, or not finite.
    """
    wanted = module.state_dict()
    state = {**{key: value for key, value in wanted.items() if key.endswith(".num_batches_tracked")}, **state}
    shapes = ({key: value.shape for key, value in values.items()} for values in (wanted, state))
    if differing := key_differences(*shapes):
        raise WeightsError(f"{path}: does not fit the net: {differing}")
    for key, value in state.items():
        if value.dtype not in (FLOATS if wanted[key].is_floating_point() else INTEGERS):
            raise WeightsError(f"{path}: {key} is of type {str(value.dtype).removeprefix('torch.')}")
    check_finite(state, path)
    module.load_state_dict(state, strict=True)


def check_finite(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise a WeightsError that names the first tensor of a file or folder with a value that is NaN or infinite."""
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: {key} holds non-finite values: the weights are damaged, get them again")


def load_cut(module: torch.nn.Module, classifier: str, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy a state dict into a module, strictly, but without its classifier where the module was cut before it.

    classifier: the dotted name of the layer that maps features to classes; a module that was cut has an Identity there.
    Raises: WeightsError naming keys that are missing, unknown or of another shape.
    """
    if isinstance(module.get_submodule(classifier), torch.nn.Identity):
        state = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
    load_strictly(module, state, path)
