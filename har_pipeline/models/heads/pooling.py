"""Heads that ignore the order of clips: the mean over a video's clips, fitted by scikit-learn, and clip by clip."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import nn

from har_pipeline.evaluation.fusion import fit_temperature
from har_pipeline.models.config import LinearKind
from har_pipeline.models.heads.encoder import Encoder

# An SVM on more values than these, and wider than it has videos, is solved in the span of the videos: the solver would copy
# them all, at 16 bytes a value.
WIDE = 2**26
SPAN_COLUMNS = 4096
# Of the training videos, for the decision values that the calibration reads.
FOLDS = 5


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
    dual: bool | None = None,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Fit a linear classifier of scikit-learn; returns weights (K, D), biases (K,), whether it converged.

    features: (V, D); labels: (V,) class numbers, each of the K >= 2 classes at least once. The softmax of
    `features @ weights.T + biases` is the logistic regression's probability, for two classes too. The linear SVM and the
    ridge classifier (least squares on targets -1 and 1) have no probabilities: the softmax of their decision values orders
    the classes as they do, but is not calibrated; `fit_svm` calibrates. c: inverse strength of the L2 penalty; ridge: alpha =
    1 / (2 c). dual: which of its two problems the SVM solves; None: the smaller one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.svm import LinearSVC

    weighting = "balanced" if balanced else None
    model: LinearSVC | LogisticRegression | RidgeClassifier
    if kind == "svm":
        way = "auto" if dual is None else dual
        model = LinearSVC(C=c, max_iter=max_iterations, class_weight=weighting, random_state=seed, dual=way)
    elif kind == "ridge":
        # In closed form. In float32 the solver would find a small penalty's matrix singular.
        model = RidgeClassifier(alpha=1 / (2 * c), class_weight=weighting)
        features = features.astype(np.float64)
    else:
        model = LogisticRegression(C=c, max_iter=max_iterations, class_weight=weighting)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        # Folds of classes with one or two videos are no regression problem.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit(features, labels)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    # Of two classes a ridge classifier may keep a vector.
    weights, biases = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if num_classes == 2:
        # scikit-learn keeps one row, whose sigmoid is the second class: the softmax of (0, z) is that sigmoid.
        weights, biases = np.concatenate([np.zeros_like(weights), weights]), np.array([0.0, biases[0]])
    return weights, biases, converged


def is_wide(videos: int, dim: int) -> bool:
    """Return whether `fit_svm` solves a problem of this size in the span of its videos."""
    return videos * dim > WIDE and dim > videos


def fit_svm(
    features: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray | None = None,
    *,
    num_classes: int,
    c: float,
    max_iterations: int,
    balanced: bool = False,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray]:
    """Fit a linear SVM whose softmax is calibrated; returns weights (K, D), biases (K,), whether it converged, and of which
    of the K classes decision values were held out.

    The decision values of `fit_linear` times one number, so that the order of classes stays: that of the highest likelihood
    for the training videos' held-out decision values, of SVMs on five stratified folds of them. units: (V,) numbers of what
    folds must not divide, such as the group that a video is of; None: folds divide everything. A class of a single unit has
    no held-out values and shares the number of the others; if no class has any, the number is 1.
    """
    fit = functools.partial(fit_linear, kind="svm", c=c, max_iterations=max_iterations, balanced=balanced, seed=seed)
    # Folds need no more than the span, which is faster.
    deep = features.shape[1] > len(features) and bool(features.any())  # zeros span nothing
    rows, back = span(features) if deep else (features, lambda weights: weights)
    if deep and is_wide(*features.shape):
        weights, biases, converged = fit(rows, labels, num_classes=num_classes, dual=True)
        weights = back(weights)
    else:
        weights, biases, converged = fit(features, labels, num_classes=num_classes)
    values, truth = [], []
    for train, held in _folds(labels, np.arange(len(labels)) if units is None else units, seed):
        known = np.unique(labels[train])
        if len(known) < min(3, num_classes):
            continue  # two of several classes would have one decision value instead of two
        own, offsets, _ = fit(rows[train], np.searchsorted(known, labels[train]), num_classes=len(known))
        held = held[np.isin(labels[held], known)]
        decisions = np.full((len(held), num_classes), -1.0)  # what an SVM says of a class that it has never seen
        decisions[:, known] = rows[held] @ own.T + offsets
        values.append(decisions)
        truth.append(labels[held])
    true = np.concatenate([np.zeros(0, np.int64), *truth])
    told = np.bincount(true, minlength=num_classes) > 0
    scale = 1 / fit_temperature(_softmax(np.concatenate(values)), true) if len(true) else 1.0
    return scale * weights, scale * biases, converged, told


def _softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _folds(labels: np.ndarray, units: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the positions that each of up to five folds trains on and holds out; no unit is on both sides."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    number = np.unique(units, return_inverse=True)[1]
    count = min(FOLDS, int(np.bincount(labels).max()), int(number.max()) + 1)
    if count < 2:
        return
    divided = len(np.unique(number)) == len(labels)
    folds = (StratifiedKFold if divided else StratifiedGroupKFold)(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class with fewer videos than folds
        found = list(folds.split(labels, labels, number))
    yield from found


def span(features: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return (V, r) float64 with the scalar products of (V, D) rows, and what turns weights (K, r) for it into (K, D).

    A linear classifier with an L2 penalty has its weights in the span of the rows, so that both have one solution. Memory: a
    few (V, V) matrices instead of copies of the rows. From the Gram matrix by Cholesky's method with pivots.
    """
    from scipy.linalg import get_blas_funcs, get_lapack_funcs, solve_triangular

    syrk, pstrf = get_blas_funcs("syrk", dtype=np.float64), get_lapack_funcs("pstrf", dtype=np.float64)
    columns = [slice(first, first + SPAN_COLUMNS) for first in range(0, features.shape[1], SPAN_COLUMNS)]
    gram = np.zeros((len(features), len(features)), order="F")
    for part in columns:
        gram = syrk(1.0, np.asfortranarray(features[:, part], np.float64), beta=1.0, c=gram, lower=1, overwrite_c=1)
    factor, order, rank, _ = pstrf(gram, lower=1, overwrite_a=1)
    pivots, lower = order - 1, np.tril(factor)[:, :rank]
    rows = np.empty_like(lower, order="C")
    rows[pivots] = lower

    def back(weights: np.ndarray) -> np.ndarray:
        shares = solve_triangular(lower[:rank], weights.T, trans="T", lower=True).T
        chosen = pivots[:rank]
        return np.concatenate([shares @ features[chosen, part].astype(np.float64) for part in columns], axis=1)

    return rows, back
