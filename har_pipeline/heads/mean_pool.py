"""The baseline that knows no order: the mean of a video's clips, and logistic regression on it."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn


class MeanPool(nn.Module):
    """Mean over the valid clips of each video."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.out_dim = feature_dim

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (B, D) for features (B, Nmax, D) and lengths (B,)."""
        lengths = lengths.to(features.device)
        valid = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        return (features * valid[..., None]).sum(dim=1) / lengths[:, None]


def fit_logistic_regression(
    features: np.ndarray, labels: np.ndarray, *, num_classes: int, c: float, max_iterations: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Fit scikit-learn's logistic regression; returns weights (K, D), biases (K,) and whether it converged.

    features: (V, D); labels: (V,) class numbers, each of the K >= 2 classes at least once. A softmax over
    `features @ weights.T + biases` gives the probabilities, for two classes as for more.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=max_iterations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    weights, biases = model.coef_, model.intercept_
    if num_classes == 2:
        # scikit-learn keeps one row, whose sigmoid is the second class: the softmax of (0, z) is that sigmoid.
        weights, biases = np.concatenate([np.zeros_like(weights), weights]), np.array([0.0, biases[0]])
    return weights, biases, converged
