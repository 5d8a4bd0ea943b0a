"""The LSTM encoder: a video's clips in order, its last hidden state out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class LSTMEncoder(nn.Module):
    """One LSTM layer that returns the hidden state after each video's last valid clip.

    Initialised as Keras does, which the paper used: Glorot-uniform input weights, orthogonal recurrent weights, zero
    biases except 1 for the forget gate. torch's own start (uniform, forget gate near 0) forgets half at every step.
    Source: Orozco 2020, section 2.2.
    """

    def __init__(self, feature_dim: int, units: int) -> None:
        super().__init__()
        self.out_dim = units
        self.lstm = nn.LSTM(feature_dim, units, batch_first=True)
        weights = dict(self.lstm.named_parameters())
        nn.init.xavier_uniform_(weights["weight_ih_l0"])
        nn.init.orthogonal_(weights["weight_hh_l0"])
        nn.init.zeros_(weights["bias_ih_l0"])
        nn.init.zeros_(weights["bias_hh_l0"])
        with torch.no_grad():
            weights["bias_ih_l0"][units : 2 * units] = 1.0

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, units) for features (B, Nmax, D) and lengths (B,) on the CPU, each at least 1."""
        packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return hidden[-1]
