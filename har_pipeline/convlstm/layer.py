"""The ConvLSTM layer, with its backward pass through time written out.

What makes it fast: the input convolutions of all time steps are one call, each step adds one recurrent convolution and
gate arithmetic on whole tensors in channels-last memory, and going back needs one weight gradient for all steps instead
of one per step. The memory cell c is kept in float32 whatever the arithmetic of the convolutions, since it sums over
hundreds of steps in stateful use, where bfloat16's 8 bits would lose what a step adds.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

Gate = Literal["sigmoid", "hard_sigmoid"]
Padding = Literal["valid", "same"]
State = tuple[torch.Tensor, torch.Tensor]


class ConvLSTM(nn.Module):
    """Shi et al.'s convolutional LSTM: gates from a convolution of the input plus one of the last hidden state.

    i, f, o = gate(W_x * x_t + W_h * h_(t-1) + b), g = tanh(the same), c_t = f c_(t-1) + i g, h_t = o tanh(c_t), with
    own kernels for each; channels of the kernels in the order i, f, g, o. kernel_size, stride, padding: of the input
    convolution (`same`: as TensorFlow pads, one more behind than before where it cannot be even); the recurrent one has
    kernel recurrent_kernel_size (default kernel_size; odd), stride 1, and keeps the size. gate: `sigmoid`, or
    `hard_sigmoid` = relu6(x + 3) / 6. peephole_size: (H', W') of the hidden state to have Shi's peepholes, W_c o c, one
    weight per place and channel; None, the default and Keras's layer, has none. return_sequences: give h of all steps,
    or of the last one only.

    Initial values as Keras: Glorot-uniform input kernels, orthogonal recurrent ones, biases 0 but the forget gate's 1,
    so that a cell starts by remembering; peepholes 0.
    Source: Shi 2015 (arXiv 1506.04214), equation 3.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding = "valid",
        recurrent_kernel_size: int | None = None,
        gate: Gate = "sigmoid",
        peephole_size: tuple[int, int] | None = None,
        return_sequences: bool = True,
    ) -> None:
        super().__init__()
        recurrent_kernel_size = recurrent_kernel_size or kernel_size
        if recurrent_kernel_size % 2 == 0:
            raise ValueError(f"the recurrent kernel must be odd to keep the size, not {recurrent_kernel_size}")
        if padding not in ("valid", "same") or gate not in ("sigmoid", "hard_sigmoid"):
            raise ValueError(f"padding is valid or same and gate sigmoid or hard_sigmoid, not {padding}, {gate}")
        self.hidden_channels, self.stride, self.padding, self.gate = hidden_channels, stride, padding, gate
        self.return_sequences = return_sequences
        shape = (4 * hidden_channels, in_channels, kernel_size, kernel_size)
        self.input_kernel = nn.Parameter(torch.empty(shape))
        shape = (4 * hidden_channels, hidden_channels, recurrent_kernel_size, recurrent_kernel_size)
        self.recurrent_kernel = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(4 * hidden_channels))
        size = (3, hidden_channels, *peephole_size) if peephole_size else None
        self.peepholes = nn.Parameter(torch.zeros(size)) if size else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        hidden = self.hidden_channels
        nn.init.xavier_uniform_(self.input_kernel)
        # As Keras sees the kernel: a matrix with a row for each place and input channel, a column for each gate channel.
        rows = self.recurrent_kernel[0].numel()
        matrix = nn.init.orthogonal_(torch.empty(rows, 4 * hidden))
        with torch.no_grad():
            self.recurrent_kernel.copy_(matrix.T.reshape(self.recurrent_kernel.shape))
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.bias[hidden : 2 * hidden].detach())

    def extra_repr(self) -> str:
        """Return what stands in the module's printed form."""
        inputs, kernel = self.input_kernel.shape[1], self.input_kernel.shape[2]
        return f"{inputs}, {self.hidden_channels}, kernel_size={kernel}, stride={self.stride}, padding={self.padding}"

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H', W') of the hidden state for frames of (H, W)."""
        kernel = self.input_kernel.shape[2]
        lost = 0 if self.padding == "same" else kernel - 1
        return (height - lost + self.stride - 1) // self.stride, (width - lost + self.stride - 1) // self.stride

    def forward(self, frames: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """Return h and the last state (h, c) for frames (T, B, C, H, W), time first as in `torch.nn.LSTM`.

        h: (T, B, hidden_channels, H', W'), or without return_sequences (B, hidden_channels, H', W'). state: (h, c) to go
        on from, each (B, hidden_channels, H', W'), c in float32 or float64; None = zeros. The returned state is
        differentiable; detach it to cut training off from the steps before. Under autocast, or with weights in
        bfloat16, convolutions and h are in that type.
        """
        steps, batch = frames.shape[:2]
        inputs = _convolve(frames.flatten(0, 1), self.input_kernel, self.bias, self.stride, self.padding)
        # Autocast does not reach into a hand-written function.
        kernel = self.recurrent_kernel.to(inputs.dtype).contiguous(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        shape = (batch, self.hidden_channels, *inputs.shape[2:])
        cell_dtype = torch.promote_types(inputs.dtype, torch.float32)
        if state is None:
            hidden, cell = inputs.new_zeros(shape), inputs.new_zeros(shape, dtype=cell_dtype)
        else:
            if state[0].shape != shape:
                raise ValueError(f"the state is {tuple(state[0].shape)}, but these frames need {shape}")
            hidden, cell = state[0].to(inputs.dtype), state[1].to(cell_dtype)
        peepholes = self.peepholes.to(cell_dtype) if self.peepholes is not None else None
        args = (inputs.unflatten(0, (steps, batch)), hidden, cell, kernel, peepholes, self.gate == "hard_sigmoid")
        with torch.autocast(inputs.device.type, enabled=False):
            if torch.is_grad_enabled():
                outputs, last, cell = _Recurrence.apply(*args)  # type: ignore[no-untyped-call]
            else:
                outputs, cell = _infer(*args, keep=self.return_sequences)
                last = outputs[-1]
        return (outputs if self.return_sequences else last), (last, cell)


def _convolve(
    frames: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, stride: int, padding: Padding
) -> torch.Tensor:
    if padding == "same":
        size = kernel.shape[2]
        lost = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in frames.shape[2:]]
        (top, left), (bottom, right) = [n // 2 for n in lost], [n - n // 2 for n in lost]
        frames = F.pad(frames, (left, right, top, bottom))
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return F.conv2d(frames.contiguous(memory_format=torch.channels_last), kernel, bias, stride)


def _tanh(values: torch.Tensor) -> torch.Tensor:
    # On CPUs torch's sigmoid takes a seventh of the time of its tanh (measured, AVX-512); the error is 1e-7 absolute.
    if values.dtype == torch.float32:
        return torch.sigmoid(values * 2).mul_(2).sub_(1)
    return torch.tanh(values)


def _squash(values: torch.Tensor, hard: bool) -> torch.Tensor:
    return F.hardsigmoid(values) if hard else torch.sigmoid(values)


def _slope(gate: torch.Tensor, hard: bool) -> torch.Tensor:
    """The derivative of the gate activation, from its value."""
    return ((gate > 0) & (gate < 1)).to(gate.dtype) / 6 if hard else gate * (1 - gate)


def _step(
    preactivation: torch.Tensor, cell: torch.Tensor, peepholes: torch.Tensor | None, hard: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return gates (B, 4C, H, W) in the type of the preactivation, h in the same, and the new cell."""
    channels = cell.shape[1]
    if peepholes is not None:
        preactivation[:, :channels] += peepholes[0] * cell
        preactivation[:, channels : 2 * channels] += peepholes[1] * cell
    gates = torch.empty_like(preactivation)
    gates[:, : 2 * channels] = _squash(preactivation[:, : 2 * channels], hard)
    gates[:, 2 * channels : 3 * channels] = _tanh(preactivation[:, 2 * channels : 3 * channels])
    cell = gates[:, channels : 2 * channels] * cell
    cell += gates[:, :channels] * gates[:, 2 * channels : 3 * channels]
    output = preactivation[:, 3 * channels :]
    if peepholes is not None:
        output += peepholes[2] * cell
    gates[:, 3 * channels :] = _squash(output, hard)
    return gates, (gates[:, 3 * channels :] * _tanh(cell)).to(gates.dtype), cell


def _recur(hidden: torch.Tensor, kernel: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return F.conv2d(hidden, kernel, padding=kernel.shape[2] // 2).add_(inputs)


def _channels_last(*shape: int, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an uninitialised (..., C, H, W) tensor whose images lie in channels-last order."""
    *first, channels, height, width = shape
    return like.new_empty((*first, height, width, channels), dtype=dtype).movedim(-1, -3)


def _infer(
    inputs: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    kernel: torch.Tensor,
    peepholes: torch.Tensor | None,
    hard: bool,
    *,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return h of all steps, or only of the last as a sequence of one, and the last cell; keeps nothing to go back."""
    outputs = _channels_last(len(inputs) if keep else 1, *hidden.shape, like=inputs)
    for step, given in enumerate(inputs):
        _, hidden, cell = _step(_recur(hidden, kernel, given), cell, peepholes, hard)
        if keep:
            outputs[step] = hidden
    if not keep:
        outputs[0] = hidden
    return outputs, cell


class _Recurrence(torch.autograd.Function):
    """The steps of a ConvLSTM over inputs (T, B, 4C, H, W), already convolved."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        hidden: torch.Tensor,
        cell: torch.Tensor,
        kernel: torch.Tensor,
        peepholes: torch.Tensor | None,
        hard: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        steps = len(inputs)
        hiddens = _channels_last(steps + 1, *hidden.shape, like=inputs)
        cells = _channels_last(steps + 1, *cell.shape, like=inputs, dtype=cell.dtype)
        gates = _channels_last(*inputs.shape, like=inputs)
        hiddens[0], cells[0] = hidden, cell
        for t in range(steps):
            gates[t], hiddens[t + 1], cells[t + 1] = _step(
                _recur(hiddens[t], kernel, inputs[t]), cells[t], peepholes, hard
            )
        ctx.save_for_backward(hiddens, cells, gates, kernel, peepholes)
        ctx.hard = hard
        ctx.set_materialize_grads(False)
        # Copies, since what is saved must not be an output's memory: a caller may write into that.
        return hiddens[1:].clone(), hiddens[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, d_outputs: torch.Tensor | None, d_last: torch.Tensor | None, d_cell: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        hiddens, cells, gates, kernel, peepholes = ctx.saved_tensors
        d_inputs = _channels_last(*gates.shape, like=gates)
        d_hidden = d_last if d_last is not None else torch.zeros_like(hiddens[0])
        d_cell = d_cell if d_cell is not None else torch.zeros_like(cells[0])
        d_peepholes = torch.zeros_like(peepholes) if peepholes is not None else None
        for t in reversed(range(len(gates))):
            if d_outputs is not None:
                d_hidden = d_hidden + d_outputs[t]
            d_cell = _step_back(
                gates[t], cells[t], cells[t + 1], d_hidden, d_cell, peepholes, ctx.hard, d_inputs[t], d_peepholes
            )
            d_hidden = _convolution_gradients(d_inputs[t], hiddens[t], kernel, True, False)[0]
        d_kernel = _convolution_gradients(
            d_inputs.flatten(0, 1), hiddens[:-1].flatten(0, 1), kernel, False, ctx.needs_input_grad[3]
        )[1]
        return d_inputs, d_hidden, d_cell, d_kernel, d_peepholes, None


def _step_back(
    gates: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    d_hidden: torch.Tensor,
    d_cell: torch.Tensor,
    peepholes: torch.Tensor | None,
    hard: bool,
    d_inputs: torch.Tensor,
    d_peepholes: torch.Tensor | None,
) -> torch.Tensor:
    """Write the gradient of a step's preactivation into `d_inputs`, add that of the peepholes, return that of the cell."""
    in_gate, forget, candidate, out_gate = gates.chunk(4, 1)
    d_in, d_forget, d_candidate, d_out = d_inputs.chunk(4, 1)
    tanh_cell = _tanh(after)
    d_out.copy_(d_hidden * tanh_cell * _slope(out_gate, hard))
    d_cell = d_cell + d_hidden * out_gate * (1 - tanh_cell * tanh_cell)
    if peepholes is not None:
        d_cell += peepholes[2] * d_out
    d_in.copy_(d_cell * candidate * _slope(in_gate, hard))
    d_forget.copy_(d_cell * before * _slope(forget, hard))
    d_candidate.copy_(d_cell * in_gate * (1 - candidate * candidate))
    d_cell = d_cell * forget
    if peepholes is not None and d_peepholes is not None:
        d_cell += peepholes[0] * d_in + peepholes[1] * d_forget
        d_peepholes += torch.stack([(d_in * before).sum(0), (d_forget * before).sum(0), (d_out * after).sum(0)])
    return d_cell


def _convolution_gradients(
    gradient: torch.Tensor, inputs: torch.Tensor, kernel: torch.Tensor, of_inputs: bool, of_kernel: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    margin = [kernel.shape[2] // 2] * 2
    found = torch.ops.aten.convolution_backward(
        gradient, inputs, kernel, None, [1, 1], margin, [1, 1], False, [0, 0], 1, [of_inputs, of_kernel, False]
    )
    return found[0], found[1]
