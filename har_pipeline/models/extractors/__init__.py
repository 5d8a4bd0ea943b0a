"""Nets that turn clips into features, one file each, and the one function that builds an extractor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from har_pipeline.core.errors import ExtractionError, WeightsError
from har_pipeline.core.files import file_sha256
from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.device import PRECISIONS, pick_device, pick_precision
from har_pipeline.models.extractors import c3d, efficientnet_lite0, i3d, pytorchvideo_nets, torchvision_nets, tsn, vgg16
from har_pipeline.models.extractors.base import Extractor, Net, Preprocess
from har_pipeline.models.extractors.weights import find_weights

NETS: dict[str, Net] = {
    net.name: net
    for net in (
        *(c3d.NET, efficientnet_lite0.NET, i3d.NET, vgg16.NET),
        *(*tsn.NETS, *torchvision_nets.NETS, *pytorchvideo_nets.NETS),
    )
}


def find_net(name: str) -> Net:
    """Return the net of that name. Raises: ExtractionError listing the known ones."""
    if name not in NETS:
        raise ExtractionError(f"unknown extractor {name!r}; there are: {', '.join(sorted(NETS))}")
    return NETS[name]


def _channels_last(module: nn.Module) -> nn.Module:
    # `Module.to(memory_format=...)` takes one rank only; nets of frames have kernels of rank 4, nets of clips of rank 5.
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
    return module


def build_extractor(
    name: str,
    *,
    layer: str | None = None,
    stream: Stream = "rgb",
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    mean_cube: Path | None = None,
) -> Extractor:
    """Return the extractor `name`, its weights loaded and on its device, in evaluation mode.

    weights: a name of `har models`, a file, `random` (drawn with `seed`), or None for the net's default.
    mean_cube: c3d's mean of every pixel of a clip, see `c3d.read_mean_cube`, instead of the means per channel.
    Raises: ExtractionError on an unknown net, layer, device or precision, a cube for another net, or a stream that the
    net does not read; WeightsError if the weights cannot be had.
    """
    net = find_net(name)
    layer = layer or net.default_layer
    if layer not in net.layers:
        raise ExtractionError(f"{name} has no layer {layer!r}; it has: {', '.join(net.layers)}")
    if stream not in net.inputs:
        raise ExtractionError(f"{name} reads {', '.join(net.inputs)}, not {stream}")
    if mean_cube is not None and name != "c3d":
        raise ExtractionError(f"a mean cube belongs to c3d, not to {name}")
    torch_device = pick_device(device)
    if precision == "auto" and not net.bf16_is_close:
        precision = "fp32"
    chosen_precision = pick_precision(precision, torch_device)
    found = find_weights(net, weights, layer, stream, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = net.build(layer, stream)
    if found.path is not None:
        net.load(module, found.path)
    if chosen_precision == "fp32":
        net.fold_fp32(module)
    module = module.eval().requires_grad_(False).to(torch_device, PRECISIONS[chosen_precision])
    return Extractor(
        net=net,
        layer=layer,
        stream=stream,
        weights=found.label,
        preprocess=found.preprocess if mean_cube is None else _with_cube(found.preprocess, mean_cube),
        module=_channels_last(module),
        device=torch_device,
        precision=chosen_precision,
    )


def _with_cube(preprocess: Preprocess, path: Path) -> Preprocess:
    if not preprocess.bgr:
        raise ExtractionError(
            f"{path}: the mean cube is for the BGR frames of the original weights, not for these in RGB"
        )
    cube = torch.from_numpy(c3d.read_mean_cube(path))
    return replace(preprocess, cube=cube, cube_sha256=file_sha256(path))


def describe_nets() -> list[dict[str, Any]]:
    """Return one row for each net and set of weights: what `har models` prints and docs/extractors.md shows."""
    rows: list[dict[str, Any]] = []
    for net in NETS.values():
        for name, weights in net.weights.items():
            read = net.inputs[weights.stream]
            layers = {k: dim for k, dim in net.layers.items() if weights.layers is None or k in weights.layers}
            rows.append(
                {
                    "net": net.name,
                    "stream": weights.stream,
                    "input": f"{read.clips.clip_len}x{net.input_size}x{net.input_size}",
                    "clips": _describe_clips(read.clips),
                    "resize": read.resize,
                    "layers": layers,
                    "default_layer": net.default_layer,
                    "gmacs_per_clip": net.gmacs,
                    "weights": name,
                    "trained_on": weights.trained_on,
                    "licence": weights.licence,
                    "url": weights.url,
                    "sha256": weights.sha256,
                    "preprocess": weights.preprocess.describe(),
                    "source": net.source,
                }
            )
    return rows


def _describe_clips(clips: ClipSpec) -> str:
    count = "all" if clips.num_clips is None else str(clips.num_clips)
    frames = "frame" if clips.clip_len == 1 else f"{clips.clip_len} frames"
    steps = f", every {clips.frame_interval}" if clips.frame_interval > 1 else ""
    stride = f", a clip every {clips.clip_stride}" if clips.sampling == "dense" else ""
    return f"{clips.sampling}, {count} x {frames}{steps}{stride}"


__all__ = [
    "NETS",
    "Extractor",
    "Net",
    "WeightsError",
    "build_extractor",
    "describe_nets",
    "find_net",
    "pick_device",
    "pick_precision",
]
