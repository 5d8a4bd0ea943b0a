from __future__ import annotations

import pytest
import torch

from har_pipeline.core.errors import DeviceError
from har_pipeline.models.device import PRECISIONS, pick_device, pick_precision

CPU = torch.device("cpu")


def test_devices_that_are_there() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("choice", ["gpu", "quantum"])
def test_unknown_devices(choice: str) -> None:
    with pytest.raises(DeviceError, match=f"unknown device '{choice}': use auto, cpu, cuda or cuda:N"):
        pick_device(choice)


def test_devices_that_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="device 'cuda': this machine has 0 usable CUDA devices; use cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="device 'cuda:2': this machine has 2 usable CUDA devices"):
        pick_device("cuda:2")


def test_precisions() -> None:
    assert pick_precision("auto", CPU) in ("fp32", "bf16")
    assert [pick_precision(name, torch.device("cuda")) for name in PRECISIONS] == list(PRECISIONS)
    with pytest.raises(DeviceError, match="unknown precision 'half': use auto, fp32, bf16 or fp16"):
        pick_precision("half", CPU)
    with pytest.raises(DeviceError, match="fp16 needs a CUDA device"):
        pick_precision("fp16", CPU)
