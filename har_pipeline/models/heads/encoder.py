"""What every encoder is: a module that knows the size of what it gives."""

from __future__ import annotations

from torch import nn


class Encoder(nn.Module):
    """Takes features (B, Nmax, D) and lengths (B,) int64 on the CPU; gives (B, out_dim), or (B, Nmax, out_dim)."""

    out_dim: int
