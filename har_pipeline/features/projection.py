"""A feature set in a plane: the mean of each video, by PCA or t-SNE, to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from har_pipeline.core.errors import StoreError
from har_pipeline.features.reader import FeatureReader

ProjectionName = Literal["pca", "tsne"]
SEED = 0
# t-SNE is of that many principal components, as its authors advise (van der Maaten 2008).
TSNE_COMPONENTS, PERPLEXITY = 50, 30
FEWEST_VIDEOS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Videos as points of a plane."""

    points: np.ndarray  # (V, 2) float64
    axes: tuple[str, str]  # what the two coordinates are
    method: str  # in words


def video_means(
    store: FeatureReader, feature_set: str, video_ids: Sequence[str], on_video: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return (V, D) float32, the mean over the steps of each video's features. Raises: StoreError if one cannot be read."""
    means = np.empty((len(video_ids), store.spec(feature_set).feature_dim), np.float32)
    for row, video_id in enumerate(video_ids):
        means[row] = store.read(feature_set, video_id).features.mean(axis=0, dtype=np.float32)
        on_video()
    return means


def project(means: np.ndarray, how: ProjectionName) -> Projection:
    """Return the rows of (V, D) as points of a plane, the same on every call.

    Nothing is scaled first; t-SNE is of 50 principal components at most. The distances of t-SNE tell which videos are near
    each other, not how far groups are apart.
    Raises: StoreError with fewer than 5 videos or 2 dimensions, or if all videos have the same features.
    """
    from sklearn.decomposition import PCA  # slow to import

    videos, dim = means.shape
    if videos < FEWEST_VIDEOS or dim < 2:
        raise StoreError(f"a projection needs {FEWEST_VIDEOS} videos and 2 dimensions or more, not {videos} and {dim}")
    if not (means != means[0]).any():
        raise StoreError(f"all {videos} videos have the same features: there is nothing to project")
    components = min(2 if how == "pca" else TSNE_COMPONENTS, videos, dim)
    pca = PCA(components, svd_solver="randomized", random_state=SEED)
    reduced = pca.fit_transform(means.astype(np.float64))
    if how == "pca":
        shares = [
            f"component {k + 1} ({share:.0%} of the variance)" for k, share in enumerate(pca.explained_variance_ratio_)
        ]
        return Projection(points=reduced, axes=(shares[0], shares[1]), method="PCA")
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (videos - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(reduced)
    return Projection(
        points=points.astype(np.float64),
        axes=("t-SNE 1", "t-SNE 2"),
        method=f"t-SNE (perplexity {perplexity:.3g})",
    )
