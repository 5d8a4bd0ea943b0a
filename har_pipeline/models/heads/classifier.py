"""The network of every head: features (joined, of several streams), scaled -> dropout -> encoder -> dropout -> dense layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from har_pipeline.models.config import RESIDUAL_HEADS, HeadConfig
from har_pipeline.models.heads.encoder import Encoder
from har_pipeline.models.heads.fusion import join
from har_pipeline.models.heads.pooling import mean_of_valid, vote

SMALLEST_DEVIATION = 0.1


class SequenceClassifier(nn.Module):
    """An encoder (B, N, D) -> (B, E) and a dense layer E -> K; that of `vote` and of `readout="steps"` gives (B, N, E).

    With mid fusion at the input the streams' features are joined before anything else, as x_t = x_t^1 o x_t^2 o ... in
    Lakhal 2018, section 3.2: what is scaled, or dropped in training, is the sum or product, never a stream before it.
    `input_mean` and `input_scale` (D',) are buffers, so that the weights file alone reproduces a prediction; they are
    0 and 1 until `set_input_scaling` is called. D' is the size of the joined features.
    stream_dims: feature_dim of each stream, D in all; one number without mid fusion.
    """

    input_mean: torch.Tensor
    input_scale: torch.Tensor

    def __init__(self, encoder: Encoder, stream_dims: Sequence[int], num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.stream_dims = tuple(stream_dims)
        # What joins the streams here; their concatenation is joined already.
        self.input_op = config.fusion_op if config.mid_fusion == "input" and config.fusion_op != "concat" else None
        self.joined_dims = self.stream_dims[:1] if self.input_op else self.stream_dims
        self.register_buffer("input_mean", torch.zeros(sum(self.joined_dims)))
        self.register_buffer("input_scale", torch.ones(sum(self.joined_dims)))
        self.encoder = encoder
        self.dropout = nn.Dropout(config.dropout)
        # Drops whole channels of (B, D, N): a feature is gone for all clips of a video or for none.
        self.input_dropout = nn.Dropout1d(config.input_dropout)
        # Equation 2 of Lakhal 2018 has no bias.
        self.classifier = nn.Linear(encoder.out_dim, num_classes, bias=config.name not in RESIDUAL_HEADS)
        nn.init.xavier_uniform_(self.classifier.weight)
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)
        self.output = config.output
        self.vote = config.vote if config.name == "vote" or config.readout == "steps" else None

    def joined(self, features: torch.Tensor) -> torch.Tensor:
        """Return the streams' features (..., D) joined to (..., D') if mid fusion joins them at the input, or as they are."""
        return join(features.split(self.stream_dims, dim=-1), self.input_op) if self.input_op else features

    def set_input_scaling(self, mean: np.ndarray, deviation: np.ndarray) -> None:
        """Scale inputs to (x - mean) / deviation from now on, both (D',), of joined features.

        A deviation is raised to at least a tenth of its stream's root mean square deviation: a ReLU feature that hardly
        ever fired in training would otherwise drown out all others in the one video where it does.
        """
        scales = []
        for part in np.split(np.asarray(deviation), np.cumsum(self.joined_dims)[:-1]):
            smallest = SMALLEST_DEVIATION * np.sqrt(np.mean(np.square(part)))
            scales.append(1.0 / np.maximum(part, smallest) if smallest > 0 else np.zeros(len(part)))
        self.input_mean.copy_(torch.from_numpy(np.asarray(mean)))
        self.input_scale.copy_(torch.from_numpy(np.concatenate(scales)))

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, E), what the dense layer sees in evaluation mode; (B, N, E) for `vote` and `readout="steps"`."""
        scaled = (self.joined(features) - self.input_mean) * self.input_scale
        if self.training and self.input_dropout.p:
            scaled = self.input_dropout(scaled.transpose(1, 2)).transpose(1, 2)
        return self.encoder(scaled, lengths)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, K) log probabilities for features (B, Nmax, D) float32 and lengths (B,) int64 on the CPU.

        With `output="sigmoid"` they are the sigmoids divided by their sum, as in Keras's categorical cross-entropy. (Keras
        then cuts probabilities below 1e-7 off, which stops their gradient and yields NaN where all underflow; we do not.)
        In training a `vote` head, or one whose every step is read out, returns the mean log probabilities of its clips
        instead: their negative log likelihood is the mean loss of the clips, so that each clip is trained by itself.
        """
        logits = self.classifier(self.dropout(self.encode(features, lengths))).float()
        if self.output == "sigmoid":
            # The logarithm of a sigmoid that underflows, or of a sum of such, is exact this way.
            logits = nn.functional.logsigmoid(logits)
        log_probabilities = nn.functional.log_softmax(logits, dim=-1)
        if self.vote is None:
            return log_probabilities
        if self.training:
            return mean_of_valid(log_probabilities, lengths)
        return vote(log_probabilities, lengths, self.vote)
