from __future__ import annotations

import math

import numpy as np
import pytest

from har_pipeline.video.local.histograms import gradients, oriented, root_normalised, square_sums


def by_the_formula(x: np.ndarray, y: np.ndarray, bins: int, still: float | None) -> np.ndarray:
    """Return the planes of `oriented`, px by px."""
    planes = np.zeros((bins + (still is not None), *x.shape))
    for at in np.ndindex(*x.shape):
        length = math.hypot(x[at], y[at])
        if still is not None and length <= still:
            planes[(bins, *at)] = 1
            continue
        place = math.atan2(y[at], x[at]) % (2 * math.pi) * bins / (2 * math.pi)
        share = place - math.floor(place)
        planes[(math.floor(place) % bins, *at)] += length * (1 - share)
        planes[(math.floor(place + 1) % bins, *at)] += length * share
    return planes


def vectors(seed: int, height: int = 13, width: int = 17) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)
    return x, y


@pytest.mark.parametrize(("bins", "still"), [(8, None), (8, 0.4), (4, None), (9, 1.0)])
def test_directions_are_shared_as_by_the_direct_formula(bins: int, still: float | None) -> None:
    x, y = vectors(0)
    planes = oriented(x, y, bins, still)
    assert planes.dtype == np.float32
    # OpenCV's angles are approximations, to a hundredth of a degree.
    np.testing.assert_allclose(planes, by_the_formula(x, y, bins, still), atol=2e-3)


def test_a_vector_along_a_bin_is_in_that_bin_alone_and_one_between_is_halved() -> None:
    angles = np.deg2rad(np.arange(0, 360, 22.5, dtype=np.float32))[None]
    planes = oriented(3 * np.cos(angles), 3 * np.sin(angles), 8)[:, 0]
    for number in range(8):
        expected = np.zeros(8)
        expected[number] = 3
        np.testing.assert_allclose(planes[:, 2 * number], expected, atol=2e-3)
        expected[number] = expected[(number + 1) % 8] = 1.5
        np.testing.assert_allclose(planes[:, 2 * number + 1], expected, atol=2e-3)


def test_planes_sum_to_the_length() -> None:
    x, y = vectors(1)
    np.testing.assert_allclose(oriented(x, y, 8).sum(axis=0), np.hypot(x, y), rtol=1e-5)


def test_no_motion_counts_once_and_in_no_direction() -> None:
    nothing = np.zeros((2, 3), np.float32)
    planes = oriented(nothing, nothing, 8, still=0.4)
    assert planes.shape == (9, 2, 3)
    assert (planes[8] == 1).all()
    assert not planes[:8].any()


def test_gradients_are_central_differences() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8)
    x, y = gradients(grey)
    values = grey.astype(np.float32)
    np.testing.assert_array_equal(x[:, 1:-1], values[:, 2:] - values[:, :-2])
    np.testing.assert_array_equal(y[1:-1], values[2:] - values[:-2])
    assert not x[:, [0, -1]].any()
    assert not y[[0, -1]].any()


@pytest.mark.parametrize(("size", "side"), [((20, 23), 16), ((16, 16), 16), ((5, 9), 1), ((7, 6), 3)])
def test_sums_of_squares(size: tuple[int, int], side: int) -> None:
    planes = np.random.default_rng(0).random((3, *size), dtype=np.float32)
    sums = square_sums(planes, side)
    assert sums.shape == (size[0] - side + 1, size[1] - side + 1, 3)
    for y, x in np.ndindex(sums.shape[:2]):
        np.testing.assert_allclose(sums[y, x], planes[:, y : y + side, x : x + side].sum(axis=(1, 2)), rtol=1e-5)


def test_sums_of_a_single_plane_keep_their_shape() -> None:
    assert square_sums(np.ones((1, 4, 5), np.float32), 2).shape == (3, 4, 1)


def test_the_root_of_the_share() -> None:
    rows = np.array([[1, 3, 0, 0], [0, 0, 0, 0], [1e6, 0, 0, 0]], np.float32)
    root = root_normalised(rows, 0.01)
    np.testing.assert_allclose(root[0], np.sqrt(np.array([1.01, 3.01, 0.01, 0.01]) / 4.04), rtol=1e-6)
    np.testing.assert_allclose(root[1], 0.5)
    np.testing.assert_allclose(np.linalg.norm(root, axis=1), 1, rtol=1e-6)
    assert root_normalised(np.empty((0, 4), np.float32), 0.01).shape == (0, 4)
