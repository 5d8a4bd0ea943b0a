from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from har_pipeline.video.contrast import local_contrast


def by_the_formula(x: np.ndarray) -> np.ndarray:
    """Return the normalised clip (T, H, W) float64, voxel by voxel as Jarrett 2009 writes it."""

    def mean(values: np.ndarray, at: tuple[int, ...]) -> float:
        total = weight = 0.0
        for step in itertools.product(range(-3, 4), repeat=3):
            place = tuple(a + s for a, s in zip(at, step, strict=True))
            if all(0 <= p < size for p, size in zip(place, values.shape, strict=True)):
                own = float(np.exp(-sum(s * s for s in step) / (2 * 1.75**2)))
                total, weight = total + own * values[place], weight + own
        return total / weight

    places = list(np.ndindex(*x.shape))
    v, s = np.empty(x.shape), np.empty(x.shape)
    for at in places:
        v[at] = x[at] - mean(x, at)
    for at in places:
        s[at] = mean(v**2, at) ** 0.5
    return v / np.maximum(max(s.mean(), 1 / 255), s)


@pytest.mark.parametrize("shape", [(9, 8, 10), (3, 5, 12), (1, 9, 2)])
def test_it_is_the_direct_formula(shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).random(shape)
    np.testing.assert_allclose(local_contrast(torch.from_numpy(x)).numpy(), by_the_formula(x), atol=1e-12)


def test_clips_of_a_batch_are_normalised_each_by_itself() -> None:
    clips = torch.rand(3, 1, 9, 12, 10)
    clips[1] *= 0.1
    for one, alone in zip(local_contrast(clips), clips, strict=True):
        torch.testing.assert_close(one, local_contrast(alone))


def test_brightness_and_contrast_of_a_whole_clip_have_no_effect() -> None:
    clip = 0.25 + 0.5 * torch.rand(9, 54, 34, dtype=torch.float64)
    torch.testing.assert_close(local_contrast(0.4 * clip + 0.1), local_contrast(clip))


def test_a_clip_that_shows_nothing_gives_zeros_and_noise_of_a_grey_level_stays_small() -> None:
    assert local_contrast(torch.full((9, 54, 34), 0.6)).abs().max() < 1e-3
    noise = torch.randint(100, 102, (9, 54, 34)) / 255
    assert local_contrast(noise).abs().max() <= 0.75


def test_mirrored_clips_give_mirrored_results() -> None:
    clip = torch.rand(9, 54, 34, dtype=torch.float64)
    for axis in (1, 2):
        torch.testing.assert_close(local_contrast(clip.flip(axis)), local_contrast(clip).flip(axis))


def test_mixed_precision_does_not_reach_it() -> None:
    clip = torch.rand(1, 9, 54, 34)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(local_contrast(clip), local_contrast(clip.double()).float(), atol=1e-4, rtol=1e-4)
