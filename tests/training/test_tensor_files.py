"""Safetensors files: what comes back, and who may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from har_pipeline.training.checkpoint import write_tensors


def test_tensors_and_arrays_come_back(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    given = {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "single": torch.tensor(3),
        "array": array,
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    write_tensors(tmp_path / "file.safetensors", given)
    found = load_file(tmp_path / "file.safetensors")
    assert found["array"].dtype == torch.float64
    for name, value in given.items():
        assert torch.equal(found[name], torch.tensor(value) if isinstance(value, np.ndarray) else value)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_says_who_may_read_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "file.safetensors", {"one": torch.ones(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.safetensors").stat().st_mode) == 0o666 & ~umask
