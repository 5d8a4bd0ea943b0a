"""Feature sets in a plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store

from har_pipeline.core.errors import StoreError
from har_pipeline.features.projection import project, video_means


def test_a_video_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    features, _ = blobs(["a", "b"], 3, dim=6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    ids = list(features)[::-1]
    seen: list[int] = []
    means = video_means(store, name, ids, lambda: seen.append(1))
    assert len(seen) == len(ids)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, [features[video_id].mean(axis=0) for video_id in ids], rtol=1e-5)


def test_pca_is_that_of_the_singular_values() -> None:
    means = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32) * np.arange(1, 13)
    found = project(means, "pca")
    centred = means.astype(np.float64) - means.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points), np.abs(left[:, :2] * values[:2]), rtol=1e-3, atol=1e-2)
    shares = values**2 / (values**2).sum()
    assert found.axes[0] == f"component 1 ({shares[0]:.0%} of the variance)"


@pytest.mark.parametrize("how", ["pca", "tsne"])
def test_groups_stay_apart_and_every_call_draws_the_same(how: str) -> None:
    rng = np.random.default_rng(0)
    means = np.concatenate([rng.normal(8 * k, 1, (12, 20)) for k in range(3)]).astype(np.float32)
    first, second = project(means, how), project(means, how)  # type: ignore[arg-type]
    assert first.points.shape == (36, 2)
    np.testing.assert_array_equal(first.points, second.points)
    centres = first.points.reshape(3, 12, 2).mean(axis=1)
    spread = np.abs(first.points.reshape(3, 12, 2) - centres[:, None]).max()
    nearest = min(np.linalg.norm(centres[i] - centres[j]) for i in range(3) for j in range(i))
    assert nearest > spread


def test_few_videos_have_a_projection_and_fewer_none() -> None:
    rng = np.random.default_rng(0)
    for how in ("pca", "tsne"):
        assert project(rng.normal(size=(5, 3)).astype(np.float32), how).points.shape == (5, 2)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="5 videos and 2 dimensions or more, not 4 and 3"):
            project(rng.normal(size=(4, 3)).astype(np.float32), how)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="all 6 videos have the same features"):
            project(np.ones((6, 3), np.float32), how)  # type: ignore[arg-type]
