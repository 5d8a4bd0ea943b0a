"""What every extractor is: a net cut at a layer, its weights, and the preprocessing those weights were trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.device import PRECISIONS


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Turns pixels or flow into the net's input: `(x - mean) / std`, after RGB -> BGR if `bgr`.

    mean and std: one value per channel in the order that the net sees, for rgb in 0-255 units, for flow (x, y) in px/frame.
    cube: (C, T, H, W) means of every pixel of a clip instead of `mean`, and cube_sha256 the hash of its file.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False
    cube: torch.Tensor | None = None
    cube_sha256: str = ""

    def describe(self) -> str:
        """Return the formula as text; it is part of the feature spec."""
        mean, std = (",".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        order = ("bgr" if self.bgr else "rgb") if len(self.mean) == 3 else "flow"
        subtracted = f"cube sha256:{self.cube_sha256}" if self.cube is not None else mean
        return f"{order};(x-[{subtracted}])/[{std}]"

    def __call__(self, clips: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the net's input (B, C, T, H, W) of `dtype`, channels last, from clips (B, T, H, W, C).

        clips: uint8 RGB in [0, 255], or float flow in px/frame.
        """
        x = clips.permute(0, 4, 1, 2, 3)
        if self.bgr:
            x = x.flip(1)
        scale = torch.tensor([1 / s for s in self.std], device=x.device).view(1, -1, 1, 1, 1)
        if self.cube is not None:
            return ((x.float() - self.cube.to(x.device)) * scale).to(dtype)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=x.device)
        return torch.addcmul(shift.view(1, -1, 1, 1, 1), x.float(), scale).to(dtype)


IMAGENET_RGB = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@dataclass(frozen=True, slots=True)
class Weights:
    """A published set of weights. `sha256` is the published hash or its published first digits, "" if none is known.

    stream: what they were trained on; `packaged` finds the file inside an installed Python package; `layers` limits the
    layers that these weights reach.
    """

    url: str
    sha256: str
    licence: str
    trained_on: str
    preprocess: Preprocess
    stream: Stream = "rgb"
    packaged: Callable[[], Path] | None = None
    layers: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """How a net reads one stream by default, and what it can read.

    clips: the clips that its authors take; clip_lens: (shortest, longest) clip that it accepts; resize: as in
    `FeatureSpec.resize`; weights: the default set's name.
    """

    clips: ClipSpec
    clip_lens: tuple[int, int]
    resize: str
    weights: str


@dataclass(frozen=True, slots=True)
class Net:
    """A backbone that can be cut at named layers.

    inputs: the streams that it reads; layers: layer -> feature_dim; build(layer, stream) -> module from (B, C, T, H, W)
    float to (B, feature_dim), random weights, C being 3 for rgb and 2 for flow; load(module, path): copies the weights file
    into the module, strictly; file_preprocess(path, stream): the preprocessing that a local file of this name wants;
    gmacs: per default rgb clip, to the last layer.
    bf16_is_close: whether bf16 features stay within the tolerance of fp32 (cosine at least 0.9995, relative norm of the
    difference at most 2 %), so that `auto` may use it; fold_fp32(module): makes fp32 faster and leaves its numbers.
    """

    name: str
    source: str
    input_size: int
    inputs: Mapping[Stream, Input]
    layers: Mapping[str, int]
    default_layer: str
    gmacs: float
    weights: Mapping[str, Weights]
    build: Callable[[str, Stream], nn.Module]
    load: Callable[[nn.Module, Path], None]
    file_preprocess: Callable[[Path, Stream], Preprocess]
    bf16_is_close: bool
    fold_fp32: Callable[[nn.Module], None] = lambda module: None


@dataclass(frozen=True, slots=True)
class Extractor:
    """A net on a device, ready to turn clips of one stream into features.

    weights: `sha256:<hex>` or `random:<seed>`; precision: fp32, bf16 or fp16, the arithmetic of the net.
    """

    net: Net
    layer: str
    stream: Stream
    weights: str
    preprocess: Preprocess
    module: nn.Module
    device: torch.device
    precision: str

    @property
    def feature_dim(self) -> int:
        """D, the length of one feature."""
        return self.net.layers[self.layer]

    @property
    def input(self) -> Input:
        """How the net reads the stream."""
        return self.net.inputs[self.stream]

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) float32 on the device, from clips (B, T, H, W, C) of the net's input size.

        clips: uint8 RGB, or float flow in px/frame.
        """
        with torch.inference_mode():
            x = self.preprocess(clips.to(self.device, non_blocking=True), PRECISIONS[self.precision])
            return self.module(x).float()
