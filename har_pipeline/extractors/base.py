"""What every extractor is: a net cut at a layer, its weights, and the preprocessing those weights were trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Turns uint8 pixels into the net's input: `(x - mean) / std` in 0-255 units, after RGB -> BGR if `bgr`.

    mean and std: one value per channel in the order that the net sees.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    def describe(self) -> str:
        """Return the formula as text; it is part of the feature spec."""
        mean, std = (",".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{'bgr' if self.bgr else 'rgb'};(x-[{mean}])/[{std}]"

    def __call__(self, clips: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the net's input from clips (B, T, H, W, 3) uint8 RGB, as (B, 3, T, H, W) of `dtype`, channels last."""
        x = clips.permute(0, 4, 1, 2, 3)
        if self.bgr:
            x = x.flip(1)
        scale = torch.tensor([1 / s for s in self.std], device=x.device).view(1, 3, 1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=x.device)
        return torch.addcmul(shift.view(1, 3, 1, 1, 1), x.float(), scale).to(dtype)


IMAGENET_RGB = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@dataclass(frozen=True, slots=True)
class Weights:
    """A published set of weights. `sha256` is the published hash or its published first digits, "" if none is known.

    `packaged` finds the file inside an installed Python package; `layers` limits the layers that these weights reach.
    """

    url: str
    sha256: str
    licence: str
    trained_on: str
    preprocess: Preprocess
    packaged: Callable[[], Path] | None = None
    layers: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Net:
    """A backbone that can be cut at named layers.

    layers: layer -> feature_dim; build(layer) -> module from (B, 3, T, H, W) float to (B, feature_dim), random weights;
    load(module, path): copies the weights file into the module, strictly; file_preprocess(path): the preprocessing that a
    local file of this name wants; resize: default, as in `FeatureSpec.resize`; gmacs: per clip, to the last layer.
    bf16_is_close: whether bf16 features stay within the tolerance of fp32 (cosine at least 0.9995, relative norm of the
    difference at most 2 %), so that `auto` may use it; fold_fp32(module): makes fp32 faster and leaves its numbers.
    """

    name: str
    source: str
    input_size: int
    clip_len: int
    layers: Mapping[str, int]
    default_layer: str
    resize: str
    gmacs: float
    weights: Mapping[str, Weights]
    default_weights: str
    build: Callable[[str], nn.Module]
    load: Callable[[nn.Module, Path], None]
    file_preprocess: Callable[[Path], Preprocess]
    bf16_is_close: bool
    fold_fp32: Callable[[nn.Module], None] = lambda module: None


@dataclass(frozen=True, slots=True)
class Extractor:
    """A net on a device, ready to turn clips into features.

    weights: `sha256:<hex>` or `random:<seed>`; precision: fp32, bf16 or fp16, the arithmetic of the net.
    """

    net: Net
    layer: str
    weights: str
    preprocess: Preprocess
    module: nn.Module
    device: torch.device
    precision: str

    @property
    def feature_dim(self) -> int:
        """D, the length of one feature."""
        return self.net.layers[self.layer]

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) float32 on the device, from clips (B, T, H, W, 3) uint8 RGB of the net's input size."""
        with torch.inference_mode():
            x = self.preprocess(clips.to(self.device, non_blocking=True), PRECISIONS[self.precision])
            return self.module(x).float()


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
