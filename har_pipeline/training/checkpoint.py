"""Checkpoints of an unfinished training: one file, replaced atomically after each epoch; and tensor files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import new_file

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) atomically."""
    with new_file(path, sync=True) as partial, open(partial, "wb") as file:
        torch.save(dict(state), file)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return what `save_checkpoint` wrote, on the CPU; None if there is no file. Raises: RunError if it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(f"{path}: damaged ({error}); remove its folder and train again") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor | np.ndarray]) -> None:
    """Write tensors of any device, or arrays, as a safetensors file with the usual permissions.

    The library's own `save_file` writes files that only their owner can read.
    """
    content = {
        name: value.detach().cpu().contiguous() if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in tensors.items()
    }
    path.write_bytes(save(content))
