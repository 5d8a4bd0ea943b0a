"""The attentive probe: a learned query reads all of a video's features at once, in no order, by cross-attention.

Source: Bardes 2024 (V-JEPA), section 4.2 and its `AttentivePooler`: the query attends to the normalised features, then an MLP,
both with residual connections, and a linear layer classifies. V-JEPA 2 (Assran 2025) has three self-attention blocks of the
features before it. Unlike there, weights start Glorot-uniform, as features may be few.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from har_pipeline.models.heads.encoder import Encoder
from har_pipeline.models.heads.pooling import valid_clips

# Values that each head of the attention has, as in Vision Transformers, where they divide the width.
HEAD_DIM = 64
MLP_RATIO = 4
QUERY_STD = 0.02


def num_attention_heads(width: int) -> int:
    """Return how many heads read `width` values: as many as have 64 each, or the next fewer that divide the width."""
    return next(count for count in range(max(1, width // HEAD_DIM), 0, -1) if width % count == 0)


class AttentionBlock(nn.Module):
    """Multi-head attention to the normalised context, and an MLP of four times the width, each added to what it was given.

    Without a context it is self-attention, whose queries are normalised too. The arithmetic is `nn.MultiheadAttention`'s.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = num_attention_heads(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        up, down = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)
        self.mlp = nn.Sequential(up, nn.GELU(), down)
        for layer in (self.q, self.kv, self.proj, up, down):
            for part in layer.weight.chunk(2 if layer is self.kv else 1):
                nn.init.xavier_uniform_(part)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, valid: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return (B, Q, W) for x (B, Q, W), a context (B, N, W) or None for x itself, and valid (B, N) bool of the latter."""
        seen = self.norm1(x if context is None else context)
        q, (k, v) = self.q(seen if context is None else x), self.kv(seen).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
        x = x + self.proj(read.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class AttentiveEncoder(Encoder):
    """A learned query that reads all features by cross-attention, after `num_layers` - 1 blocks of self-attention."""

    def __init__(self, feature_dim: int, num_layers: int = 1) -> None:
        super().__init__()
        self.out_dim = feature_dim
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, feature_dim), std=QUERY_STD))
        self.blocks = nn.ModuleList(AttentionBlock(feature_dim) for _ in range(num_layers))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, D) for features (B, Nmax, D) and lengths (B,); padding has no effect, nor has the order of features."""
        valid = valid_clips(features, lengths)
        for block in self.blocks[:-1]:
            features = block(features, valid)
        query = self.query.to(features.dtype).expand(len(features), -1, -1)
        return self.blocks[-1](query, valid, features)[:, 0]
