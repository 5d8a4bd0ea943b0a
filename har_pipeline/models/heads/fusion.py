"""Mid fusion: several streams of the same clips, joined before one encoder or after an encoder each.

The streams' features are concatenated in one (B, N, D1 + D2 + ...) tensor, aligned by clip time. `SequenceClassifier` joins
them for one encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from har_pipeline.models.heads.encoder import Encoder


def join(streams: Sequence[torch.Tensor], op: str) -> torch.Tensor:
    """Return the sum, the product or the concatenation (`concat`, over the last axis) of tensors.

    Source: Lakhal 2018, section 3.2 (sum and product); the concatenation is ours.
    """
    if op == "concat":
        return torch.cat(list(streams), dim=-1)
    result = streams[0]
    for other in streams[1:]:
        result = result + other if op == "sum" else result * other
    return result


class HiddenFusion(Encoder):
    """An encoder per stream, whose states (B, E_s) are joined. Ours."""

    def __init__(self, stream_dims: Sequence[int], op: str, encoders: Sequence[Encoder]) -> None:
        super().__init__()
        self.stream_dims, self.op = list(stream_dims), op
        dims = [encoder.out_dim for encoder in encoders]
        self.out_dim = sum(dims) if op == "concat" else dims[0]
        self.encoders = nn.ModuleList(encoders)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, out_dim) for features (B, Nmax, sum D) and lengths (B,) on the CPU."""
        streams = features.split(self.stream_dims, dim=-1)
        pairs = zip(self.encoders, streams, strict=True)
        return join([encoder(stream.contiguous(), lengths) for encoder, stream in pairs], self.op)
