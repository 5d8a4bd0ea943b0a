"""Random views of training frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.models.convlstm.augment import draw_views, take_views


def view(zoom_y: float = 1, zoom_x: float = 1, shift_y: float = 0, shift_x: float = 0) -> np.ndarray:
    return np.array([[zoom_y, zoom_x, shift_y, shift_x]])


def numbered(size: int = 6, frames: int = 2) -> torch.Tensor:
    """One video whose pixels all differ."""
    return torch.arange(1, frames * size * size + 1, dtype=torch.float32).view(1, frames, 1, size, size)


def test_the_plain_view_changes_nothing() -> None:
    assert torch.equal(take_views(numbered(), view()), numbered())


def test_a_shift_by_hand() -> None:
    found = take_views(numbered(), view(shift_y=1 / 6, shift_x=-2 / 6))
    assert torch.equal(found[..., 1:, :4], numbered()[..., :5, 2:])
    assert found[..., 0, :].abs().max() == 0
    assert found[..., :, 4:].abs().max() == 0


def test_a_zoom_by_hand() -> None:
    twice = take_views(numbered(6), view(zoom_x=2))
    # Around the centre, 2.5: pixels -0.5 and 0.5 of it are both seen at the one source pixel next to it, and so on.
    expected = [1, 2, 2, 3, 3, 4]
    assert torch.equal(twice, numbered(6)[..., expected])
    half = take_views(numbered(7), view(zoom_y=0.5))
    assert torch.equal(half[..., 2:5, :], numbered(7)[..., [1, 3, 5], :])
    assert half[..., [0, 1, 5, 6], :].abs().max() == 0


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9))
def test_views_are_within_bounds(seed: int, amount: float) -> None:
    views = draw_views(50, amount, np.random.default_rng(seed))
    assert views.shape == (50, 4)
    assert np.abs(np.log(views[:, :2])).max() <= math.log1p(amount) * (1 + 1e-12)
    assert np.abs(views[:, 2:]).max() <= amount
    assert len(np.unique(views)) == 200


@given(st.integers(0, 2**32 - 1))
def test_no_value_is_made_up_and_each_video_has_its_own_view(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips = torch.from_numpy(rng.integers(1, 255, (3, 4, 2, 9, 7)).astype(np.float32))
    views = draw_views(3, 0.5, rng)
    found = take_views(clips, views)
    assert found.shape == clips.shape
    assert set(found.unique().tolist()) <= {0.0, *clips.unique().tolist()}
    for one in range(3):
        alone = take_views(clips[one : one + 1], views[one : one + 1])
        assert torch.equal(found[one], alone[0])
        for frame in range(4):
            assert torch.equal(
                take_views(clips[one : one + 1, frame : frame + 1], views[one : one + 1]), alone[:, frame : frame + 1]
            )


@pytest.mark.parametrize("axis", [0, 1])
def test_axes_are_not_mistaken_for_each_other(axis: int) -> None:
    clips = torch.rand(1, 1, 1, 5, 9) + 1
    shift = view(shift_y=1 / 5) if axis == 0 else view(shift_x=1 / 9)
    found = take_views(clips, shift)
    assert torch.equal(
        found[..., 1:, :] if axis == 0 else found[..., 1:], clips[..., :-1, :] if axis == 0 else clips[..., :-1]
    )
