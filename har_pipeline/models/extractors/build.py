"""Building an extractor: the net cut at a layer, its weights loaded, on its device and in its precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from har_pipeline.core.errors import DeviceError, ExtractionError, UsageError
from har_pipeline.core.files import file_sha256
from har_pipeline.core.known_files import remember
from har_pipeline.core.records import Stream
from har_pipeline.core.text import did_you_mean
from har_pipeline.models.device import PRECISIONS, pick_device, pick_precision
from har_pipeline.models.extractors.base import Extractor, Input, Net, Preprocess, smooth_noise
from har_pipeline.models.extractors.c3d import read_mean_cube
from har_pipeline.models.extractors.nets import find_net
from har_pipeline.models.extractors.weights import find_weights, read_training
from har_pipeline.models.net_names import net_rows

# How near features in 16 bits must be to those in fp32, of nets whose weights are not known here.
LEAST_COSINE = 0.999


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
    tokens: bool = False,
    at_once: bool = True,
) -> Extractor:
    """Return the extractor `name`, its weights loaded and on its device, in evaluation mode.

    name: of `har models`, `timm:NAME`, or `hf:NAME_OR_FOLDER`; or as a feature spec has these.
    weights: a name of `har models`, a file, `random` (drawn with `seed`), or None for the net's default; of `hf-KIND`, which a
    feature spec has, the folder or name on the hub.
    mean_cube: c3d's means of every pixel, see `c3d.read_mean_cube`, instead of the means per channel.
    tokens: one feature for each position of the layer's map, instead of one for a clip; by default of the default layer, or
    of the first that is a map.
    at_once: build the net now, and not when its `module` is first asked for, which then raises what is wrong with the file.
    Raises: UsageError for an unknown net or layer, one without tokens, a stream that the net does not read, or a cube for
    another net; ExtractionError if a package that builds the net is missing;
    DeviceError as `pick_device` and `pick_precision`; WeightsError if the weights cannot be had.
    """
    net = find_net(name, weights)
    if layer is None:
        layer = net.default_layer
        if tokens and net.tokens is not None and layer not in net.tokens.layers:
            layer = next(iter(net.tokens.layers))
    if layer not in net.layers:
        raise UsageError(
            f"{name} has no layer {layer!r}; {did_you_mean(layer, net.layers)}it has: {_listed(net.layers)}"
        )
    if at_once:
        net.require()  # before any weights are downloaded
    if tokens and (net.tokens is None or layer not in net.tokens.layers):
        raise UsageError(_no_tokens(name, net, layer))
    if stream not in net.inputs:
        raise UsageError(f"{name} reads {', '.join(net.inputs)}, not {stream}")
    if mean_cube is not None and name != "c3d":
        raise UsageError(f"only c3d takes a mean cube, not {name}")
    torch_device = pick_device(device)
    if precision == "auto" and not gains_from_bf16(net, stream, torch_device):
        precision = "fp32"
    chosen_precision = pick_precision(precision, torch_device)
    found = find_weights(net, None if net.of_folder else weights, layer, stream, seed)
    trained_on, resize = (None, None) if found.path is None else read_training(found.path)
    if resize is not None:
        net = replace(net, inputs={**net.inputs, stream: replace(net.inputs[stream], resize=resize)})

    def make_module() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = (net.tokens if tokens and net.tokens else net).build(layer, stream)
        if found.path is not None:
            net.load(module, found.path)
        if net.folds_batch_norms and chosen_precision == "fp32":
            fold_batch_norms(module)
        module = _channels_last(module.eval().requires_grad_(False).to(torch_device))
        if net.bf16_is_close is not None or chosen_precision == "fp32":
            return module.to(PRECISIONS[chosen_precision])
        return _compared(module, chosen_precision, net.inputs[stream], preprocess, name)

    preprocess = found.preprocess if mean_cube is None else _with_cube(found.preprocess, mean_cube)
    extractor = Extractor(
        net=net,
        layer=layer,
        stream=stream,
        weights=found.label,
        preprocess=preprocess,
        make_module=make_module,
        device=torch_device,
        precision=chosen_precision,
        trained_on=trained_on,
        tokens=net.tokens if tokens else None,
        weights_file=found.path,
    )
    if at_once:
        _ = extractor.module
    return extractor


def _no_tokens(name: str, net: Net, layer: str) -> str:
    if net.tokens is None:
        with_some = dict.fromkeys(row["net"] for row in net_rows() if row["tokens"])
        return (
            f"{name} has no tokens, which are the positions of a layer's map: leave --tokens out, or take a net that has "
            f"some: {', '.join(with_some)}, or an encoder of transformers (hf:NAME_OR_FOLDER)"
        )
    there = " or ".join(net.tokens.layers)
    return f"{name} has no tokens at {layer}: leave --tokens out, or give --layer {there}"


def _listed(layers: Iterable[str]) -> str:
    """Return the names of layers; of a net whose every module is one, the first and the last."""
    names = list(layers)
    return ", ".join(names if len(names) <= 30 else [*names[:10], "...", *names[-10:]])


def gains_from_bf16(net: Net, stream: Stream, device: torch.device) -> bool:
    """Return whether a net is to compute in bf16 where the device does so natively: close to fp32, and not slower.

    cuDNN's convolutions over time are slower in bf16 than in TF32: I3D on an H200 by a third (`benchmarks/nets.py`).
    """
    over_time = net.inputs[stream].clips.clip_len > 1
    return bool(net.bf16_is_close) and not (device.type == "cuda" and over_time)


def _compared(module: nn.Module, precision: str, read: Input, preprocess: Preprocess, name: str) -> nn.Module:
    """Return an fp32 module in 16 bits. Raises: DeviceError if its features are too far from those in fp32 on smooth noise."""
    device = next(module.parameters()).device
    clips = smooth_noise((2, read.clips.clip_len, *read.shape, 3)).to(device)
    with torch.inference_mode():
        exact = module(preprocess(clips, torch.float32)).flatten(1)
    module = module.to(PRECISIONS[precision])
    with torch.inference_mode():
        near = module(preprocess(clips, PRECISIONS[precision])).float().flatten(1)
    cosine = torch.nn.functional.cosine_similarity(exact, near).mean().item()
    if not cosine > LEAST_COSINE:
        raise DeviceError(
            f"{name}: features in {precision} are too far from those in fp32: mean cosine {cosine:.5f}, not above "
            f"{LEAST_COSINE}; use --precision fp32"
        )
    return module


def fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch normalisation into the convolution registered right before it."""
    for part in module.eval().modules():
        for (name, convolution), (norm_name, norm) in pairwise(list(part.named_children())):
            if isinstance(convolution, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(part, name, fuse_conv_bn_eval(convolution, norm))
                setattr(part, norm_name, nn.Identity())


def _channels_last(module: nn.Module) -> nn.Module:
    # `Module.to(memory_format=...)` takes only one rank; frame nets have kernels of rank 4, clip nets of rank 5.
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
    return module


def _with_cube(preprocess: Preprocess, path: Path) -> Preprocess:
    if not preprocess.bgr:
        raise ExtractionError(
            f"{path}: the mean cube is for the BGR frames of the original weights, but these weights read RGB"
        )
    cube, sha256 = torch.from_numpy(read_mean_cube(path)), file_sha256(path)
    remember(path, sha256)
    return replace(preprocess, cube=cube, cube_sha256=sha256)
