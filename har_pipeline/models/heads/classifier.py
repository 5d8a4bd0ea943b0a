"""The one module of stage two: scaled features -> dropout -> encoder -> dropout -> dense layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from har_pipeline.models.config import RESIDUAL_HEADS
from har_pipeline.models.heads.encoder import Encoder
from har_pipeline.models.heads.pooling import mean_of_valid, vote

if TYPE_CHECKING:
    from har_pipeline.models.config import HeadConfig


SMALLEST_DEVIATION = 0.1


class SequenceClassifier(nn.Module):
    """An encoder (B, N, D) -> (B, E) and a dense layer E -> K; the encoder of `vote` gives (B, N, E).

    `input_mean` and `input_scale` (D,) are buffers, so that the weights file alone reproduces a prediction; they are
    0 and 1 until `set_input_scaling` is called. `encoder` takes (features, lengths) and has `out_dim` = E.
    stream_dims: how D is made up of the streams' features; one number without mid fusion.
    """

    input_mean: torch.Tensor
    input_scale: torch.Tensor

    def __init__(self, encoder: Encoder, stream_dims: Sequence[int], num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.stream_dims = tuple(stream_dims)
        self.register_buffer("input_mean", torch.zeros(sum(stream_dims)))
        self.register_buffer("input_scale", torch.ones(sum(stream_dims)))
        self.encoder = encoder
        self.dropout = nn.Dropout(config.dropout)
        # Channels of (B, D, N) are dropped as a whole: a feature is gone for all clips of a video, or for none.
        self.input_dropout = nn.Dropout1d(config.input_dropout)
        # Equation 2 of Lakhal 2018 has no bias.
        self.classifier = nn.Linear(encoder.out_dim, num_classes, bias=config.name not in RESIDUAL_HEADS)
        nn.init.xavier_uniform_(self.classifier.weight)
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)
        self.output = config.output
        self.vote = config.vote if config.name == "vote" else None

    def set_input_scaling(self, mean: np.ndarray, deviation: np.ndarray) -> None:
        """Scale inputs to (x - mean) / deviation from now on.

        A deviation counts as a tenth of its stream's root mean square deviation at least: a ReLU feature that hardly
        ever fired in training would otherwise drown all others in the one video where it does.
        """
        scales = []
        for part in np.split(np.asarray(deviation), np.cumsum(self.stream_dims)[:-1]):
            smallest = SMALLEST_DEVIATION * np.sqrt(np.mean(np.square(part)))
            scales.append(1.0 / np.maximum(part, smallest) if smallest > 0 else np.zeros(len(part)))
        self.input_mean.copy_(torch.from_numpy(np.asarray(mean)))
        self.input_scale.copy_(torch.from_numpy(np.concatenate(scales)))

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, E), what the dense layer sees in evaluation mode; (B, N, E) for `vote`."""
        scaled = (features - self.input_mean) * self.input_scale
        if self.training and self.input_dropout.p:
            scaled = self.input_dropout(scaled.transpose(1, 2)).transpose(1, 2)
        return self.encoder(scaled, lengths)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, K) log probabilities for features (B, Nmax, D) float32 and lengths (B,) int64 on the CPU.

        With `output="sigmoid"` they are those of the sigmoids divided by their sum: what Keras's categorical
        cross-entropy makes of an output that does not sum to 1. A training `vote` head returns the mean of its clips' log
        probabilities instead, whose negative likelihood is the mean loss of the clips: each clip learns by itself.
        """
        logits = self.classifier(self.dropout(self.encode(features, lengths)))
        if self.output == "sigmoid":
            logits = nn.functional.logsigmoid(logits)
        log_probabilities = nn.functional.log_softmax(logits.float(), dim=-1)
        if self.vote is None:
            return log_probabilities
        if self.training:
            return mean_of_valid(log_probabilities, lengths)
        return vote(log_probabilities, lengths, self.vote)
