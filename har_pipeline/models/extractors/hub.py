"""Files of models in Hugging Face's layout: a folder, or a repository of the hub, from the hub's cache or downloaded into it.

Weights are read from safetensors only: pickled ones may run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import ExtractionError, WeightsError
from har_pipeline.core.files import file_sha256
from har_pipeline.core.kinds import what_is

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# How frames are prepared; of several the first that there is.
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def library(name: str, wanted_by: str) -> Any:
    """Return the library of the extra `backbones` of this name. Raises: ExtractionError saying how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ExtractionError(f"{wanted_by} needs {name}: pip install 'har-pipeline[backbones]'") from error


def first_line(error: Exception) -> str:
    """Return what an error of a library says first, or its kind, if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def model_folder(source: str) -> Path:
    """Return the folder of a model: `source` itself, or the hub's cache of the repository of that name, made complete.

    Raises: WeightsError if it is no folder of a model, its weights are pickled, or it cannot be downloaded.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not _REPOSITORY.fullmatch(source):
        raise WeightsError(
            f"{source} is {what_is(folder)}, neither a folder that holds {CONFIG} and {WEIGHTS} nor a name on the hub "
            "(such as MCG-NJU/videomae-base-finetuned-kinetics)"
        )
    try:
        config = hub_file(source, CONFIG)
    except WeightsError as error:
        raise WeightsError(f"there is no folder {source} here, and as a name on the hub: {error}") from error
    if config is None:
        raise WeightsError(f"{source}: the hub has no {CONFIG} there: it is no model of transformers")
    _processor(source)
    index = _cached(source, INDEX)
    if index is None and hub_file(source, WEIGHTS) is None:
        index = hub_file(source, INDEX)
        if index is None:
            raise WeightsError(f"{source}: the hub has no {WEIGHTS} there; {_way_out('its weights')}")
    for name in _shards(index) if index is not None else ():
        hub_file(source, name)
    # Once more: the repository may have changed meanwhile, and then all is another folder.
    config = hub_file(source, CONFIG)
    assert config is not None
    return config.parent


def _processor(repository: str) -> None:
    """Have the files in the cache that say how frames are prepared; without network those that are there are enough."""
    found, failed = False, None
    for name in PROCESSORS:
        try:
            found |= hub_file(repository, name) is not None
        except WeightsError as error:
            failed = error
    if failed is not None and not found:
        raise failed


def _cached(repository: str, name: str) -> Path | None:
    cached = library("huggingface_hub", repository).try_to_load_from_cache(repository, name)
    return Path(cached) if isinstance(cached, str) else None


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model's folder. Raises: WeightsError if there are none, or only pickled ones."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        files = [folder / name for name in _shards(folder / INDEX)]
        if missing := [file.name for file in files if not file.is_file()]:
            raise WeightsError(f"{folder}: {INDEX} names {missing[0]}, which is not there: copy the folder again")
        return files
    if pickled := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED):
        raise WeightsError(f"{folder}: holds {pickled[0]} and no {WEIGHTS}; {_way_out('pickled weights')}")
    raise WeightsError(f"{folder}: holds no {WEIGHTS}: it is {what_is(folder)}, not that of a model")


def _way_out(what: str) -> str:
    return (
        f"{what} may run code and are not read: load them where you trust them and save them with "
        "model.save_pretrained(FOLDER), or safetensors.torch.save_file(state_dict, FILE)"
    )


def refuse_pickled(file: Path) -> None:
    """Raise WeightsError for a weights file that is not safetensors."""
    if file.suffix != ".safetensors":
        raise WeightsError(f"{file}: not a .safetensors file; {_way_out('pickled weights')}")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises: WeightsError if it is missing, damaged or no object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{file}: holds no JSON object")
    return values


def weights_sha256(path: Path) -> str:
    """Return the sha256, in hex, of a weights file, or of a model's folder.

    Of a folder: that of what `sha256sum` prints for its weights, its config and how frames are prepared, sorted by name, so
    that a copy of the folder has the same.
    """
    if not path.is_dir():
        return file_sha256(path)
    others = [folder_file for name in (CONFIG, *PROCESSORS) if (folder_file := path / name).is_file()]
    files = sorted([*weight_files(path), *others], key=lambda file: file.name)
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def hub_file(repository: str, name: str, give: str = "that folder") -> Path | None:
    """Return a file of a repository, from the hub's cache or downloaded into it; None if the repository has no such file.

    give: what a user without network is told to give instead.

    Raises: WeightsError if it is not in the cache and cannot be downloaded.
    """
    hub = library("huggingface_hub", repository)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each try
    if (cached := _cached(repository, name)) is not None:
        return cached
    try:
        return Path(hub.hf_hub_download(repository, name))
    except hub.errors.LocalEntryNotFoundError as error:
        raise _no_download(repository, name, "no connection to the hub", give) from error
    except hub.errors.EntryNotFoundError:
        return None
    except Exception as error:  # of the connection, of permissions, of the disk: of several libraries
        raise _no_download(repository, name, first_line(error)[:200], give) from error


def _no_download(repository: str, name: str, why: str, give: str) -> WeightsError:
    return WeightsError(
        f"{repository}: {name} is not in the hub's cache and cannot be downloaded ({why}). Run `hf download {repository}` on "
        f"another machine, copy the folder that it prints here, and give {give}"
    )


def _shards(index: Path) -> list[str]:
    names = read_json(index).get("weight_map")
    files = set(names.values()) if isinstance(names, dict) else set()
    if not files or not all(
        isinstance(one, str) and Path(one).name == one and one.endswith(".safetensors") for one in files
    ):
        raise WeightsError(f"{index}: names no .safetensors files beside it")
    return sorted(files)
