"""BN-Inception (Ioffe and Szegedy 2015, figure 5): the frame net of TSN's papers.

Input 224x224 BGR in 0-255 units minus (104, 117, 128), or 10 channels of flow. Last map 7x7x1024. Parts are named as in
the published checkpoints (yjxiong's and Cadene's conversions of the authors' Caffe net), and so are the widths: the
pool branches of 4c and 4d have 128 channels there, 96 in the paper. Pools round their size up, as Caffe's do.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

# Output channels: 1x1; 3x3's reduction, 3x3; double 3x3's reduction, each of the two 3x3; projection of the pool.
# 0: the block has neither; it halves the map, and its max pool keeps all channels.
_BLOCKS = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}

_MAX_POOLED = "5b"  # the other blocks that keep the map's size average


class BNInception(nn.Module):
    """BN-Inception; (B, channels, 1, 224, 224) -> (B, 1000), or (B, 1024) where `fc` is an Identity."""

    def __init__(self) -> None:
        super().__init__()
        self._add("conv1_7x7_s2", 3, 64, 7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        inputs = 192
        for block, (single, reduced, triple, double_reduced, double, projected) in _BLOCKS.items():
            prefix, stride = f"inception_{block}", 1 if single else 2
            if single:
                self._add(f"{prefix}_1x1", inputs, single, 1)
            self._add(f"{prefix}_3x3_reduce", inputs, reduced, 1)
            self._add(f"{prefix}_3x3", reduced, triple, 3, stride)
            self._add(f"{prefix}_double_3x3_reduce", inputs, double_reduced, 1)
            self._add(f"{prefix}_double_3x3_1", double_reduced, double, 3)
            self._add(f"{prefix}_double_3x3_2", double, double, 3, stride)
            if projected:
                self._add(f"{prefix}_pool_proj", inputs, projected, 1)
            inputs = single + triple + double + (projected or inputs)
        self.fc: nn.Module = nn.Linear(inputs, 1000)

    def _add(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _apply_units(self, x: torch.Tensor, *names: str) -> torch.Tensor:
        for name in names:
            x = F.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))
        return x

    def _apply_block(self, x: torch.Tensor, block: str) -> torch.Tensor:
        prefix = f"inception_{block}"
        double = (f"{prefix}_double_3x3_reduce", f"{prefix}_double_3x3_1", f"{prefix}_double_3x3_2")
        branches = [self._apply_units(x, f"{prefix}_3x3_reduce", f"{prefix}_3x3"), self._apply_units(x, *double)]
        if not _BLOCKS[block][0]:
            return torch.cat([*branches, _halve(x)], dim=1)
        pooled = F.max_pool2d(x, 3, 1, 1) if block == _MAX_POOLED else F.avg_pool2d(x, 3, 1, 1)
        first, last = self._apply_units(x, f"{prefix}_1x1"), self._apply_units(pooled, f"{prefix}_pool_proj")
        return torch.cat([first, *branches, last], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores of frames (B, channels, 1, 224, 224), or features where `fc` is an Identity."""
        x = x[:, :, 0].contiguous(memory_format=torch.channels_last)
        x = _halve(self._apply_units(x, "conv1_7x7_s2"))
        x = _halve(self._apply_units(x, "conv2_3x3_reduce", "conv2_3x3"))
        for block in _BLOCKS:
            x = self._apply_block(x, block)
        return self.fc(x.mean(dim=(2, 3)))


def _halve(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)
