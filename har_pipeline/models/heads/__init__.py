"""Heads: networks on the stored features of a video. They see features and lengths, never an extractor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from har_pipeline.core.errors import RunError
from har_pipeline.models.config import RESIDUAL_HEADS, HeadConfig
from har_pipeline.models.heads.attentive import AttentiveEncoder
from har_pipeline.models.heads.classifier import SequenceClassifier
from har_pipeline.models.heads.encoder import Encoder
from har_pipeline.models.heads.fusion import HiddenFusion
from har_pipeline.models.heads.pooling import MeanPool, PerClip, fit_linear, fit_svm
from har_pipeline.models.heads.recurrent import AttentionEncoder, ProjectedEncoder, RecurrentEncoder, StackedEncoder

__all__ = ["HeadConfig", "SequenceClassifier", "build_head", "fit_linear", "fit_svm"]


def build_head(config: HeadConfig, stream_dims: int | Sequence[int], num_classes: int) -> SequenceClassifier:
    """Return a new head for features (B, N, D) and `num_classes` classes, initialised from torch's seed.

    stream_dims: D, or with mid fusion the D of each stream, whose features are concatenated.
    Raises: RunError for several streams without mid fusion, one stream with it, or streams that cannot be joined.
    """
    dims = [stream_dims] if isinstance(stream_dims, int) else list(stream_dims)
    if config.mid_fusion is None:
        if len(dims) > 1:
            raise RunError(f"{len(dims)} streams need --mid-fusion input or hidden")
        encoder = _encoder(config, dims[0])
    elif len(dims) < 2:
        raise RunError("mid fusion needs several streams: name two or more feature sets, each with --features")
    else:
        encoder = _fused_encoder(config, dims)
    return SequenceClassifier(encoder, dims, num_classes, config)


def _fused_encoder(config: HeadConfig, dims: Sequence[int]) -> Encoder:
    op = config.fusion_op
    if config.mid_fusion == "input":
        if op != "concat" and len(set(dims)) > 1:
            raise RunError(
                f"streams of sizes {dims} have no {op}: use --fusion-op concat, --mid-fusion hidden, or reduce them to "
                "one size with `har features reduce`"
            )
        return _encoder(config, sum(dims) if op == "concat" else dims[0])
    encoders = [_encoder(config, dim) for dim in dims]
    sizes = [encoder.out_dim for encoder in encoders]
    if op != "concat" and len(set(sizes)) > 1:
        raise RunError(
            f"{config.name} states of sizes {sizes} have no {op}: use --fusion-op concat, or give the streams one size "
            "with --input-projection"
        )
    return HiddenFusion(dims, op, encoders)


def _encoder(config: HeadConfig, dim: int) -> Encoder:
    if config.input_projection is None:
        return _plain_encoder(config, dim)
    return ProjectedEncoder(dim, config.input_projection, _plain_encoder(config, config.input_projection))


def _plain_encoder(config: HeadConfig, dim: int) -> Encoder:
    if config.name in RESIDUAL_HEADS:
        return StackedEncoder(dim, config.num_layers, skips=config.name == "res_lstm", dropout=config.dropout)
    if config.name == "attention":
        return AttentionEncoder(dim, config.units, config.num_layers, dropout=config.dropout)
    if config.name == "attentive":
        return AttentiveEncoder(dim, config.num_layers)
    if config.name == "vote":
        return PerClip(dim)
    if config.name in ("lstm", "gru", "bilstm"):
        return RecurrentEncoder(
            dim,
            config.units,
            config.num_layers,
            cell=nn.GRU if config.name == "gru" else nn.LSTM,
            bidirectional=config.name == "bilstm",
            dropout=config.dropout,
            forget_gate=config.forget_gate,
            every_step=config.readout == "steps",
        )
    return MeanPool(dim)
