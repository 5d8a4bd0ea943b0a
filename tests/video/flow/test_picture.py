"""Pictures of flow."""

from __future__ import annotations

import numpy as np
import pytest

from har_pipeline.video.flow.picture import colour_wheel, flow_to_rgb


def test_colour_wheel_is_the_published_one() -> None:
    wheel = colour_wheel()
    assert wheel.shape == (55, 3)
    expected = {0: (255, 0, 0), 14: (255, 238, 0), 15: (255, 255, 0), 21: (0, 255, 0), 25: (0, 255, 255)}
    expected |= {26: (0, 232, 255), 36: (0, 0, 255), 49: (255, 0, 255), 54: (255, 0, 43)}
    for index, colour in expected.items():
        np.testing.assert_allclose(wheel[index], colour, atol=1, err_msg=str(index))


def test_picture_of_a_flow() -> None:
    vectors = [(0, 0), (5, 0), (0, 5), (-5, 0), (0, -5), (2.5, 0), (7, 0)]
    picture = flow_to_rgb(np.array([vectors], np.float32), 5.0)
    assert picture.dtype == np.uint8
    assert picture.shape == (1, 7, 3)
    still, right, down, left, up, slower, too_fast = picture[0].astype(int)
    assert tuple(still) == (255, 255, 255)
    assert right[0] == 255
    assert right[1:].max() < 45
    assert down[0] > 200
    assert down[1] > 200
    assert down[2] == 0
    assert left[0] == 0
    assert left[1:].min() > 200
    assert up[2] == 255
    assert up[1] < 45
    np.testing.assert_allclose(slower, (255 + right) / 2, atol=1)
    np.testing.assert_allclose(too_fast, right * 0.75, atol=1)
    with pytest.raises(ValueError, match="max_px"):
        flow_to_rgb(np.zeros((2, 2, 2), np.float32), 0.0)
