from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from har_pipeline.core.errors import DeviceError, UsageError
from har_pipeline.models import device
from har_pipeline.models.device import PRECISIONS, pick_device, pick_precision

CPU = torch.device("cpu")


def test_devices_that_are_there() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("choice", ["gpu", "quantum", "meta", "xpu"])
def test_unknown_devices(choice: str) -> None:
    with pytest.raises(UsageError, match=f"unknown device '{choice}': use auto, cpu, cuda, cuda:N or mps"):
        pick_device(choice)


def test_devices_that_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="device 'cuda': this machine has 0 usable CUDA devices; use cpu"):
        pick_device("cuda")
    cards(monkeypatch, ["sm_80", "sm_90"], (8, 0), (9, 0))
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="device 'cuda:2': this machine has 2 usable CUDA devices"):
        pick_device("cuda:2")


def test_precisions() -> None:
    assert pick_precision("auto", CPU) in ("fp32", "bf16")
    assert [pick_precision(name, torch.device("cuda")) for name in PRECISIONS] == list(PRECISIONS)
    with pytest.raises(UsageError, match="unknown precision 'half': use auto, fp32, bf16 or fp16"):
        pick_precision("half", CPU)
    with pytest.raises(DeviceError, match="fp16 needs a CUDA or MPS device"):
        pick_precision("fp16", CPU)


def cards(monkeypatch: pytest.MonkeyPatch, built: list[str], *capabilities: tuple[int, int]) -> None:
    """Make a machine of GPUs of these compute capabilities, and a PyTorch built for some architectures."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.version, "hip", None)
    device._tell.cache_clear()


@pytest.mark.parametrize(
    ("built", "capability", "fits"),
    [
        (["sm_80", "sm_90"], (8, 0), True),
        (["sm_80", "sm_90"], (8, 6), True),  # machine code runs on later cards of the same generation
        (["sm_80", "sm_90"], (7, 0), False),
        (["sm_86", "sm_90"], (8, 0), False),
        (["sm_80", "sm_90"], (10, 0), False),
        (["sm_80", "compute_90"], (12, 0), True),  # PTX is translated for all later ones
        (["sm_80", "compute_90"], (7, 5), False),
        (["sm_80", "sm_90a"], (9, 0), True),
        (["sm_90a", "compute_90a"], (10, 0), False),
        (["sm_100", "sm_120"], (12, 0), True),
        (["sm_100", "sm_120"], (12, 1), True),
        (["sm_100"], (9, 0), False),
        (["gfx90a"], (9, 0), True),  # what we cannot read is not refused
        ([], (9, 0), True),
    ],
)
def test_a_gpu_without_kernels_is_refused_by_name_and_passed_over_by_auto(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    built: list[str],
    capability: tuple[int, int],
    fits: bool,
) -> None:
    cards(monkeypatch, built, capability)
    if fits:
        assert pick_device() == pick_device("cuda") == torch.device("cuda")
        assert not caplog.records
        return
    major, minor = capability
    with pytest.raises(
        DeviceError, match=rf"device 'cuda:0': Card 0 has compute capability {major}\.{minor}, .*no kernels.*use cpu"
    ):
        pick_device("cuda:0")
    assert [pick_device(), pick_device()] == [CPU, CPU]
    (line,) = caplog.messages
    assert line.startswith("cuda:0 is passed over: Card 0 has compute capability")


def test_auto_takes_the_first_gpu_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, ["sm_80", "sm_90"], (6, 1), (9, 0))
    assert pick_device() == torch.device("cuda", 1)


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose MPS is there: its tensors are on the CPU, of which the check asks for nothing else."""
    cards(monkeypatch, [])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    own = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **options: own(*size, **{**options, "device": None}))
    monkeypatch.setattr(nn.Module, "to", lambda self, *_: self)
    device._mps_fault.cache_clear()
    yield
    device._mps_fault.cache_clear()


def test_mps_is_taken_where_it_is(apple: None) -> None:
    assert pick_device() == pick_device("mps") == torch.device("mps")


@pytest.mark.parametrize("name", ["Conv3d", "LSTM"])
def test_mps_without_an_operation_of_the_nets(
    apple: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def missing(*_: object) -> None:
        raise NotImplementedError(f"{name} is not implemented for MPS\nmore")

    monkeypatch.setattr(getattr(nn, name), "forward", missing)
    assert pick_device() == CPU
    assert caplog.messages == [
        f"mps is passed over: an operation of the nets is missing there ({name} is not implemented for MPS)"
    ]
    with pytest.raises(DeviceError, match=r"device 'mps': an operation of the nets is missing there .*; use cpu"):
        pick_device("mps")


def test_mps_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device._mps_fault.cache_clear()
    with pytest.raises(DeviceError, match="device 'mps': this machine or PyTorch has no MPS; use cpu"):
        pick_device("mps")
    device._mps_fault.cache_clear()


def test_precisions_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    mps = torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 13)
    assert [pick_precision(name, mps) for name in ("auto", "fp32", "fp16")] == ["fp32", "fp32", "fp16"]
    with pytest.raises(DeviceError, match="bf16 on MPS needs macOS 14"):
        pick_precision("bf16", mps)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)
    assert pick_precision("bf16", mps) == "bf16"
