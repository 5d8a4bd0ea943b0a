"""The device a network runs on, and its precision."""

from __future__ import annotations

import logging
import re
from functools import cache

import torch
from torch import nn

from har_pipeline.core.errors import DeviceError, UsageError

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KNOWN = "auto, cpu, cuda, cuda:N or mps"


def pick_device(choice: str = "auto") -> torch.device:
    """Return the device `cpu`, `cuda`, `cuda:N` or `mps`; `auto`: the first GPU that this PyTorch can use, else the CPU.

    Raises: UsageError if there is no such name, DeviceError if it is absent, or the installed PyTorch cannot compute on it.
    """
    if choice == "auto":
        return _first_gpu() or torch.device("cpu")
    try:
        device = torch.device(choice)
    except RuntimeError as error:
        raise UsageError(f"unknown device {choice!r}: use {KNOWN}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {choice!r}: use {KNOWN}")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(
                f"device {choice!r}: this machine has {torch.cuda.device_count()} usable CUDA devices; use cpu"
            )
        if why := _lacks_kernels(device.index or 0):
            raise DeviceError(f"device {choice!r}: {why}; use cpu, or install a PyTorch that is built for it")
    if device.type == "mps" and (why := _mps_fault()):
        raise DeviceError(f"device {choice!r}: {why}; use cpu")
    return device


def _first_gpu() -> torch.device | None:
    """Return the GPU that `auto` takes; those that are passed over are told in a line each."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if why := _lacks_kernels(index):
                _tell(f"cuda:{index} is passed over: {why}")
            else:
                return torch.device("cuda", index) if index else torch.device("cuda")
    if torch.backends.mps.is_available():
        if why := _mps_fault():
            _tell(f"mps is passed over: {why}")
        else:
            return torch.device("mps")
    return None


@cache
def _tell(text: str) -> None:
    log.warning("%s", text)


def _lacks_kernels(index: int) -> str:
    """Return why the installed PyTorch cannot compute on a CUDA device; empty if it can.

    Machine code of one architecture runs on those of the same major and no smaller minor number, PTX (`compute_`) is
    translated for all later ones; with a letter at the end both are for that very architecture.
    """
    if torch.version.hip is not None:
        return ""
    own = torch.cuda.get_device_capability(index)
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name) for name in torch.cuda.get_arch_list()]
    for match in filter(None, built):
        found = int(match[2]), int(match[3])
        exact = bool(match[4])
        if found == own or (not exact and found < own and (match[1] == "compute" or found[0] == own[0])):
            return ""
    if not any(built):
        return ""
    return (
        f"{torch.cuda.get_device_name(index)} has compute capability {own[0]}.{own[1]}, for which this PyTorch has no kernels "
        f"(it has {', '.join(torch.cuda.get_arch_list())})"
    )


@cache
def _mps_fault() -> str:
    """Return why Apple's GPU cannot be used; empty if it is there and computes what the nets consist of."""
    if not torch.backends.mps.is_available():
        return "this machine or PyTorch has no MPS"
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            device = torch.device("mps")
            nn.Conv3d(1, 1, 2).to(device)(torch.zeros(1, 1, 2, 2, 2, device=device))
            nn.functional.max_pool3d(torch.zeros(1, 1, 2, 2, 2, device=device), 2, ceil_mode=True)
            lengths = torch.tensor([2, 1])
            packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(2, 2, 3, device=device), lengths, batch_first=True)
            nn.LSTM(3, 2, batch_first=True).to(device)(packed)[1][0].cpu()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return f"an operation of the nets is missing there ({(str(error).splitlines() or [type(error).__name__])[0]})"
    return ""


def pick_precision(choice: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; `auto` takes bf16 if the device computes it natively, else fp32 (always on MPS).

    Raises: UsageError if the choice is unknown, DeviceError if it is fp16 on a CPU, or bf16 on an MPS device that lacks it.
    """
    if choice == "auto":
        if device.type == "mps":
            return "fp32"
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        capability = torch.backends.cpu.get_cpu_capability()
        native = capability.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_has_bf16()
        return "bf16" if native else "fp32"
    if choice not in PRECISIONS:
        raise UsageError(f"unknown precision {choice!r}: use auto, fp32, bf16 or fp16")
    if choice == "fp16" and device.type == "cpu":
        raise DeviceError("fp16 needs a CUDA or MPS device; use fp32 or bf16 on a CPU")
    if choice == "bf16" and device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise DeviceError("bf16 on MPS needs macOS 14 or newer; use fp32 or fp16")
    return choice


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def in_float64(values: torch.Tensor) -> torch.Tensor:
    """Return values as float64, on their device, or on the CPU if they are on MPS, which has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or `cpu` or `mps`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of a GPU in bytes; None of a device that uses the machine's own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
