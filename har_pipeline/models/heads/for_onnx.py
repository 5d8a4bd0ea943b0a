"""Heads as ONNX can say them: sequences of any length in one graph, where torch packs them.

torch exports a recurrent layer step by step, for one fixed length. ONNX has operators of its own for LSTM and GRU, which read
each sequence up to its length, as packed sequences do; here they take the weights of torch's layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from har_pipeline.models.heads.classifier import SequenceClassifier
from har_pipeline.models.heads.encoder import Encoder
from har_pipeline.models.heads.fusion import HiddenFusion
from har_pipeline.models.heads.pooling import valid_clips
from har_pipeline.models.heads.recurrent import (
    AttentionEncoder,
    LSTMWithoutForgetGate,
    ProjectedEncoder,
    RecurrentEncoder,
    StackedEncoder,
)

# The sigmoid of this is 1 in float32: a gate that is always open.
OPEN = 100.0


def for_onnx(head: SequenceClassifier) -> SequenceClassifier:
    """Return a copy of a head, in evaluation mode on the CPU, that `torch.onnx.export` takes; it runs in ONNX only."""
    found = copy.deepcopy(head).cpu().eval()
    found.encoder = _encoder(found.encoder)
    return found


def _encoder(encoder: Encoder) -> Encoder:
    match encoder:
        case RecurrentEncoder():
            return _Recurrent(encoder)
        case AttentionEncoder():
            return _Attention(encoder)
        case StackedEncoder():
            return _Stacked(encoder)
        case ProjectedEncoder():
            encoder.encoder = _encoder(encoder.encoder)
        case HiddenFusion():
            encoder.encoders = nn.ModuleList(_encoder(one) for one in encoder.encoders)  # type: ignore[arg-type]
    return encoder


class _Layer(nn.Module):
    """One recurrent layer: features (B, N, D) and lengths (B,) -> states (B, N, E), 0 after the end, and the last (B, E)."""

    W: torch.Tensor
    R: torch.Tensor
    B: torch.Tensor

    def __init__(self, layer: nn.LSTM | nn.GRU | LSTMWithoutForgetGate, number: int = 0) -> None:
        super().__init__()
        self.directions = 2 if layer.bidirectional else 1
        self.units = layer.weight_hh.shape[1] if isinstance(layer, LSTMWithoutForgetGate) else layer.hidden_size
        self.gru = isinstance(layer, nn.GRU)
        ends = [f"_l{number}", f"_l{number}_reverse"][: self.directions]
        for name, value in zip("WRB", zip(*(self._weights(layer, end) for end in ends), strict=True), strict=True):
            self.register_buffer(name, torch.stack(value).detach().float().contiguous())

    def _weights(
        self, layer: nn.LSTM | nn.GRU | LSTMWithoutForgetGate, end: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return one direction's weights of inputs and states, and its biases, the gates in the order of ONNX."""
        order: Callable[[torch.Tensor], torch.Tensor]
        if isinstance(layer, LSTMWithoutForgetGate):

            def order(gates: torch.Tensor, forget: float = 0.0) -> torch.Tensor:
                i, g, o = gates.chunk(3)
                return torch.cat([i, o, torch.full_like(i, forget), g])

            bias = order(layer.bias.data, OPEN)
            return order(layer.weight_ih.data), order(layer.weight_hh.data), torch.cat([bias, torch.zeros_like(bias)])

        def reordered(name: str) -> torch.Tensor:
            parts: Any = getattr(layer, name + end).data.chunk(3 if self.gru else 4)
            places = (1, 0, 2) if self.gru else (0, 3, 1, 2)
            return torch.cat([parts[place] for place in places])

        biases = [reordered("bias_ih"), reordered("bias_hh")]
        return reordered("weight_ih"), reordered("weight_hh"), torch.cat(biases)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        videos, steps, _ = features.shape
        hidden = (self.directions, videos, self.units)
        attributes: dict[str, Any] = {"hidden_size": self.units}
        if self.directions == 2:
            attributes["direction"] = "bidirectional"
        if self.gru:
            attributes["linear_before_reset"] = 1
        states, last, *_ = torch.onnx.ops.symbolic_multi_out(
            "GRU" if self.gru else "LSTM",
            [features.transpose(0, 1), self.W, self.R, self.B, lengths.int()],
            attributes,
            dtypes=[torch.float32] * (2 if self.gru else 3),
            shapes=[(steps, self.directions, videos, self.units), *[hidden] * (1 if self.gru else 2)],
            version=14,
        )
        return states.permute(2, 0, 1, 3).flatten(2), last.transpose(0, 1).flatten(1)


class _Recurrent(Encoder):
    """A `RecurrentEncoder`."""

    def __init__(self, encoder: RecurrentEncoder) -> None:
        super().__init__()
        self.out_dim, self.every_step = encoder.out_dim, encoder.every_step
        layer: Any = encoder.get_submodule(encoder.cell)
        self.layers = nn.ModuleList(_Layer(layer, number) for number in range(getattr(layer, "num_layers", 1)))

    def states(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last layer's states of all clips (B, N, E), and those after the last clip (B, E)."""
        last = features
        for layer in self.layers:
            features, last = layer(features, lengths)
        return features, last

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        states, last = self.states(features, lengths)
        return states if self.every_step else last


class _Attention(Encoder):
    """An `AttentionEncoder`."""

    def __init__(self, encoder: AttentionEncoder) -> None:
        super().__init__()
        self.out_dim = encoder.out_dim
        self.encoder = _Recurrent(encoder.encoder)
        self.query, self.score = encoder.query, encoder.score

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        states, _ = self.encoder.states(features, lengths)
        scores = self.score(torch.tanh(self.query(states)))[..., 0]
        weights = scores.masked_fill(~valid_clips(features, lengths), float("-inf")).softmax(dim=1)
        return (weights[..., None] * states).sum(dim=1)


class _Stacked(Encoder):
    """A `StackedEncoder`."""

    def __init__(self, encoder: StackedEncoder) -> None:
        super().__init__()
        self.out_dim, self.skips = encoder.out_dim, encoder.skips
        self.layers = nn.ModuleList(_Layer(layer) for layer in encoder.layers)  # type: ignore[arg-type]

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        last = features
        for layer in self.layers:
            states, last = layer(features, lengths)
            features = states + features if self.skips else states
        return last
