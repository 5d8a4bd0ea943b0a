"""The two Triton kernels of `fused`: importable only where Triton is installed.

Every element of the hidden state is independent. Number e of B x H x W x C elements in channels-last memory is channel e % C
of place e // C; its four gates, in the order i, f, g, o, lie C apart from 4 C (e // C) + e % C on.
"""

import triton
import triton.language as tl

HARD_SLOPE = tl.constexpr(0.2)


@triton.jit
def _gate(value, HARD: tl.constexpr):
    # Not `tl.minimum` and `tl.maximum`, which would turn NaN into a number.
    line = HARD_SLOPE * value + 0.5
    return tl.where(line < 0, 0.0, tl.where(line > 1, 1.0, line)) if HARD else 1 / (1 + tl.exp(-value))


@triton.jit
def _tanh(value):
    return 2 / (1 + tl.exp(-2 * value)) - 1


@triton.jit
def _gate_back(gradient, gate, HARD: tl.constexpr):
    return gradient * (tl.where((gate > 0) & (gate < 1), HARD_SLOPE, 0.0) if HARD else gate * (1 - gate))


@triton.jit
def forward(
    gates, inputs, before, after, tanh, hidden, count,
    CHANNELS: tl.constexpr, ADD: tl.constexpr, HARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `fused.step`; `ADD`: add `inputs` to the preactivations."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = e < count
    place = 4 * CHANNELS * (e // CHANNELS) + e % CHANNELS
    i = tl.load(gates + place, mask, 0.0).to(tl.float32)
    f = tl.load(gates + place + CHANNELS, mask, 0.0).to(tl.float32)
    g = tl.load(gates + place + 2 * CHANNELS, mask, 0.0).to(tl.float32)
    o = tl.load(gates + place + 3 * CHANNELS, mask, 0.0).to(tl.float32)
    if ADD:
        i += tl.load(inputs + place, mask, 0.0).to(tl.float32)
        f += tl.load(inputs + place + CHANNELS, mask, 0.0).to(tl.float32)
        g += tl.load(inputs + place + 2 * CHANNELS, mask, 0.0).to(tl.float32)
        o += tl.load(inputs + place + 3 * CHANNELS, mask, 0.0).to(tl.float32)
    i, f, g, o = _gate(i, HARD), _gate(f, HARD), _tanh(g), _gate(o, HARD)
    cell = f * tl.load(before + e, mask, 0.0) + i * g
    tanh_cell = _tanh(cell)
    kind = gates.dtype.element_ty
    tl.store(gates + place, i.to(kind), mask)
    tl.store(gates + place + CHANNELS, f.to(kind), mask)
    tl.store(gates + place + 2 * CHANNELS, g.to(kind), mask)
    tl.store(gates + place + 3 * CHANNELS, o.to(kind), mask)
    tl.store(after + e, cell, mask)
    tl.store(tanh + e, tanh_cell.to(kind), mask)
    tl.store(hidden + e, (o * tanh_cell).to(kind), mask)


@triton.jit
def backward(
    gates, before, tanh, d_hidden, d_output, d_cell, d_gates, count,
    CHANNELS: tl.constexpr, ADD: tl.constexpr, HARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `fused.step_back`; `ADD`: add `d_output` to the gradient of h."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = e < count
    place = 4 * CHANNELS * (e // CHANNELS) + e % CHANNELS
    i = tl.load(gates + place, mask, 0.0).to(tl.float32)
    f = tl.load(gates + place + CHANNELS, mask, 0.0).to(tl.float32)
    g = tl.load(gates + place + 2 * CHANNELS, mask, 0.0).to(tl.float32)
    o = tl.load(gates + place + 3 * CHANNELS, mask, 0.0).to(tl.float32)
    tanh_cell = tl.load(tanh + e, mask, 0.0).to(tl.float32)
    dh = tl.load(d_hidden + e, mask, 0.0).to(tl.float32)
    if ADD:
        dh += tl.load(d_output + e, mask, 0.0).to(tl.float32)
    dc = tl.load(d_cell + e, mask, 0.0) + dh * o * (1 - tanh_cell * tanh_cell)
    kind = d_gates.dtype.element_ty
    tl.store(d_gates + place, _gate_back(dc * g, i, HARD).to(kind), mask)
    tl.store(d_gates + place + CHANNELS, _gate_back(dc * tl.load(before + e, mask, 0.0), f, HARD).to(kind), mask)
    tl.store(d_gates + place + 2 * CHANNELS, (dc * i * (1 - g * g)).to(kind), mask)
    tl.store(d_gates + place + 3 * CHANNELS, _gate_back(dh * tanh_cell, o, HARD).to(kind), mask)
    tl.store(d_cell + e, dc * f, mask)
