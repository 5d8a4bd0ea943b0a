"""Where a network runs and in which arithmetic: device and precision."""

from __future__ import annotations

import ctypes
import platform
import sys

import torch

from har_pipeline.core.errors import ExtractionError, RunError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(choice: str = "auto") -> torch.device:
    """Return the device named `choice`; `auto` takes CUDA where there is one. Raises: ExtractionError if it is not there."""
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(choice)
    except RuntimeError as error:
        raise ExtractionError(f"unknown device {choice!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ExtractionError(f"device {choice!r} was asked for, but this machine has no usable CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ExtractionError(f"device {choice!r}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return device


def pick_precision(choice: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; `auto` takes bf16 where the device computes it natively, else fp32.

    Raises: ExtractionError if the choice is unknown, or fp16 is asked for on a CPU.
    """
    if choice == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        capability = torch.backends.cpu.get_cpu_capability()
        native = capability.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_has_bf16()
        return "bf16" if native else "fp32"
    if choice not in PRECISIONS:
        raise ExtractionError(f"unknown precision {choice!r}: use auto, fp32, bf16 or fp16")
    if choice == "fp16" and device.type == "cpu":
        raise ExtractionError("fp16 arithmetic needs a CUDA device; use fp32 or bf16 on a CPU")
    return choice


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def keep_freed_memory() -> None:
    """Let glibc reuse the large blocks that a net frees at each layer instead of returning them to the system.

    Each return costs a page fault per 4 KiB at the next layer: a quarter of VGG16's time on a CPU, a twelfth of a ConvLSTM's.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: serve every request from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink it


def resolve_device(name: str) -> torch.device:
    """Return the device `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1` ... Raises: RunError if absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:<number>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"device {name!r} is not there ({torch.cuda.device_count()} CUDA devices); use --device cpu")
    return device
