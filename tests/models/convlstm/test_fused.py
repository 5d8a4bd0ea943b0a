"""The Triton kernels against the same arithmetic step by step: on a GPU, or anywhere in Triton's interpreter.

TRITON_INTERPRET=1 pytest tests/models/convlstm/test_fused.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from har_pipeline.models.convlstm import fused, layer
from har_pipeline.models.convlstm.layer import ConvLSTM

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
pytestmark = [
    pytest.mark.needs_cuda,
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no CUDA device"),
    pytest.mark.skipif(fused._kernels() is None, reason="no Triton"),
]


@pytest.fixture(params=["sigmoid", "hard-sigmoid"])
def gates(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the kernels work on the CPU too; full float32 in the convolutions of a GPU."""
    if DEVICE == "cpu":
        monkeypatch.setattr(fused, "usable", lambda gates, cell, peepholes: peepholes is None)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def random_images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 8, 29, 29)])
def test_a_step_and_back_equal_those_of_plain_tensors(shape: tuple[int, ...], dtype: torch.dtype, gates: str) -> None:
    torch.manual_seed(0)
    hard, four = gates == "hard-sigmoid", (shape[0], 4 * shape[1], *shape[2:])
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    preactivations, inputs = random_images(*four, dtype=dtype), random_images(*four, dtype=dtype)
    cell = random_images(*shape)
    plain_gates = preactivations + inputs
    plain_hidden = torch.full_like(cell, torch.nan, dtype=dtype)
    plain_cell, plain_tanh = layer._step_(plain_gates, cell, None, hard, plain_hidden)
    hidden = torch.full_like(plain_hidden, torch.nan)
    new_cell, tanh = fused.step(preactivations, inputs, cell, hard, hidden)
    for found, expected in ((preactivations, plain_gates), (new_cell, plain_cell), (tanh, plain_tanh)):
        torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(hidden, plain_hidden, **tolerance)

    d_hidden, d_output = random_images(*shape, dtype=dtype), random_images(*shape, dtype=dtype)
    d_cell, plain_d_gates = random_images(*shape), torch.full_like(plain_gates, torch.nan)
    plain_d_cell, d_gates = d_cell.clone(), torch.full_like(plain_gates, torch.nan)
    known = (plain_gates, cell, plain_tanh)
    layer._step_back_(*known, d_hidden + d_output, plain_d_cell, hard, plain_d_gates, None)
    fused.step_back(*known, d_hidden, d_output, d_cell, hard, d_gates)
    torch.testing.assert_close(d_gates, plain_d_gates, **tolerance)
    torch.testing.assert_close(d_cell, plain_d_cell, **tolerance)


def test_what_is_not_a_number_stays_so(gates: str) -> None:
    preactivations, cell = random_images(1, 8, 3, 3), random_images(1, 2, 3, 3)
    preactivations[0, 0, 1, 1] = torch.nan
    hidden = torch.zeros_like(cell)
    new_cell, _ = fused.step(preactivations, None, cell, gates == "hard-sigmoid", hidden)
    for found in (new_cell, hidden):
        assert torch.isnan(found).nonzero().tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("channels", [(2, 3), (1, 1)])
def test_the_layer_gives_the_same_in_one_kernel_and_step_by_step(
    channels: tuple[int, int], sequences: bool, given: bool, gates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    seen, hidden = channels
    module = ConvLSTM(*channels, 3, stride=2, return_sequences=sequences, gates=gates).to(DEVICE)  # type: ignore[arg-type]
    frames = torch.randn(10, 2, seen, 9, 9, device=DEVICE)
    # Not in channels-last memory.
    shape = (2, hidden, 4, 4)
    state = (torch.randn(shape, device=DEVICE), torch.randn(shape, device=DEVICE)) if given else None

    def run() -> list[torch.Tensor]:
        module.zero_grad()
        given_frames = frames.clone().requires_grad_()
        outputs, (hidden, cell) = module(given_frames, state)
        (outputs.square().sum() + hidden.sum() + (2 * cell).sum()).backward()
        with torch.no_grad():
            inferred, _ = module(frames, state)
        assert given_frames.grad is not None
        return [
            outputs,
            hidden,
            cell,
            inferred,
            given_frames.grad,
            *(p.grad for p in module.parameters() if p.grad is not None),
        ]

    found = run()
    monkeypatch.setattr(fused, "usable", lambda gates, cell, peepholes: False)
    for one, plain in zip(found, run(), strict=True):
        torch.testing.assert_close(one, plain, atol=1e-4, rtol=1e-4)
