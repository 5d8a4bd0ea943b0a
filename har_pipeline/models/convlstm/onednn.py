"""Convolutions of one kernel with the images of many time steps on a CPU, through oneDNN.

`conv2d` brings a kernel into oneDNN's order of memory at every call, here it is packed once; and a convolution adds its result
to what is there, where `conv2d` writes it for another pass over memory to add. In bfloat16 the sum is rounded once, not twice.
PyTorch's compiler calls the same operators.
"""

from __future__ import annotations

import platform
from functools import cache

import torch


def usable(images: torch.Tensor) -> bool:
    """Return whether `pack`, `convolve` and `add_convolution_` may work on these images."""
    return (
        images.device.type == "cpu"
        and images.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and _fast(images.dtype)
    )


@cache
def _fast(dtype: torch.dtype) -> bool:
    # Tried on x86 alone: PyTorch's builds for ARM leave convolutions to another library.
    if platform.machine().lower() not in {"x86_64", "amd64"} or not torch.backends.mkldnn.is_available():
        return False
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    image = torch.ones(1, 1, 1, 1, dtype=dtype)
    try:
        add_convolution_(image.clone(), image, pack(image, image))
    except (AttributeError, RuntimeError, TypeError):
        return False  # the operators are not public: another PyTorch may have changed them
    return True


def pack(kernel: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return a square odd kernel (C', C, k, k) in oneDNN's order, for images (B, C, H, W) and results of their size."""
    margin = [kernel.shape[2] // 2] * 2
    packed: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        kernel, margin, [1, 1], [1, 1], 1, list(images.shape)
    )
    return packed


def convolve(images: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Return the convolution (B, C', H, W) of images (B, C, H, W) with a kernel from `pack`."""
    margin = [packed.shape[2] // 2] * 2
    found: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
        images, packed, None, margin, [1, 1], [1, 1], 1, "none", [], ""
    )
    return found


def add_convolution_(sums: torch.Tensor, images: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Add `convolve(images, packed)` to sums (B, C', H, W) in dense channels-last memory; return them."""
    margin = [packed.shape[2] // 2] * 2
    torch.ops.mkldnn._convolution_pointwise_.binary(
        sums, images, packed, None, margin, [1, 1], [1, 1], 1, "add", None, None, [], None
    )
    return sums
