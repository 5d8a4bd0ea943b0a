"""Safetensors files of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor | np.ndarray]) -> None:
    """Write tensors of any device, or arrays, as a safetensors file with the mode that the umask gives any other file.

    The library's own `save_file` makes files that only their owner can read: runs could not be shared.
    """
    content = {
        name: value.detach().cpu().contiguous() if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in tensors.items()
    }
    path.write_bytes(save(content))
