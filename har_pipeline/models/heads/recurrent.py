"""Recurrent encoders: from a video's clips in order to the hidden state after the last one."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from har_pipeline.models.heads.encoder import Encoder
from har_pipeline.models.heads.pooling import valid_clips


def start_as_keras(layer: nn.LSTM | nn.GRU | LSTMWithoutForgetGate) -> None:
    """Initialise as Keras does: Glorot-uniform input weights, orthogonal state weights, zero biases.

    An LSTM's forget gate starts with a bias of 1; with torch's uniform start near 0 it would forget half at every step. torch
    has two biases for each gate where Keras's LSTM has one. Their sum counts, which RMSProp moves by two steps at once.
    Source: Orozco 2020, algorithm 2, has the calls of Keras, and gives no initial values.
    """
    for name, value in layer.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.xavier_uniform_(value)
        elif name.startswith("weight_hh"):
            nn.init.orthogonal_(value)
        else:
            nn.init.zeros_(value)
            if name.startswith("bias_ih") and isinstance(layer, nn.LSTM):
                with torch.no_grad():
                    value[layer.hidden_size : 2 * layer.hidden_size] = 1.0


class LSTMWithoutForgetGate(nn.Module):
    """One layer of the LSTM of Hochreiter 1997: c_t = c_(t-1) + i_t g_t, h_t = o_t tanh(c_t). A cell never forgets.

    It is called as torch's LSTM on packed sequences. 3 (D + U + 1) U parameters, for the gates i, g, o in that order: 25,650
    for 120 features and 50 units, the "about 25,000" of Baccouche 2011, section 3.
    """

    bidirectional = False

    def __init__(self, feature_dim: int, units: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(3 * units, feature_dim))
        self.weight_hh = nn.Parameter(torch.empty(3 * units, units))
        self.bias = nn.Parameter(torch.empty(3 * units))

    def forward(self, packed: PackedSequence) -> tuple[PackedSequence, tuple[torch.Tensor, torch.Tensor]]:
        """Return the states of all clips, packed, and the last (h, c) of each video, (1, B, U) each."""
        given = nn.functional.linear(packed.data, self.weight_ih, self.bias)
        sizes = packed.batch_sizes.tolist()
        hidden = cell = given.new_zeros(sizes[0], self.weight_hh.shape[1])
        states = []
        for part in given.split(sizes):
            # The videos are sorted by length: those that have ended are the last ones, and keep their state.
            count = len(part)
            i, g, o = (part + hidden[:count] @ self.weight_hh.T).chunk(3, dim=1)
            after = cell[:count] + i.sigmoid() * g.tanh()
            states.append(o.sigmoid() * after.tanh())
            cell = torch.cat([after, cell[count:]])
            hidden = torch.cat([states[-1], hidden[count:]])
        if packed.unsorted_indices is not None:
            hidden, cell = hidden[packed.unsorted_indices], cell[packed.unsorted_indices]
        return with_data(packed, torch.cat(states)), (hidden[None], cell[None])


def pack(features: torch.Tensor, lengths: torch.Tensor) -> PackedSequence:
    """Return (B, Nmax, D) without its padding; lengths: (B,) int64 on the CPU, each at least 1."""
    return pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)


def with_data(packed: PackedSequence, data: torch.Tensor) -> PackedSequence:
    """Return a packed sequence of the same videos and lengths that holds `data` (sum N, E)."""
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


class RecurrentEncoder(Encoder):
    """LSTM or GRU layers, in one or both directions; returns the hidden state after each video's last valid clip.

    In both directions the second half is the backward layer's state after it has read the first clip. With every_step the
    states of all clips are returned instead, (B, Nmax, out_dim). forget_gate: of a single LSTM layer in one direction.
    """

    def __init__(
        self,
        feature_dim: int,
        units: int,
        num_layers: int = 1,
        *,
        cell: type[nn.LSTM] | type[nn.GRU] = nn.LSTM,
        bidirectional: bool = False,
        dropout: float = 0.0,
        forget_gate: bool = True,
        every_step: bool = False,
    ) -> None:
        super().__init__()
        self.out_dim = 2 * units if bidirectional else units
        self.every_step = every_step
        between = dropout if num_layers > 1 else 0.0
        layer = (
            cell(feature_dim, units, num_layers, batch_first=True, bidirectional=bidirectional, dropout=between)
            if forget_gate
            else LSTMWithoutForgetGate(feature_dim, units)
        )
        start_as_keras(layer)
        # Named after the cell, as in the weights files of earlier runs.
        self.cell = "gru" if isinstance(layer, nn.GRU) else "lstm"
        self.add_module(self.cell, layer)

    def states(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[PackedSequence, torch.Tensor]:
        """Return the last layer's states of all clips (packed) and those after the last clip (B, out_dim)."""
        states, hidden = self.get_submodule(self.cell)(pack(features, lengths))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        directions = 2 if self.get_submodule(self.cell).bidirectional else 1
        return states, torch.cat(list(hidden[-directions:]), dim=1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, out_dim) for features (B, Nmax, D) and lengths (B,) on the CPU, each at least 1."""
        states, last = self.states(features, lengths)
        if self.every_step:
            return pad_packed_sequence(states, batch_first=True, total_length=features.shape[1])[0]
        return last


class AttentionEncoder(Encoder):
    """LSTM states weighted by a learned attention over time: a_t = softmax_t(v . tanh(W h_t + b)), sum of a_t h_t.

    v starts at zero, so that training starts from the plain mean of the states.
    Source: Orozco 2020 names attention as future work; the scoring is that of Bahdanau 2015 without a query.
    """

    def __init__(self, feature_dim: int, units: int, num_layers: int = 1, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_dim = units
        self.encoder = RecurrentEncoder(feature_dim, units, num_layers, dropout=dropout)
        self.query = nn.Linear(units, units)
        self.score = nn.Linear(units, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def weights(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of all clips (B, Nmax), 0 after the end and summing to 1, and the states (B, Nmax, E)."""
        packed, _ = self.encoder.states(features, lengths)
        states, _ = pad_packed_sequence(packed, batch_first=True, total_length=features.shape[1])
        scores = self.score(torch.tanh(self.query(states)))[..., 0].float()
        return scores.masked_fill(~valid_clips(features, lengths), float("-inf")).softmax(dim=1), states

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, units) for features (B, Nmax, D) and lengths (B,) on the CPU, each at least 1."""
        weights, states = self.weights(features, lengths)
        return (weights[..., None] * states).sum(dim=1)


class StackedEncoder(Encoder):
    """L LSTM layers as wide as their input, with residual connections between them (`skips`) or without.

    With skips, x_t^l = m_t^l + x_t^(l-1) is the input of layer l + 1, m_t^l being the state of layer l. The output is
    m_T^L: the last layer has no skip of its own.
    Source: Lakhal 2018, section 3.1, equations 1 and 2; without skips the stack it is compared with in figure 3.
    """

    def __init__(self, feature_dim: int, num_layers: int, *, skips: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_dim = feature_dim
        self.skips = skips
        self.layers = nn.ModuleList(nn.LSTM(feature_dim, feature_dim, batch_first=True) for _ in range(num_layers))
        for layer in self.layers:
            start_as_keras(layer)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, D) for features (B, Nmax, D) and lengths (B,) on the CPU, each at least 1."""
        inputs = pack(features, lengths)
        for layer in self.layers[:-1]:
            states = self.dropout(layer(inputs)[0].data)
            inputs = with_data(inputs, states + inputs.data if self.skips else states)
        _, (hidden, _) = self.layers[-1](inputs)
        return hidden[-1]


class ProjectedEncoder(Encoder):
    """A dense layer on each clip before an encoder that is to be narrower than the features."""

    def __init__(self, feature_dim: int, projected_dim: int, encoder: Encoder) -> None:
        super().__init__()
        self.out_dim = encoder.out_dim
        self.projection = nn.Linear(feature_dim, projected_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.encoder = encoder

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, E) for features (B, Nmax, D) and lengths (B,) on the CPU."""
        return self.encoder(self.projection(features), lengths)
