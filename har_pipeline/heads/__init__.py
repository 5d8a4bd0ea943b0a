"""Heads: networks on the stored features of a video. They know features and lengths, never an extractor."""

from __future__ import annotations

from har_pipeline.heads.classifier import SequenceClassifier, class_probabilities
from har_pipeline.heads.lstm import LSTMEncoder
from har_pipeline.heads.mean_pool import MeanPool, fit_logistic_regression
from har_pipeline.train_config import HeadConfig

__all__ = [
    "HeadConfig",
    "LSTMEncoder",
    "MeanPool",
    "SequenceClassifier",
    "build_head",
    "class_probabilities",
    "fit_logistic_regression",
]


def build_head(config: HeadConfig, feature_dim: int, num_classes: int) -> SequenceClassifier:
    """Return a new head for features (B, N, feature_dim) and `num_classes` classes, initialised from torch's seed."""
    encoder = LSTMEncoder(feature_dim, config.units) if config.name == "lstm" else MeanPool(feature_dim)
    return SequenceClassifier(encoder, feature_dim, encoder.out_dim, num_classes, config)
