"""Checkpoints of an unfinished training: one file, replaced atomically after each epoch; and tensor files."""

from __future__ import annotations

import hashlib
import io
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
MAGIC = b"har-pipeline checkpoint sha256:"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) atomically, behind a line with the sha256 of what follows."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    with new_file(path, sync=True) as partial, open(partial, "wb") as file:
        file.write(MAGIC + hashlib.sha256(content.getbuffer()).hexdigest().encode() + b"\n")
        file.write(content.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return what `save_checkpoint` wrote, on the CPU; None if there is no file. No pickled code is ever run.

    Raises: RunError if it is damaged. A file of an older version has no sha256 and is not compared.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if content.startswith(MAGIC):
            line, _, content = content.partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != line.removeprefix(MAGIC):
                raise ValueError("it is not what was written")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__}")
        return state
    except pickle.UnpicklingError as error:
        # The library's own text would suggest to run the code.
        raise damaged(path, "no tensors and plain values alone") from error
    except Exception as error:  # bytes that are no checkpoint can break the reader anywhere
        raise damaged(path, error) from error


def damaged(path: Path, why: object) -> RunError:
    """Return the error for a checkpoint that cannot be used, with the way out."""
    first = (str(why).splitlines() or [type(why).__name__])[0]
    return RunError(f"{path}: damaged ({first}); delete it, or give --overwrite, to train from the first epoch again")


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor | np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors of any device, or arrays, as a safetensors file with the usual permissions; metadata: in its header.

    The library's own `save_file` writes files that only their owner can read.
    """
    content = {
        name: value.detach().cpu().contiguous() if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in tensors.items()
    }
    path.write_bytes(save(content, metadata))
