"""The list of nets, collected from the `NET` or `NETS` of this package's modules, and a description of each.

A new net is a new module here, or a new entry in the `NETS` of one. Its name is the first argument there, as a literal: the
command line reads it without importing the module. Other libraries' nets, and torchvision, which takes 1.4 s of CPU, are
imported where a net is built.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import UsageError, WeightsError
from har_pipeline.models.extractors.base import Net, Weights
from har_pipeline.models.extractors.hub import weights_sha256
from har_pipeline.models.extractors.timm_nets import timm_net
from har_pipeline.models.extractors.transformers_nets import transformers_net
from har_pipeline.models.net_names import check_net_name, in_family, net_modules


@cache
def all_nets() -> dict[str, Net]:
    """Return name -> net: modules of one net first, then families, the smaller ones first, modules by name."""
    families = [_family(found.name) for found in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return {net.name: net for family in sorted(families, key=len) for net in family}


def _family(module_name: str) -> tuple[Net, ...]:
    """Return the nets of a module of this package, which may have none."""
    module = import_module(f"{__package__}.{module_name}")
    return module.NETS if hasattr(module, "NETS") else (module.NET,) if hasattr(module, "NET") else ()


def find_net(name: str, weights: str | None = None) -> Net:
    """Return the net of that name, importing its module only.

    weights: of a net of transformers as a feature spec names it (`hf-videomae`), the folder or name on the hub.
    Raises: UsageError listing the known ones; ExtractionError and WeightsError as `timm_net` and `transformers_net`.
    """
    check_net_name(name)
    match in_family(name):
        case "timm", model:
            return timm_net(model)
        case "hf", source:
            return _of_folder(name, source, weights)
    return next(net for net in _family(net_modules()[name]) if net.name == name)


def _of_folder(name: str, source: str, weights: str | None) -> Net:
    if weights == "random":
        raise UsageError(f"{name}: a model of transformers has the weights of its folder: omit --weights random")
    if ":" in name:
        if weights is not None:
            raise UsageError(f"{name}: its weights are those of its folder: omit --weights")
        return transformers_net(source)
    if weights is None:
        raise UsageError(f"{name}: give the model's folder, or its name on the hub, with --weights")
    net = transformers_net(weights)
    if net.name != name:
        raise WeightsError(f"{weights}: a model of the kind {net.name.removeprefix('hf-')}, not {source}")
    return net


def published_weights(name: str) -> Mapping[str, Weights]:
    """Return the named weights of the net that made features, as `Net.weights`; of transformers none, which are folders."""
    family = in_family(name)
    return {} if family is not None and family[0] == "hf" else find_net(name).weights


def describe_nets() -> list[dict[str, Any]]:
    """Return one row for each net and set of weights: what docs/extractors.md shows, and nets.json keeps for `har models`.

    default: whether these weights are the net's own for their stream. file: the weights' name in the cache, None if they are
    not downloaded. tokens: layer -> [M, D], of its default clips, of the layers that `--tokens` takes.
    """
    return [row for net in all_nets().values() for row in describe_net(net)]


def describe_net(net: Net) -> list[dict[str, Any]]:
    """Return one row for each set of weights of a net, as in `describe_nets`; of a folder's net `sha256` is the folder's."""
    rows: list[dict[str, Any]] = []
    for name, weights in net.weights.items():
        read = net.inputs[weights.stream]
        layers = {k: dim for k, dim in net.layers.items() if weights.layers is None or k in weights.layers}
        tokens = {}
        if net.tokens is not None:
            own, frames = net.tokens, read.clips.clip_len
            tokens = {k: [own.count(k, frames), dim] for k, dim in own.layers.items() if k in layers}
        sha256 = weights.sha256
        if net.of_folder and weights.packaged is not None:
            sha256 = weights_sha256(weights.packaged())
        rows.append(
            {
                "net": net.name,
                "stream": weights.stream,
                "input": f"{read.clips.clip_len}x{read.shape[0]}x{read.shape[1]}",
                "clips": read.clips.describe(),
                "resize": read.resize,
                "resize_method": read.resize_method,
                "layers": layers,
                "default_layer": net.default_layer,
                "tokens": tokens,
                "gmacs_per_clip": net.gmacs,
                "weights": name,
                "default": read.weights == name,
                "file": weights.file,
                "trained_on": weights.trained_on,
                "licence": weights.licence,
                "url": weights.url,
                "sha256": sha256,
                "md5": weights.md5,
                "preprocess": weights.preprocess.describe(),
                "source": net.source,
            }
        )
    return rows
