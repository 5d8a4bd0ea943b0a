"""What every extractor is: a net cut at a layer, its weights, and the preprocessing those weights were trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.records import ClipSpec, ResizeMethod, Stream, TrainedOn
from har_pipeline.models.device import PRECISIONS
from har_pipeline.video.contrast import local_contrast
from har_pipeline.video.preprocess import parse_resize


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Turns pixels or flow into a net's input: `(x - mean) / std`."""

    # One value per channel in the net's order: rgb in 0-255 units, flow (x, y) in px/frame.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Whether the net reads BGR.
    bgr: bool = False
    # Whether clips, whose three channels are then grey, become one channel of `video.contrast.local_contrast`.
    local_contrast: bool = False
    # (C, T, H, W) means of every pixel of a clip, instead of `mean`.
    cube: torch.Tensor | None = None
    # Hash of the cube's file.
    cube_sha256: str = ""

    def describe(self) -> str:
        """Return the formula as text; it is part of the feature spec."""
        mean, std = (",".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        order = ("bgr" if self.bgr else "rgb") if len(self.mean) == 3 else "flow"
        subtracted = f"cube sha256:{self.cube_sha256}" if self.cube is not None else mean
        return f"{order};(x-[{subtracted}])/[{std}]" + ";grey,local contrast 7x7x7" * self.local_contrast

    def __call__(self, clips: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the net's input (B, C, T, H, W) of `dtype` from clips (B, T, H, W, C).

        clips: uint8 RGB in [0, 255], or float flow in px/frame.
        """
        x = clips.permute(0, 4, 1, 2, 3)
        if self.bgr:
            x = x.flip(1)
        scale = torch.tensor([1 / s for s in self.std], device=x.device).view(1, -1, 1, 1, 1)
        if self.cube is not None:
            return ((x.float() - self.cube.to(x.device)) * scale).to(dtype)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=x.device)
        x = torch.addcmul(shift.view(1, -1, 1, 1, 1), x.float(), scale)
        return (local_contrast(x[:, :1]) if self.local_contrast else x).to(dtype)


def of_unit_range(mean: Sequence[float], std: Sequence[float]) -> Preprocess:
    """Return the preprocessing of RGB in 0-255 units that a source gives for RGB in [0, 1], as torchvision does."""
    return Preprocess(mean=tuple(255 * value for value in mean), std=tuple(255 * value for value in std))


IMAGENET_RGB = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))

# What nets of single frames read by default: as many frames as Orozco 2020 takes, but of the whole video.
FRAMES = ClipSpec(sampling="uniform", num_clips=40)


@dataclass(frozen=True, slots=True)
class Weights:
    """A published set of weights."""

    url: str
    # The published hash or its published first digits, "" if none is known.
    sha256: str
    licence: str
    trained_on: str
    preprocess: Preprocess
    # The published md5 where no sha256 is published.
    md5: str = ""
    # What the weights were trained on.
    stream: Stream = "rgb"
    # Finds the file inside an installed Python package, or the file or folder of a model of the hub, downloaded if need be.
    packaged: Callable[[], Path] | None = None
    # The only layers that these weights reach.
    layers: tuple[str, ...] | None = None

    @property
    def file(self) -> str | None:
        """The name of the downloaded file, None if nothing is downloaded."""
        return self.url.rsplit("/", 1)[1] if self.packaged is None else None


@dataclass(frozen=True, slots=True)
class Input:
    """How a net reads one stream."""

    # The default, over the whole video: the clips of the authors' test, or of the usual evaluation.
    clips: ClipSpec
    # (shortest, longest) clip that the net accepts, in frames.
    clip_lens: tuple[int, int]
    # As in `FeatureSpec.resize`.
    resize: str
    # Name of the default weights.
    weights: str
    # As in `FeatureSpec`: the default.
    resize_method: ResizeMethod = "area"

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the frames that the net reads, in px."""
        return parse_resize(self.resize).shape


@dataclass(frozen=True, slots=True)
class Tokens:
    """How a net gives the positions of a layer's map one by one, where its features are their mean, or one long row."""

    # Layer -> D of each token.
    layers: Mapping[str, int]
    # (layer, clip_len) -> M, the tokens of a clip: positions of the map in the order time, height, width.
    count: Callable[[str, int], int]
    # (layer, stream) -> module as `Net.build` makes it, with the same weights, to (B, M, D).
    build: Callable[[str, Stream], nn.Module]


@dataclass(frozen=True, slots=True)
class Net:
    """A backbone that can be cut at named layers."""

    name: str
    source: str
    inputs: Mapping[Stream, Input]
    # Layer -> feature_dim.
    layers: Mapping[str, int]
    default_layer: str
    # Multiply-accumulates of a default rgb clip up to the last layer, in units of 10^9; None: not counted.
    gmacs: float | None
    weights: Mapping[str, Weights]
    # (layer, stream) -> module from (B, C, T, H, W) float to (B, feature_dim), random weights; C is 3 for rgb, 2 for flow.
    build: Callable[[str, Stream], nn.Module]
    # Copies a weights file into the module, strictly.
    load: Callable[[nn.Module, Path], None]
    # The preprocessing for a local weights file.
    file_preprocess: Callable[[Path, Stream], Preprocess]
    # Whether bf16 features are close to fp32 ones (cosine >= 0.9995, relative norm of the difference <= 2 %), so that
    # `auto` may use bf16. None: not measured, since it depends on the weights; `auto` is fp32 then, and where 16 bits are asked
    # for, they are compared with fp32 first.
    bf16_is_close: bool | None
    # Whether each batch normalisation may be folded into the convolution registered right before it. Only done in fp32:
    # faster by up to a quarter; in bf16 it loses accuracy.
    folds_batch_norms: bool = False
    # The packages that it comes from, besides torch and torchvision: their versions are recorded with the features.
    packages: tuple[str, ...] = ()
    # Whether its only weights are those of the folder of a model, from which the net itself was read.
    of_folder: bool = False
    # None: a net of which no layer is a map.
    tokens: Tokens | None = None
    # Imports what builds the net, where that is an optional package. Raises: ExtractionError with the way out.
    require: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Extractor:
    """A net on a device, ready to turn clips of one stream into features."""

    net: Net
    layer: str
    stream: Stream
    # `sha256:<hex>` or `random:<seed>`.
    weights: str
    preprocess: Preprocess
    # Builds the net in evaluation mode, its weights loaded, on its device.
    make_module: Callable[[], nn.Module]
    device: torch.device
    # Arithmetic of the net: fp32, bf16 or fp16.
    precision: str
    # What a net of ours was trained on; its features of other videos are no training features.
    trained_on: TrainedOn | None = None
    # Of a module from `Tokens.build`: how many tokens a clip has; None: it gives one feature for a clip.
    tokens: Tokens | None = None
    # The file or folder that the weights are read from; None: they are random.
    weights_file: Path | None = None

    @cached_property
    def module(self) -> nn.Module:
        """The net, built when it is first asked for: what a job that finds nothing to do never does.

        Raises: WeightsError if the weights do not fit.
        """
        return self.make_module()

    @property
    def feature_dim(self) -> int:
        """D, the length of one feature, or of one token."""
        return (self.net if self.tokens is None else self.tokens).layers[self.layer]

    def num_tokens(self, clip_len: int) -> int:
        """Return M, the tokens of a clip of so many frames; 0 where a clip has one feature."""
        return 0 if self.tokens is None else self.tokens.count(self.layer, clip_len)

    @property
    def input(self) -> Input:
        """How the net reads the stream."""
        return self.net.inputs[self.stream]

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) float32 on the device, or tokens (B, M, D), from clips (B, T, H, W, C) of the input size.

        clips: uint8 RGB, or float flow in px/frame.
        """
        with torch.inference_mode():
            x = self.preprocess(clips.to(self.device, non_blocking=True), PRECISIONS[self.precision])
            return self.module(x).float()

    def check_finite(self) -> None:
        """Raise a WeightsError if the features of smooth noise are not finite: then those of no video are."""
        shortest, _ = self.input.clip_lens
        noise = smooth_noise((1, shortest, *self.input.shape, 2 if self.stream == "flow" else 3))
        if torch.isfinite(self(noise)).all():
            return
        way_out = "get the weights again" if self.precision == "fp32" else "try --precision fp32"
        raise WeightsError(
            f"{self.weights_file or self.net.name}: with these weights the net gives values in {self.precision} that are not "
            f"finite, whatever the video: {way_out}"
        )


def smooth_noise(shape: tuple[int, int, int, int, int]) -> torch.Tensor:
    """Return clips (B, T, H, W, C) uint8 of a shape, the same ones at each call."""
    clips, frames, height, width, channels = shape
    noise = torch.rand(clips * frames, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    return (255 * smooth).to(torch.uint8).unflatten(0, (clips, frames))
