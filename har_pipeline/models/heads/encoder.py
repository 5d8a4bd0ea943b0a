"""The base class of encoders."""

from __future__ import annotations

from torch import nn


class Encoder(nn.Module):
    """A module from features (B, Nmax, D) and lengths (B,) int64 on the CPU to (B, out_dim) or (B, Nmax, out_dim)."""

    out_dim: int
