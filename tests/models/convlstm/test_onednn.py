"""The recurrent convolution through oneDNN against `conv2d` and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from har_pipeline.models.convlstm import layer as layer_module
from har_pipeline.models.convlstm import onednn
from har_pipeline.models.convlstm.layer import ConvLSTM

pytestmark = pytest.mark.skipif(not onednn.usable(torch.zeros(1)), reason="no oneDNN for this CPU")
DTYPES = (torch.float32, torch.bfloat16)


def random_images(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return layer_module._in_channels_last(torch.randn(shape).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 7), (1, 3, 1, 6), (3, 8, 9, 9), (2, 33, 4, 5)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_what_is_added_and_its_gradient_are_those_of_conv2d(
    shape: tuple[int, ...], kernel_size: int, dtype: torch.dtype
) -> None:
    if not onednn.usable(torch.zeros(1, dtype=dtype)):
        pytest.skip("no bfloat16")
    torch.manual_seed(0)
    batch, channels, *size = shape
    hidden, sums = random_images(*shape, dtype=dtype), random_images(batch, 4 * channels, *size, dtype=dtype)
    kernel = layer_module._in_channels_last(0.2 * torch.randn(4 * channels, channels, kernel_size, kernel_size)).to(
        dtype
    )
    wide = hidden.float().requires_grad_()
    expected = F.conv2d(wide, kernel.float(), padding=kernel_size // 2) + sums.float()
    (wanted,) = torch.autograd.grad(expected, wide, sums.float())
    gradient = layer_module._StateGradient(kernel, sums)(sums, hidden)
    found = onednn.add_convolution_(sums, hidden, onednn.pack(kernel, hidden))
    assert found.data_ptr() == sums.data_ptr()
    # The largest sums decide: all terms of a convolution are rounded to their size.
    share = 1e-5 if dtype == torch.float32 else 0.01
    for value, right in ((found, expected.detach()), (gradient, wanted)):
        torch.testing.assert_close(value.float(), right, rtol=0, atol=share * float(1 + right.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [(1, 1), (1, 8), (3, 5)])
def test_the_layer_gives_the_same_with_conv2d(
    channels: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    layer = ConvLSTM(*channels, 3, stride=2)
    # More than a chunk of steps.
    frames = torch.randn(layer_module.CHUNK + 2, 2, channels[0], 11, 11)
    found = []
    for usable in (onednn.usable, lambda images: False):
        monkeypatch.setattr(onednn, "usable", usable)
        layer.zero_grad()
        given = frames.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs, (_, cell) = layer(given)
        (outputs.float().square().sum() + cell.sum()).backward()
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            again, _ = layer(frames)
        assert torch.equal(again, outputs)
        found.append([outputs.float(), cell, given.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= (1e-5 if dtype == torch.float32 else 0.02) * other.norm()


def test_frames_of_a_single_channel_are_convolved_in_channels_last_memory() -> None:
    # Their order in memory is also that of channels first, in which cuDNN and oneDNN then answer.
    frames, kernel = torch.rand(2, 3, 1, 9, 9), torch.rand(8, 1, 3, 3)
    given, weights = layer_module._in_channels_last(frames), layer_module._in_channels_last(kernel)
    assert torch.equal(given, frames)
    for inputs in layer_module._convolve_inputs(given, weights, torch.zeros(8), 1):
        assert inputs.is_contiguous(memory_format=torch.channels_last)
