"""A net that costs next to nothing, for tests of what is done with features rather than of the features."""

from __future__ import annotations

import torch
from torch import nn

from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.extractors.base import Extractor, Input, Net, Preprocess, Tokens

CHANNELS = {"rgb": 3, "flow": 2}


class _Pixels(nn.Module):
    """Features that tell which frames came: 4x4 means of the last frame of a clip, then of its first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x[:, :1].flatten(1, 2)[:, [-1, 0]], 4)
        return pooled.flatten(1)


class _Quarters(nn.Module):
    """Tokens that tell which frames came: of each quarter of a clip's first and last frame the mean of each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quarters = x[:, :, [0, -1]].unflatten(3, (2, -1)).unflatten(5, (2, -1))
        return quarters.mean(dim=(4, 6)).flatten(2).transpose(1, 2)


QUARTERS = Tokens(layers={"mean": 3}, count=lambda layer, clip_len: 8, build=lambda layer, stream: _Quarters())


def identity(stream: Stream, std: float = 1.0) -> Preprocess:
    return Preprocess(mean=(0.0,) * CHANNELS[stream], std=(std,) * CHANNELS[stream])


def pixel_extractor(
    name: str = "pixels",
    *,
    stream: Stream = "rgb",
    resize: str = "stretch-32",
    scale: float = 1.0,
    tokens: bool = False,
) -> Extractor:
    """Return an extractor of 32 features, or of 8 tokens of 3 values, from 32x32 px of clips of any length."""
    inputs: dict[Stream, Input] = {
        "rgb": Input(clips=ClipSpec(), clip_lens=(1, 99), resize=resize, weights=""),
        "flow": Input(clips=ClipSpec(clip_len=5), clip_lens=(1, 99), resize=resize, weights=""),
    }
    net = Net(
        name=name,
        source="this test",
        inputs=inputs,
        layers={"mean": 32},
        default_layer="mean",
        gmacs=0.0,
        weights={},
        build=lambda layer, stream: _Pixels(),
        load=lambda module, path: None,
        file_preprocess=lambda path, stream: identity(stream),
        bf16_is_close=False,
        tokens=QUARTERS,
    )
    return Extractor(
        net=net,
        layer="mean",
        stream=stream,
        weights="random:0",
        preprocess=identity(stream, 1 / scale),
        make_module=_Quarters if tokens else _Pixels,
        device=torch.device("cpu"),
        precision="fp32",
        tokens=QUARTERS if tokens else None,
    )


def build_pixel_extractor(
    name: str,
    *,
    layer: str | None = None,
    stream: Stream = "rgb",
    weights: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    tokens: bool = False,
) -> Extractor:
    """Stand in for `build_extractor`: the net of pixels under the name that is asked for."""
    return pixel_extractor(name, stream=stream, resize="short64-center32", tokens=tokens)
