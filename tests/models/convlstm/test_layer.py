from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from har_pipeline.models.convlstm.layer import ConvLSTM, State

STEPS = 8
GATES = ("sigmoid", "hard-sigmoid")
# What Keras 3 is told to do; its own hard sigmoid has another slope.
KERAS_2 = {"sigmoid": "sigmoid", "hard-sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1)}
# in_channels, hidden_channels, kernel, stride, padding, size: every ConvLSTM of tables 1 and 2, and what they leave out.
TABLE_LAYERS = (
    (1, 8, 7, 2, "valid", 64),
    (8, 16, 5, 2, "valid", 29),
    (1, 32, 3, 1, "same", 64),
    (32, 32, 3, 2, "valid", 64),
    (32, 128, 3, 1, "same", 31),
    (128, 256, 3, 2, "valid", 31),
    (32, 64, 3, 2, "valid", 64),
    (64, 128, 3, 1, "same", 31),
)
OTHER_LAYERS = (
    (3, 4, 3, 2, "same", 16),
    (3, 4, 3, 2, "same", 15),
    (2, 4, 5, 2, "same", 14),
    (2, 4, 3, 1, "valid", 9),
)


def random_state(layer: ConvLSTM, batch: int, size: int, dtype: torch.dtype = torch.float32) -> State:
    shape = (batch, layer.hidden_channels, *layer.output_size(size, size))
    return torch.randn(shape, dtype=dtype) * 0.5, torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("case", TABLE_LAYERS + OTHER_LAYERS)
def test_equals_keras(case: tuple[int, int, int, int, str, int], gates: str) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    in_channels, hidden, kernel, stride, padding, size = case
    torch.manual_seed(sum(case[:4]))
    ours = ConvLSTM(in_channels, hidden, kernel, stride=stride, padding=padding, gates=gates)  # type: ignore[arg-type]
    nn.init.normal_(ours.bias, std=0.3)
    frames = torch.rand(STEPS, 2, in_channels, size, size)
    state = random_state(ours, 2, size)
    theirs: Any = keras.layers.ConvLSTM2D(
        hidden,
        kernel,
        strides=stride,
        padding=padding,
        recurrent_activation=KERAS_2[gates],
        return_sequences=True,
        return_state=True,
        data_format="channels_last",
    )
    given_ = frames.permute(1, 0, 3, 4, 2).contiguous()
    theirs.build(given_.shape)
    kernels = (ours.input_kernel, ours.recurrent_kernel)
    theirs.set_weights([*(k.detach().permute(2, 3, 1, 0).numpy() for k in kernels), ours.bias.detach().numpy()])
    with torch.no_grad():
        expected = theirs(given_, initial_state=[part.permute(0, 2, 3, 1) for part in state])
        outputs, last = ours(frames, state)
    expected = [part.detach().cpu().numpy() for part in expected]
    np.testing.assert_allclose(outputs.permute(1, 0, 3, 4, 2).numpy(), expected[0], atol=1e-4, rtol=0)
    np.testing.assert_allclose(last[0].permute(0, 2, 3, 1).numpy(), expected[1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(last[1].permute(0, 2, 3, 1).numpy(), expected[2], atol=1e-4, rtol=0)


def test_one_pixel_is_an_lstm() -> None:
    torch.manual_seed(0)
    layer, lstm = ConvLSTM(5, 7, 1).double(), nn.LSTM(5, 7).double()
    lstm.load_state_dict(
        {
            "weight_ih_l0": layer.input_kernel[..., 0, 0],
            "weight_hh_l0": layer.recurrent_kernel[..., 0, 0],
            "bias_ih_l0": layer.bias,
            "bias_hh_l0": torch.zeros(28),
        }
    )
    frames = torch.randn(6, 3, 5, dtype=torch.double)
    before = torch.randn(2, 1, 3, 7, dtype=torch.double)
    expected, (hidden, cell) = lstm(frames, (before[0], before[1]))
    images, (last, last_cell) = layer(
        frames[..., None, None], (before[0, 0, ..., None, None], before[1, 0, ..., None, None])
    )
    torch.testing.assert_close(images[..., 0, 0], expected)
    torch.testing.assert_close(last[..., 0, 0], hidden[0])
    torch.testing.assert_close(last_cell[..., 0, 0], cell[0])


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_finite_differences(gates: str, peepholes: bool, stride: int) -> None:
    torch.manual_seed(1)
    # Each value takes two forward passes: no more of them than have a 3x3 state.
    side = {1: 5, 2: 7}[stride]
    layer = ConvLSTM(2, 3, 3, stride=stride, gates=gates, peephole_size=(3, 3) if peepholes else None)  # type: ignore[arg-type]
    layer.double()
    if layer.peepholes is not None:
        nn.init.normal_(layer.peepholes)
    frames = torch.randn(3, 2, 2, side, side, dtype=torch.double, requires_grad=True)
    hidden, cell = (part.requires_grad_() for part in random_state(layer, 2, side, torch.double))

    def run(
        frames: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor, *_: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        outputs, (last, last_cell) = layer(frames, (hidden, cell))
        return outputs, last, last_cell

    assert torch.autograd.gradcheck(run, (frames, hidden, cell, *layer.parameters()))


def slow_steps(layer: ConvLSTM, frames: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    """Equation 3 of Shi 2015 step by step, through autograd alone."""
    hidden, cell = state
    gate = torch.sigmoid if layer.gates == "sigmoid" else lambda x: (0.2 * x + 0.5).clamp(0, 1)
    outputs = []
    for frame in frames:
        one = nn.functional.conv2d(frame, layer.input_kernel, layer.bias, layer.stride)
        one = one + nn.functional.conv2d(hidden, layer.recurrent_kernel, padding=layer.recurrent_kernel.shape[2] // 2)
        i, f, g, o = one.chunk(4, 1)
        if layer.peepholes is not None:
            i, f = i + layer.peepholes[0] * cell, f + layer.peepholes[1] * cell
        cell = gate(f) * cell + gate(i) * g.tanh()
        if layer.peepholes is not None:
            o = o + layer.peepholes[2] * cell
        hidden = gate(o) * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs), (hidden, cell)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("peepholes", [False, True])
def test_equals_steps_through_autograd(gates: str, peepholes: bool) -> None:
    torch.manual_seed(2)
    layer = ConvLSTM(3, 8, 3, stride=2, gates=gates, peephole_size=(5, 5) if peepholes else None)  # type: ignore[arg-type]
    nn.init.normal_(layer.bias, std=1.5)  # some hard gates are at 0 and at 1
    if layer.peepholes is not None:
        nn.init.normal_(layer.peepholes)
    frames = torch.randn(6, 2, 3, 11, 11)
    state = random_state(layer, 2, 11)
    weights = torch.randn(6, 2, 8, 5, 5)
    found = []
    for run in (layer, lambda frames, state: slow_steps(layer, frames, state)):
        layer.zero_grad()
        outputs, (_, cell) = run(frames, state)
        ((outputs * weights).sum() + cell.square().sum()).backward()
        gradients = [parameter.grad for parameter in layer.parameters()]
        found.append([outputs, cell, *(gradient.clone() for gradient in gradients if gradient is not None)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(steps=st.integers(2, 6), cut=st.integers(1, 5), peepholes=st.booleans(), seed=st.integers(0, 99))
def test_a_cut_video_with_carried_state_is_the_whole_one(steps: int, cut: int, peepholes: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = ConvLSTM(1, 4, 3, padding="same", peephole_size=(6, 6) if peepholes else None).double()
    frames = torch.randn(steps + cut, 2, 1, 6, 6, dtype=torch.double)
    whole, (hidden, cell) = layer(frames)
    first, state = layer(frames[:cut])
    second, (last, last_cell) = layer(frames[cut:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, hidden)
    torch.testing.assert_close(last_cell, cell)
    # Gradients go through the cut unless the state is detached there.
    target = torch.randn_like(whole)
    wanted = torch.autograd.grad((whole * target).sum(), layer.recurrent_kernel)[0]
    through = torch.autograd.grad((torch.cat([first, second]) * target).sum(), layer.recurrent_kernel)[0]
    torch.testing.assert_close(through, wanted)


def test_a_detached_state_ends_the_gradient() -> None:
    layer = ConvLSTM(1, 2, 3, padding="same")
    frames = torch.randn(2, 1, 1, 5, 5, requires_grad=True)
    _, (hidden, cell) = layer(frames)
    outputs, _ = layer(torch.randn(2, 1, 1, 5, 5), (hidden.detach(), cell.detach()))
    outputs.sum().backward()
    assert frames.grad is None


@pytest.mark.parametrize("return_sequences", [False, True])
def test_inference_is_bit_equal_to_training(return_sequences: bool) -> None:
    layer = ConvLSTM(1, 8, 3, stride=2, return_sequences=return_sequences)
    frames = torch.randn(4, 2, 1, 17, 17)
    outputs, state = layer(frames)
    with torch.no_grad():
        again, last = layer(frames)
    assert outputs.shape == ((4, 2, 8, 8, 8) if return_sequences else (2, 8, 8, 8))
    assert torch.equal(outputs, again)
    assert torch.equal(state[0], last[0])
    assert torch.equal(state[1], last[1])


def test_videos_of_a_batch_do_not_touch() -> None:
    layer = ConvLSTM(1, 4, 3, padding="same").double()
    frames = torch.randn(5, 3, 1, 8, 8, dtype=torch.double)
    state = random_state(layer, 3, 8, torch.double)
    together, _ = layer(frames, state)
    for lane in range(3):
        alone, _ = layer(frames[:, lane : lane + 1], (state[0][lane : lane + 1], state[1][lane : lane + 1]))
        torch.testing.assert_close(together[:, lane], alone[:, 0])


def test_what_is_saved_notices_an_output_that_was_overwritten() -> None:
    layer = ConvLSTM(1, 2, 3, padding="same")
    outputs, (_, cell) = layer(torch.randn(3, 1, 1, 5, 5))
    loss = outputs.sum() + cell.sum()
    with torch.no_grad():
        outputs.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_bfloat16_is_near_float32_and_keeps_the_cell_exact() -> None:
    torch.manual_seed(3)
    layer = ConvLSTM(1, 16, 3, padding="same")
    frames = torch.rand(30, 2, 1, 16, 16)
    found = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs, (_, cell) = layer(frames)
        outputs.float().square().mean().backward()
        assert cell.dtype == torch.float32
        assert outputs.dtype == (torch.bfloat16 if enabled else torch.float32)
        found.append((outputs.float(), cell, layer.recurrent_kernel.grad.clone()))  # type: ignore[union-attr]
    for exact, rounded in zip(*found, strict=True):
        assert (exact - rounded).norm() < 0.02 * exact.norm()


def test_initial_values() -> None:
    torch.manual_seed(4)
    layer = ConvLSTM(3, 8, 3, peephole_size=(2, 2))
    assert torch.equal(layer.bias.detach(), torch.tensor([0.0] * 8 + [1.0] * 8 + [0.0] * 16))
    matrix = layer.recurrent_kernel.detach().reshape(32, -1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(32), atol=1e-5, rtol=0)
    limit = (6 / (3 * 9 + 32 * 9)) ** 0.5
    assert 0.9 * limit < float(layer.input_kernel.detach().abs().max()) <= limit
    assert layer.peepholes is not None
    assert not layer.peepholes.any()


@pytest.mark.parametrize("gates", GATES)
def test_cells_remember_from_the_start_on_for_as_long_as_they_were_told(gates: str) -> None:
    torch.manual_seed(0)
    layer = ConvLSTM(1, 200, kernel_size=3, padding="same", gates=gates)  # type: ignore[arg-type]
    layer.remember(208)
    in_gate, forget, rest = layer.bias.detach().split([200, 200, 400])
    assert torch.equal(in_gate, -forget)
    assert not rest.any()
    # From a gate of 1 - 1 / t.
    lasts = (
        1 + forget.exp() if gates == "sigmoid" else 1 / (0.5 - 0.2 * forget)
    )  # steps until a resting gate has let 1 / e go, or nearly so
    assert (lasts.min() >= 2, lasts.max() <= 208, 80 < lasts.mean() < 130) == (True, True, True)
    # Nothing comes in: the cell falls as its gate says.
    for kernel in (layer.input_kernel, layer.recurrent_kernel):
        torch.nn.init.zeros_(kernel)
    state = (torch.zeros(1, 200, 1, 1), torch.ones(1, 200, 1, 1))
    with torch.no_grad():
        _, (_, cell) = layer(torch.zeros(30, 1, 1, 1, 1), state)
    torch.testing.assert_close(cell.flatten(), (1 - 1 / lasts) ** 30, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 steps"):
        layer.remember(1)


def test_wrong_shapes_and_options() -> None:
    layer = ConvLSTM(1, 2, 3)
    with pytest.raises(ValueError, match=r"state is \(2, 2, 6, 6\), but these frames need \(1, 2, 6, 6\)"):
        layer(torch.zeros(2, 1, 1, 8, 8), (torch.zeros(2, 2, 6, 6), torch.zeros(2, 2, 6, 6)))
    with pytest.raises(ValueError, match="odd"):
        ConvLSTM(1, 2, 4)
    with pytest.raises(ValueError, match="valid or same"):
        ConvLSTM(1, 2, 3, padding="full")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gates sigmoid or hard-sigmoid, not same, hard_sigmoid"):
        ConvLSTM(1, 2, 3, padding="same", gates="hard_sigmoid")  # type: ignore[arg-type]
