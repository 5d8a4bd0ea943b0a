"""The device a network runs on, and its precision."""

from __future__ import annotations

import ctypes
import platform
import sys

import torch

from har_pipeline.core.errors import DeviceError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(choice: str = "auto") -> torch.device:
    """Return the device `auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`. Raises: DeviceError if it is absent."""
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(choice)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {choice!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {choice!r}: this machine has {torch.cuda.device_count()} usable CUDA devices; use cpu"
        )
    return device


def pick_precision(choice: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; `auto` takes bf16 if the device computes it natively, else fp32.

    Raises: DeviceError if the choice is unknown, or fp16 on a CPU.
    """
    if choice == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        capability = torch.backends.cpu.get_cpu_capability()
        native = capability.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_has_bf16()
        return "bf16" if native else "fp32"
    if choice not in PRECISIONS:
        raise DeviceError(f"unknown precision {choice!r}: use auto, fp32, bf16 or fp16")
    if choice == "fp16" and device.type == "cpu":
        raise DeviceError("fp16 needs a CUDA device; use fp32 or bf16 on a CPU")
    return choice


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for this process's next allocations.

    A block given back to the system costs a page fault per 4 KiB when the next layer asks for one: a quarter of VGG16's
    time on a CPU, a twelfth of a ConvLSTM's.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: serve every request from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink it
