from __future__ import annotations

import cv2
import numpy as np
import pytest

from har_pipeline.synthetic.render import (
    TEXTURE_SIZE,
    Body,
    cast_shadow,
    draw_colour,
    draw_depth,
    draw_flow,
    move_image,
)

AMBIENT = np.array([0, 0, 0, 1], np.float32)


def capsules(
    ends: list[list[list[list[float]]]],
    radii: float = 12.0,
    depth: list[float] | None = None,
    roll: tuple[float, float] = (0.0, 0.0),
) -> Body:
    """Two frames of capsules with a smooth texture; ends: frame, part, end, x and y."""
    points = np.array(ends, np.float32)
    frames, parts = points.shape[:2]
    rows, columns = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] * (2 * np.pi / TEXTURE_SIZE)
    texture = np.stack([128 + 90 * np.cos(columns), 128 + 60 * np.sin(rows), 128 + 40 * np.sin(columns)], -1)
    depths = np.ones((frames, parts, 2), np.float32) * np.array(depth or [4000.0] * parts, np.float32)[:, None]
    return Body(
        ends=points,
        radii=np.full((frames, parts, 2), radii, np.float32),
        depths=depths,
        radii_mm=np.full((frames, parts, 2), 100.0, np.float32),
        rolls=np.array(roll[:frames], np.float32)[:, None] * np.ones((1, parts), np.float32),
        textures=np.tile(texture.astype(np.float32), (parts, 1, 1, 1)),
    )


@pytest.mark.parametrize(
    ("second", "roll"),
    [
        ([[44.5, 31.25], [44.5, 91.25]], (0.0, 0.0)),
        ([[40, 30], [78, 72]], (0.0, 0.0)),
        ([[40, 30], [40, 60]], (0.0, 0.0)),
        ([[70, 90], [70, 30]], (0.0, 0.0)),
        ([[42, 30], [42, 90]], (0.3, 0.9)),
    ],
    ids=["shift", "rotation", "foreshortening", "upside down", "turn about the axis"],
)
def test_flow_leads_to_the_same_point_of_the_texture(second: list[list[float]], roll: tuple[float, float]) -> None:
    body = capsules([[[[40, 30], [40, 90]]], [second]], roll=roll)
    now, after = (draw_colour(body, frame, 120, 110, AMBIENT)[0] for frame in (0, 1))
    flow = draw_flow(body, 0, np.zeros((120, 110, 2), np.float32))
    x, y = np.meshgrid(np.arange(110, dtype=np.float32), np.arange(120, dtype=np.float32))
    back = cv2.remap(after, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
    # Away from the sides, where a column of the texture is thinner than a pixel and may turn out of sight.
    inside = np.zeros((120, 110), bool)
    inside[32:88, 33:48] = True
    assert np.abs(back - now)[inside].mean() < 2.5
    assert np.abs(after - now)[inside].mean() > 8


def test_flow_of_growth_is_radial_and_the_background_keeps_its_own() -> None:
    body = capsules([[[[40, 30], [40, 90]]], [[[40, 30], [40, 90]]]])
    body.radii[1] *= 1.5
    flow = draw_flow(body, 0, np.full((120, 110, 2), 0.25, np.float32))
    np.testing.assert_allclose(flow[60, 30:51, 0], 0.5 * np.arange(-10, 11), atol=1e-4)
    np.testing.assert_allclose(flow[60, 30:51, 1], 0.0, atol=1e-4)
    assert (flow[:, 60:] == 0.25).all()


def test_the_nearer_part_hides_the_farther_in_colour_depth_and_flow() -> None:
    ends = [[[[30, 60], [80, 60]], [[55, 30], [55, 90]]]] * 2
    for depths, front in (([3000.0, 4000.0], 0), ([4000.0, 3000.0], 1)):
        body = capsules(ends, radii=8.0, depth=depths)
        body.textures[0], body.textures[1] = 50.0, 200.0
        body.ends[1, 1, :, 0] += 3.0
        colour, coverage = draw_colour(body, 0, 120, 110, AMBIENT)
        assert colour[60, 55, 0] == pytest.approx((50.0, 200.0)[front])
        assert draw_depth(body, 0, 120, 110)[60, 55] == pytest.approx(2900.0, abs=1.0)
        assert draw_flow(body, 0, np.zeros((120, 110, 2), np.float32))[60, 55, 0] == pytest.approx(
            3.0 * front, abs=1e-4
        )
        assert coverage[60, 55] == 1.0
        assert coverage[5, 5] == 0.0


def test_depth_bulges_by_the_radius_and_ends_at_the_rim() -> None:
    depth = draw_depth(capsules([[[[40, 30], [40, 90]]]]), 0, 120, 110)
    assert depth[60, 40] == pytest.approx(3900.0, abs=0.1)
    assert depth[60, 46] == pytest.approx(4000 - 100 * np.sqrt(1 - 0.25), abs=0.1)
    assert depth[60, 54] == 0.0
    assert (depth[depth > 0] <= 4000).all()


def test_light_from_the_left_brightens_the_left() -> None:
    body = capsules([[[[40, 30], [40, 90]]]])
    body.textures[:] = 100.0
    colour, _ = draw_colour(body, 0, 120, 110, np.array([-1, 0, 0, 0.5], np.float32))
    assert colour[60, 32, 0] > 100
    assert colour[60, 48, 0] == pytest.approx(50.0)


def test_coverage_at_the_rim_is_the_covered_share() -> None:
    _, coverage = draw_colour(capsules([[[[40.25, 30], [40.25, 90]]]]), 0, 120, 110, AMBIENT)
    np.testing.assert_allclose(coverage[60, [28, 52]], [0.25, 0.75], atol=1e-4)
    assert coverage[60].sum() == pytest.approx(24.0, abs=1e-3)


def test_a_larger_image_shows_the_same_body() -> None:
    body = capsules([[[[40, 30], [40, 90]]]])
    small = draw_colour(body, 0, 120, 110, AMBIENT)[1]
    large = draw_colour(body.scaled(2.0, (10.0, 4.0)), 0, 232, 200, AMBIENT)[1]
    np.testing.assert_allclose(
        cv2.resize(large, (100, 116), interpolation=cv2.INTER_AREA), small[2:118, 5:105], atol=0.2
    )


def test_what_is_outside_the_image_is_not_drawn() -> None:
    body = capsules([[[[-80, 30], [-80, 90]]]] * 2)
    colour, coverage = draw_colour(body, 0, 120, 110, AMBIENT)
    assert not colour.any()
    assert not coverage.any()
    assert not draw_depth(body, 0, 120, 110).any()
    assert not draw_flow(body, 0, np.zeros((120, 110, 2), np.float32)).any()


def test_view_and_shadow_move_as_told() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (60, 80, 3)).astype(np.float32)
    view = move_image(image, np.array([[1.0, 0, -10], [0, 1.0, -5]]), 40, 50)
    np.testing.assert_allclose(view, image[5:45, 10:60], atol=1e-3)
    coverage = np.zeros((60, 80), np.float32)
    coverage[20:40, 20:40] = 1.0
    shadow = cast_shadow(coverage, (8.0, -4.0), 1.0)
    assert shadow[26, 38] == pytest.approx(1.0, abs=0.01)
    assert shadow.sum() == pytest.approx(400.0, rel=0.01)
