"""TODO"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from har_pipeline.core.errors import RunError
from har_pipeline.inference.load import Run
from har_pipeline.models.heads import class_probabilities
from har_pipeline.training.batches import Batch
from har_pipeline.video.clips import sparse_clip_indices


def predict_scores(run: Run, features: np.ndarray) -> np.ndarray:
    """Return (K,) float64 class probabilities of one video from its (N, D) features, made as the run's spec says.

    Raises: RunError if there is no clip, D is not the run's, or a feature is not finite.
    """
    wanted = len(run.head.input_mean)
    if features.ndim != 2 or not len(features) or features.shape[1] != wanted:
        raise RunError(f"{run.path}: the head reads features (N >= 1, {wanted}), but got {features.shape}")
    if not np.isfinite(features).all():
        raise RunError(f"{run.path}: a feature of the video is not finite")
    if run.config.num_steps is not None:
        features = features[sparse_clip_indices(len(features), run.config.num_steps)]
    batch = Batch(
        torch.from_numpy(np.ascontiguousarray(features, np.float32))[None].to(run.head.input_mean.device),
        torch.tensor([len(features)]),
        torch.zeros(1, dtype=torch.int64),
    )
    return class_probabilities(run.head, [batch])[0]


def top_k(classes: Sequence[str], probabilities: np.ndarray, k: int = 3) -> list[tuple[str, float]]:
    """Return the k most probable (class, probability), best first; fewer if there are fewer classes."""
    order = np.argsort(-np.asarray(probabilities), kind="stable")[:k]
    return [(classes[number], float(probabilities[number])) for number in order]
