"""The ConvLSTM layer, with its backward pass through time written out.

What makes it fast: gate arithmetic on whole tensors, in place and in channels-last memory; no autograd graph, and only
gates, cells and their tanh are kept; input convolutions and all weight gradients of `CHUNK` time steps in one call (on a
CPU up to a tenth faster than one call per step, with 8 steps and batches of 6; not measured on a GPU). On a CPU the state's
convolution adds to the frame's by itself, see `onednn`; on a GPU with Triton the arithmetic of a step is one kernel, see
`fused`. Gate arithmetic in blocks of a batch that stay in the cache was tried on a CPU and is no faster in training.

The memory cell c is float32 whatever the precision of the convolutions: in stateful use it sums over hundreds of steps,
and bfloat16's 8 bits would lose what a step adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from har_pipeline.models.config import Gates
from har_pipeline.models.convlstm import fused, onednn
from har_pipeline.models.padding import same_padding

Padding = Literal["valid", "same"]
State = tuple[torch.Tensor, torch.Tensor]
CHUNK = 8

# Of the hard sigmoid. Keras 3's function of that name, and PyTorch's, has a slope of 1 / 6.
HARD_SLOPE = 0.2


class ConvLSTM(nn.Module):
    """Shi et al.'s convolutional LSTM: gates from a convolution of the input plus one of the last hidden state.

    i, f, o = gates(W_x * x_t + W_h * h_(t-1) + b), g = tanh(the same), c_t = f c_(t-1) + i g, h_t = o tanh(c_t), each with
    its own kernels; their channels are in the order i, f, g, o.

    kernel_size, stride, padding: of the input convolution (`same` as in TensorFlow); the recurrent one has kernel
    recurrent_kernel_size (default kernel_size; odd), stride 1, and keeps the size. gates: `sigmoid`, the default of Keras 3,
    or `hard-sigmoid` = clip(0.2 x + 0.5, 0, 1), that of Keras 2. peephole_size: (H', W') of the hidden state for Shi's
    peepholes, W_c o c, one weight per place and channel; None, as in Keras, for none. return_sequences: return h of all
    steps, or only of the last.

    Initial values as in Keras: Glorot-uniform input kernels, orthogonal recurrent ones, biases 0 except the forget gate's
    1, so that a cell starts by remembering; peepholes 0.
    Source: Shi 2015 (arXiv 1506.04214), equation 3.
    """

    # Time steps whose input convolutions are one call.
    steps_at_once: ClassVar[int] = CHUNK

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding = "valid",
        recurrent_kernel_size: int | None = None,
        gates: Gates = "sigmoid",
        peephole_size: tuple[int, int] | None = None,
        return_sequences: bool = True,
    ) -> None:
        super().__init__()
        recurrent_kernel_size = recurrent_kernel_size or kernel_size
        if recurrent_kernel_size % 2 == 0:
            raise ValueError(f"the recurrent kernel must be odd to keep the size, not {recurrent_kernel_size}")
        if padding not in get_args(Padding) or gates not in get_args(Gates):
            raise ValueError(f"padding must be valid or same, gates sigmoid or hard-sigmoid, not {padding}, {gates}")
        self.hidden_channels, self.stride, self.padding, self.gates = hidden_channels, stride, padding, gates
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
        """Draw new initial values."""
        hidden = self.hidden_channels
        nn.init.xavier_uniform_(self.input_kernel)
        # Orthogonal as Keras's matrix: a row for each place and input channel, a column for each gate channel.
        rows = self.recurrent_kernel[0].numel()
        matrix = nn.init.orthogonal_(torch.empty(rows, 4 * hidden))
        with torch.no_grad():
            self.recurrent_kernel.copy_(matrix.T.reshape(self.recurrent_kernel.shape))
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.bias[hidden : 2 * hidden].detach())

    def remember(self, steps: int) -> None:
        """Draw new biases of the gates, for memories of 2 to `steps` steps, evenly spread over the cells.

        A forget gate at rest is 1 - 1 / t, an input gate 1 / t; with Keras's values every cell forgets in a few steps.
        Raises: ValueError if steps is below 2. Source: Tallec 2018 (chrono initialisation).
        """
        if steps < 2:
            raise ValueError(f"a memory needs at least 2 steps, not {steps}")
        hidden, more = self.hidden_channels, (steps - 2) * torch.rand(self.hidden_channels)
        # Where the gate is 1 - 1 / t for t = 2 + more.
        forget = torch.log1p(more) if self.gates == "sigmoid" else (0.5 - 1 / (2 + more)) / HARD_SLOPE
        with torch.no_grad():
            self.bias[:hidden] = -forget
            self.bias[hidden : 2 * hidden] = forget

    def extra_repr(self) -> str:
        """Return the arguments shown in the module's printed form."""
        inputs, kernel = self.input_kernel.shape[1], self.input_kernel.shape[2]
        return f"{inputs}, {self.hidden_channels}, kernel_size={kernel}, stride={self.stride}, padding={self.padding}"

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H', W') of the hidden state for frames of (H, W)."""
        kernel = self.input_kernel.shape[2]
        lost = 0 if self.padding == "same" else kernel - 1
        return (height - lost + self.stride - 1) // self.stride, (width - lost + self.stride - 1) // self.stride

    def forward(self, frames: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """Return h and the last state (h, c) for frames (T, B, C, H, W), time first as in `torch.nn.LSTM`.

        h: (T, B, hidden_channels, H', W'), or without return_sequences (B, hidden_channels, H', W'). state: (h, c) to
        continue from, each (B, hidden_channels, H', W'), c in float32 or float64; None = zeros. The returned state is
        differentiable; detach it to stop gradients there. Under autocast, or with bfloat16 weights, convolutions and h
        have that type.
        """
        device = frames.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.input_kernel.dtype
        shape = (frames.shape[1], self.hidden_channels, *self.output_size(*frames.shape[-2:]))
        if self.padding == "same":
            frames = _pad_same(frames, self.input_kernel.shape[2], self.stride)
        cell_dtype = torch.promote_types(dtype, torch.float32)
        fresh = state is None
        if state is None:
            hidden, cell = (_channels_last(*shape, like=frames, dtype=d).zero_() for d in (dtype, cell_dtype))
        else:
            if state[0].shape != shape:
                raise ValueError(f"the state is {tuple(state[0].shape)}, but these frames need {shape}")
            hidden, cell = state[0].to(dtype), _in_channels_last(state[1].to(cell_dtype))
        # Autocast does not reach into a hand-written function, so types are set here.
        kernel, recurrent = (_in_channels_last(k.to(dtype)) for k in (self.input_kernel, self.recurrent_kernel))
        peepholes = self.peepholes.to(cell_dtype) if self.peepholes is not None else None
        frames, hard = _in_channels_last(frames.to(dtype)), self.gates == "hard-sigmoid"
        given = (frames, hidden, cell, kernel, recurrent, self.bias.to(dtype), peepholes, self.stride, hard, fresh)
        with torch.autocast(device, enabled=False):
            if torch.is_grad_enabled():
                outputs, last, cell = _Recurrence.apply(*given)
            else:
                outputs, cell = _infer(*given, keep=self.return_sequences)
                last = outputs[-1]
        return (outputs if self.return_sequences else last), (last, cell)


def _pad_same(frames: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    lost = [same_padding(size, kernel_size, stride) for size in frames.shape[-2:]]
    (top, left), (bottom, right) = [n // 2 for n in lost], [n - n // 2 for n in lost]
    return F.pad(frames, (left, right, top, bottom))


def _channels_last(*shape: int, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an uninitialised (..., C, H, W) tensor with channels-last images."""
    *first, channels, height, width = shape
    return like.new_empty((*first, height, width, channels), dtype=dtype).movedim(-1, -3)


def _in_channels_last(images: torch.Tensor) -> torch.Tensor:
    """Return images (..., C, H, W) in dense channels-last memory, with strides that say so.

    Of a single channel both orders are one in memory, and the strides decide in which of them a convolution answers.
    """
    dense = images.movedim(-3, -1).contiguous()
    return dense.flatten(-2).unflatten(-1, dense.shape[-2:]).movedim(-1, -3)


def _dense_if_narrow(values: torch.Tensor) -> torch.Tensor:
    """Return values, or a dense copy of a slice of few channels, on which a CPU's kernels take up to six times as long."""
    narrow = values.shape[1] * values.element_size() < 128
    return values.contiguous(memory_format=torch.channels_last) if narrow else values


def _tanh(values: torch.Tensor) -> torch.Tensor:
    """Return tanh in dense memory, in at least float32; through sigmoid, with an error of 1e-7.

    A seventh of tanh's time on a CPU without MKL's AVX-512, up to 1.6 times it with.
    """
    if values.dtype == torch.float64:
        return values.tanh()
    twice = values * 2 if values.dtype == torch.float32 else values.float().mul_(2)
    return twice.sigmoid_().mul_(2).sub_(1)


def _convolve_inputs(
    frames: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, stride: int
) -> Sequence[torch.Tensor]:
    """Return the contribution of frames (n, B, C, H, W) to the preactivations (B, 4C', H', W') of n steps."""
    return F.conv2d(frames.flatten(0, 1), kernel, bias, stride).unflatten(0, frames.shape[:2]).unbind()


class _StateConvolution:
    """The convolution of the hidden state, the same at every step: what it needs is prepared once."""

    def __init__(self, kernel: torch.Tensor, hidden: torch.Tensor) -> None:
        self.kernel = kernel
        self.packed = onednn.pack(kernel, hidden) if onednn.usable(hidden) else None

    def step(
        self,
        inputs: torch.Tensor,
        last: torch.Tensor | None,
        cell: torch.Tensor,
        peepholes: torch.Tensor | None,
        hard: bool,
        hidden: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Write h of a step into `hidden`; return its gates (B, 4C, H, W), the new cell, and the cell's tanh as `_step_`.

        inputs: the frame's contribution to the preactivations, overwritten; last: the hidden state before, None for zeros.
        """
        in_one_kernel = fused.usable(inputs, cell, peepholes)
        rest = None
        if last is None:
            gates = inputs
        elif self.packed is not None:
            gates = onednn.add_convolution_(inputs, last, self.packed)
        else:
            gates, rest = F.conv2d(last, self.kernel, padding=self.kernel.shape[2] // 2), inputs
        if not in_one_kernel:
            gates = gates if rest is None else gates.add_(rest)
            return gates, *_step_(gates, cell, peepholes, hard, hidden)
        # Of a single channel, and without cuDNN, convolutions may answer in another order of memory.
        gates = gates.contiguous(memory_format=torch.channels_last)
        return gates, *fused.step(gates, rest, cell, hard, hidden)


class _StateGradient:
    """The gradient of `_StateConvolution`'s hidden state: with oneDNN a convolution too, with its kernel turned round."""

    def __init__(self, kernel: torch.Tensor, gates: torch.Tensor) -> None:
        self.kernel, self.packed = kernel, None
        if onednn.usable(gates):
            self.packed = onednn.pack(_in_channels_last(kernel.flip(2, 3).transpose(0, 1)), gates)

    def __call__(self, d_gates: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return the gradient (B, C, H, W) of the hidden state `last`, given that of the preactivations (B, 4C, H, W)."""
        if self.packed is not None:
            return onednn.convolve(d_gates, self.packed)
        return _conv_back(d_gates, last, self.kernel, 1, self.kernel.shape[2] // 2, (True, False))[0]


def _step_(
    gates: torch.Tensor, cell: torch.Tensor, peepholes: torch.Tensor | None, hard: bool, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn preactivations (B, 4C, H, W) into gates in place, write h into `hidden`; return the new cell and its tanh.

    The tanh has the gates' dtype, the cell keeps its own.
    """
    channels = cell.shape[1]
    both, output = gates[:, : 2 * channels], gates[:, 3 * channels :]
    in_gate, forget, candidate = both[:, :channels], both[:, channels:], gates[:, 2 * channels : 3 * channels]
    if peepholes is not None:
        in_gate += peepholes[0] * cell
        forget += peepholes[1] * cell
    _squash_(both, hard)
    candidate.copy_(_tanh(candidate))
    cell = (cell * forget).add_(in_gate * candidate)
    if peepholes is not None:
        output += peepholes[2] * cell
    _squash_(output, hard)
    tanh_cell = _tanh(cell).to(gates.dtype)
    torch.mul(output, tanh_cell, out=hidden)
    return cell, tanh_cell


def _squash_(values: torch.Tensor, hard: bool) -> torch.Tensor:
    """Replace a slice of channels by its gate activation."""
    dense = _dense_if_narrow(values)
    if hard:
        dense.mul_(HARD_SLOPE).add_(0.5).clamp_(0, 1)
    else:
        dense.sigmoid_()
    return values if dense is values else values.copy_(dense)


def _squash_back(gradient: torch.Tensor, gate: torch.Tensor, hard: bool, out: torch.Tensor) -> None:
    """Write the gradient before a gate's activation into `out`, given that after it and the gate's value."""
    if hard:
        torch.mul(gradient * HARD_SLOPE, (gate > 0) & (gate < 1), out=out)
    else:
        torch.ops.aten.sigmoid_backward.grad_input(gradient, gate, grad_input=out)


def _infer(
    frames: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    kernel: torch.Tensor,
    recurrent: torch.Tensor,
    bias: torch.Tensor,
    peepholes: torch.Tensor | None,
    stride: int,
    hard: bool,
    fresh: bool,
    *,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return h of all steps, or of the last as a sequence of one, and the last cell; keeps nothing for backward."""
    outputs = _channels_last(len(frames) if keep else 1, *hidden.shape, like=frames)
    state, step = _StateConvolution(recurrent, hidden), 0
    for part in frames.split(CHUNK):
        for inputs in _convolve_inputs(part, kernel, bias, stride):
            last = None if fresh and not step else hidden
            hidden = outputs[step if keep else 0]
            _, cell, _ = state.step(inputs, last, cell, peepholes, hard, hidden)
            step += 1
    return outputs, cell


class _Recurrence(torch.autograd.Function):
    """The steps of a ConvLSTM over frames (T, B, C, H, W), already padded.

    fresh: the hidden state is zero, so the first step needs no recurrent convolution.
    """

    @staticmethod
    def forward(
        ctx: Any,
        frames: torch.Tensor,
        hidden: torch.Tensor,
        cell: torch.Tensor,
        kernel: torch.Tensor,
        recurrent: torch.Tensor,
        bias: torch.Tensor,
        peepholes: torch.Tensor | None,
        stride: int,
        hard: bool,
        fresh: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hiddens = _channels_last(len(frames) + 1, *hidden.shape, like=frames)
        hiddens[0] = hidden
        gates: list[torch.Tensor] = []
        cells, tanhs = [cell], []
        state = _StateConvolution(recurrent, hidden)
        for part in frames.split(CHUNK):
            for inputs in _convolve_inputs(part, kernel, bias, stride):
                step = len(gates)
                last = None if fresh and not step else hiddens[step]
                if last is None and state.packed is None:
                    # A copy, so that the first step does not keep its whole chunk alive. Of packed ones all gates lie there.
                    inputs = inputs.clone()
                found, cell, tanh_cell = state.step(inputs, last, cell, peepholes, hard, hiddens[step + 1])
                gates.append(found)
                cells.append(cell)
                tanhs.append(tanh_cell)
        ctx.save_for_backward(frames, kernel, recurrent, peepholes, hiddens, *gates, *cells[:-1], *tanhs)
        # The caller may write into the last cell: the peepholes need a copy.
        ctx.last_cell = cell.clone() if peepholes is not None else None
        ctx.stride, ctx.hard = stride, hard
        ctx.set_materialize_grads(False)
        return hiddens[1:], hiddens[-1].clone(), cell

    @staticmethod
    def backward(
        ctx: Any, d_outputs: torch.Tensor | None, d_last: torch.Tensor | None, d_cell: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        frames, kernel, recurrent, peepholes, hiddens, *saved = ctx.saved_tensors
        steps, margin = len(frames), recurrent.shape[2] // 2
        gates, cells, tanhs = saved[:steps], [*saved[steps : 2 * steps], ctx.last_cell], saved[2 * steps :]
        d_hidden = torch.zeros_like(hiddens[0]) if d_last is None else d_last
        d_cell = torch.zeros_like(cells[0]) if d_cell is None else d_cell.clone()
        in_one_kernel = fused.usable(hiddens, d_cell, peepholes)
        if in_one_kernel:
            d_cell = _in_channels_last(d_cell)
            d_outputs = None if d_outputs is None else _in_channels_last(d_outputs)
        d_frames = torch.empty_like(frames) if ctx.needs_input_grad[0] else None
        d_peepholes = torch.zeros_like(peepholes) if peepholes is not None else None
        # Sums over many steps: at least float32.
        d_weights = [torch.zeros_like(w, dtype=cells[0].dtype) for w in (kernel, gates[0][0, :, 0, 0], recurrent)]
        state_gradient = _StateGradient(recurrent, gates[0])
        buffer = _channels_last(min(CHUNK, steps), *gates[0].shape, like=gates[0])
        for start in reversed(range(0, steps, CHUNK)):
            stop = min(start + CHUNK, steps)
            d_gates = buffer[: stop - start]
            for t in reversed(range(start, stop)):
                d_output = None if d_outputs is None else d_outputs[t]
                known = (gates[t], cells[t], tanhs[t])
                if in_one_kernel:
                    fused.step_back(*known, d_hidden, d_output, d_cell, ctx.hard, d_gates[t - start])
                else:
                    d_hidden = d_hidden if d_output is None else d_hidden + d_output
                    peeping = None if d_peepholes is None else (peepholes, d_peepholes, cells[t + 1])
                    _step_back_(*known, d_hidden, d_cell, ctx.hard, d_gates[t - start], peeping)
                if t or ctx.needs_input_grad[1]:
                    d_hidden = state_gradient(d_gates[t - start], hiddens[t])
            flat = d_gates.flatten(0, 1)
            asked = (d_frames is not None, True)
            d_part, *found = _conv_back(flat, frames[start:stop].flatten(0, 1), kernel, ctx.stride, 0, asked)
            found.append(_conv_back(flat, hiddens[start:stop].flatten(0, 1), recurrent, 1, margin, (False, True))[1])
            for total, part in zip(d_weights, found, strict=True):
                total += part
            if d_frames is not None:
                d_frames[start:stop] = d_part.view_as(d_frames[start:stop])
        d_kernel, d_bias, d_recurrent = (total.to(kernel.dtype) for total in d_weights)
        return d_frames, d_hidden, d_cell, d_kernel, d_recurrent, d_bias, d_peepholes, None, None, None


def _step_back_(
    gates: torch.Tensor,
    before: torch.Tensor,
    tanh_cell: torch.Tensor,
    d_hidden: torch.Tensor,
    d_cell: torch.Tensor,
    hard: bool,
    d_inputs: torch.Tensor,
    peeping: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> None:
    """Write the gradient of a step's preactivations into `d_inputs` and turn `d_cell` into that of the cell before.

    peeping: peepholes, their gradient to add to, and the cell after the step.
    """
    in_gate, forget, candidate, output = gates.chunk(4, 1)
    d_in, d_forget, d_candidate, d_output = d_inputs.chunk(4, 1)
    _squash_back(d_hidden * tanh_cell, output, hard, d_output)
    d_cell += torch.ops.aten.tanh_backward(d_hidden * output, tanh_cell)
    if peeping is not None:
        d_cell += peeping[0][2] * d_output
    d_here = d_cell.to(gates.dtype)
    _squash_back(d_here * candidate, in_gate, hard, d_in)
    _squash_back(d_here * before.to(gates.dtype), forget, hard, d_forget)
    torch.ops.aten.tanh_backward.grad_input(d_here * in_gate, candidate, grad_input=d_candidate)
    d_cell *= forget
    if peeping is not None:
        peepholes, d_peepholes, after = peeping
        d_cell += peepholes[0] * d_in + peepholes[1] * d_forget
        d_peepholes += torch.stack([(d_in * before).sum(0), (d_forget * before).sum(0), (d_output * after).sum(0)])


def _conv_back(
    gradient: torch.Tensor,
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    stride: int,
    margin: int,
    asked: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of a convolution's inputs, kernel and bias; asked: whether of the inputs, of the other two."""
    sizes, mask = [len(kernel)], [asked[0], asked[1], asked[1]]
    return torch.ops.aten.convolution_backward(
        gradient, inputs, kernel, sizes, [stride] * 2, [margin] * 2, [1, 1], False, [0, 0], 1, mask
    )
