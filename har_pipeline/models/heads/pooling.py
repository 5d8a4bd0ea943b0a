"""Heads that ignore the order of clips: the mean over a video's clips, fitted by scikit-learn, and clip by clip."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from torch import nn

from har_pipeline.models.config import LinearKind
from har_pipeline.models.heads.encoder import Encoder


def valid_clips(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return (B, Nmax) bool, False in the padding, on the device of features (B, Nmax, ...)."""
    return torch.arange(features.shape[1], device=features.device) < lengths.to(features.device)[:, None]


def mean_of_valid(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return (B, E), the mean of (B, Nmax, E) over each video's valid clips; padding has no effect."""
    valid = valid_clips(values, lengths)[..., None]
    # Not a product with the mask: a score of minus infinity in the padding would become NaN.
    return torch.where(valid, values, 0.0).sum(dim=1) / lengths.to(values.device)[:, None]


class MeanPool(Encoder):
    """Mean over the valid clips of each video."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.out_dim = feature_dim

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, D) for features (B, Nmax, D) and lengths (B,)."""
        return mean_of_valid(features, lengths)


class PerClip(Encoder):
    """Every clip by itself: passes the features on, for a dense layer that classifies each clip."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.out_dim = feature_dim

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the features (B, Nmax, D)."""
        return features


def vote(log_probabilities: torch.Tensor, lengths: torch.Tensor, how: Literal["soft", "majority"]) -> torch.Tensor:
    """Return (B, K) log probabilities of videos from those of their clips (B, Nmax, K).

    `soft`: the mean of the clips' probabilities. `majority`: the share of clips whose best class it is; a tie goes to the
    class with the higher mean probability, which adds at most a millionth.
    """
    probabilities = log_probabilities.exp()
    mean = mean_of_valid(probabilities, lengths)
    if how == "soft":
        return mean.log()
    votes = nn.functional.one_hot(probabilities.argmax(dim=-1), probabilities.shape[-1]).to(mean.dtype)
    return ((mean_of_valid(votes, lengths) + 1e-6 * mean) / (1 + 1e-6)).log()


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    kind: LinearKind = "logistic",
    c: float,
    max_iterations: int,
    balanced: bool = False,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Fit a linear classifier of scikit-learn; returns weights (K, D), biases (K,), whether it converged.

    features: (V, D); labels: (V,) class numbers, each of the K >= 2 classes at least once. The softmax of
    `features @ weights.T + biases` is the logistic regression's probability, for two classes too. The linear SVM and the
    ridge classifier (least squares on targets -1 and 1) have no probabilities: the softmax of their decision values orders
    the classes as they do, but is not calibrated. c: inverse strength of the L2 penalty; ridge: alpha = 1 / (2 c).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.svm import LinearSVC

    weighting = "balanced" if balanced else None
    model: LinearSVC | LogisticRegression | RidgeClassifier
    if kind == "svm":
        model = LinearSVC(C=c, max_iter=max_iterations, class_weight=weighting, random_state=seed)
    elif kind == "ridge":
        # In closed form. In float32 the solver would find a small penalty's matrix singular.
        model = RidgeClassifier(alpha=1 / (2 * c), class_weight=weighting)
        features = features.astype(np.float64)
    else:
        model = LogisticRegression(C=c, max_iter=max_iterations, class_weight=weighting)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    # Of two classes a ridge classifier may keep a vector.
    weights, biases = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if num_classes == 2:
        # scikit-learn keeps one row, whose sigmoid is the second class: the softmax of (0, z) is that sigmoid.
        weights, biases = np.concatenate([np.zeros_like(weights), weights]), np.array([0.0, biases[0]])
    return weights, biases, converged
