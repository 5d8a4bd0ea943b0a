"""The arithmetic of a ConvLSTM's time step in one GPU kernel each way, in Triton.

Step by step a GPU waits for the launches of some thirty small kernels, forward and backward, each of which reads and writes
all gates. Here one kernel reads the preactivations once and writes gates, cell, its tanh and the hidden state; another does
the same backward. Sums and activations are float32 whatever the type of the convolutions. Triton comes with PyTorch's builds
for CUDA; where it is absent, or with peepholes or float64, `layer` works step by step.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

# Elements of the hidden state that one program of a kernel works on.
BLOCK = 512


def usable(gates: torch.Tensor, cell: torch.Tensor, peepholes: torch.Tensor | None) -> bool:
    """Return whether `step` and `step_back` may work on these tensors."""
    return gates.is_cuda and peepholes is None and cell.dtype == torch.float32 and _kernels() is not None


def step(
    gates: torch.Tensor, inputs: torch.Tensor | None, cell: torch.Tensor, hard: bool, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn preactivations into gates in place and write h into `hidden`; return the new cell and its tanh.

    gates: (B, 4C, H, W), without the frame's contribution if `inputs`, of the same shape, is given; cell: (B, C, H, W)
    float32; hard: gates are hard sigmoids. What is written, and the cell, must be in dense channels-last memory.
    """
    _check(gates, cell, hidden)
    inputs = None if inputs is None else inputs.contiguous(memory_format=torch.channels_last)
    after = torch.empty_like(cell)
    tanh = torch.empty_like(cell, dtype=gates.dtype)
    count = cell.numel()
    forward, _ = _found_kernels()
    grid = (-(-count // BLOCK),)
    forward[grid](
        gates, gates if inputs is None else inputs, cell, after, tanh, hidden, count,
        CHANNELS=cell.shape[1], ADD=inputs is not None, HARD=hard, BLOCK=BLOCK,
    )  # fmt: skip
    return after, tanh


def step_back(
    gates: torch.Tensor,
    before: torch.Tensor,
    tanh: torch.Tensor,
    d_hidden: torch.Tensor,
    d_output: torch.Tensor | None,
    d_cell: torch.Tensor,
    hard: bool,
    d_gates: torch.Tensor,
) -> None:
    """Write the gradient of a step's preactivations into `d_gates` and turn `d_cell` into that of the cell before.

    gates, before, tanh: as `step` took and left them; d_hidden (B, C, H, W): the gradient of h from the next step, to which
    `d_output`, that of the layer's output, is added. All but these two must be in dense channels-last memory.
    """
    _check(gates, before, tanh, d_cell, d_gates)
    d_hidden = d_hidden.contiguous(memory_format=torch.channels_last)
    d_output = None if d_output is None else d_output.contiguous(memory_format=torch.channels_last)
    count = d_cell.numel()
    _, backward = _found_kernels()
    grid = (-(-count // BLOCK),)
    backward[grid](
        gates, before, tanh, d_hidden, d_hidden if d_output is None else d_output, d_cell, d_gates, count,
        CHANNELS=d_cell.shape[1], ADD=d_output is not None, HARD=hard, BLOCK=BLOCK,
    )  # fmt: skip


def _check(*tensors: torch.Tensor | None) -> None:
    """The kernels count places and channels in memory: another order would give wrong numbers without an error."""
    for tensor in tensors:
        assert tensor is None or tensor.is_contiguous(memory_format=torch.channels_last)


def _found_kernels() -> tuple[Any, Any]:
    kernels = _kernels()
    assert kernels is not None
    return kernels


@cache
def _kernels() -> tuple[Any, Any] | None:
    """Return the compiled-at-first-use kernels, forward and backward; None without Triton."""
    try:
        from har_pipeline.models.convlstm import triton_kernels
    except ImportError:
        return None
    return triton_kernels.forward, triton_kernels.backward
