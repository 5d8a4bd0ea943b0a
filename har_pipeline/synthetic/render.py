"""Draws articulated bodies of textured, shaded tapered capsules, with the depth and the motion of every visible point.

Pixel centres are at integer coordinates. Parts of a body hide each other by the mean depth of their axes (painter's
order), in colour, depth and flow alike, so that all three show the same surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

TEXTURE_SIZE = 64
_MIN_LENGTH_PX = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A body of P capsules over F frames, as a camera sees it; all float32."""

    # (F, P, 2, 2): px, x then y, of both ends of each axis.
    ends: np.ndarray
    # (F, P, 2): px at each end.
    radii: np.ndarray
    # (F, P, 2): mm from the camera at each end.
    depths: np.ndarray
    # (F, P, 2): mm at each end.
    radii_mm: np.ndarray
    # (F, P): rad, turn of each capsule about its axis.
    rolls: np.ndarray
    # (P, 64, 64, 3) in [0, 255]: rows along the axis, columns around it.
    textures: np.ndarray

    def scaled(self, factor: float, offset: tuple[float, float]) -> Body:
        """Return the body on an image `factor` times as large, its origin moved by `offset` px (x, y)."""
        return Body(
            ends=(self.ends + 0.5) * np.float32(factor) - np.float32(0.5) - np.asarray(offset, np.float32),
            radii=self.radii * np.float32(factor),
            depths=self.depths,
            radii_mm=self.radii_mm,
            rolls=self.rolls,
            textures=self.textures,
        )


@dataclass(frozen=True, slots=True)
class _Cover:
    """The window of the image that one capsule covers and, for each of its pixels, where it meets the capsule."""

    window: tuple[slice, slice]
    # Unit direction (x, y) and length in px.
    axis: tuple[float, float]
    length: float
    # In [0, 1].
    coverage: np.ndarray
    # px from the first end, clamped to the axis.
    along: np.ndarray
    # px past an end (the round caps).
    beyond: np.ndarray
    # px from the axis.
    across: np.ndarray
    # px at that place of the axis.
    radius: np.ndarray


def _axis(ends: np.ndarray) -> tuple[float, float, float]:
    """Return the unit direction (x, y) and the length in px of a capsule's (2, 2) axis."""
    dx, dy = float(ends[1, 0] - ends[0, 0]), float(ends[1, 1] - ends[0, 1])
    length = float(np.hypot(dx, dy))
    if length < _MIN_LENGTH_PX:
        return 0.0, 1.0, _MIN_LENGTH_PX
    return dx / length, dy / length, length


def _cover(body: Body, frame: int, part: int, height: int, width: int) -> _Cover | None:
    """Return the pixels of a capsule, or None if it is outside the image."""
    ends, radii = body.ends[frame, part], body.radii[frame, part]
    low = np.floor((ends - radii[:, None]).min(axis=0)) - 1
    high = np.ceil((ends + radii[:, None]).max(axis=0)) + 2
    left, top = max(int(low[0]), 0), max(int(low[1]), 0)
    right, bottom = min(int(high[0]), width), min(int(high[1]), height)
    if left >= right or top >= bottom:
        return None
    ux, uy, length = _axis(ends)
    x = np.arange(left, right, dtype=np.float32)[None, :] - ends[0, 0]
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - ends[0, 1]
    axial = x * ux + y * uy
    across = y * ux - x * uy
    along = np.clip(axial, 0.0, length)
    beyond = axial - along
    radius = radii[0] + (radii[1] - radii[0]) / np.float32(length) * along
    coverage = np.clip(radius - np.sqrt(beyond * beyond + across * across) + 0.5, 0.0, 1.0)
    window = (slice(top, bottom), slice(left, right))
    return _Cover(window, (ux, uy), length, coverage, along, beyond, across, radius)


def _paint_order(body: Body, frame: int) -> np.ndarray:
    """Return the part numbers of one frame from the farthest to the nearest."""
    nearest = body.depths[frame].mean(axis=1) - body.radii_mm[frame].mean(axis=1)
    return np.argsort(-nearest, kind="stable")


def _colour(body: Body, frame: int, part: int, cover: _Cover, light: np.ndarray) -> np.ndarray:
    """Return the (h, w, 3) shaded texture of a capsule's window."""
    side = np.clip(cover.across / cover.radius, -1.0, 1.0)
    cap = np.clip(cover.beyond / cover.radius, -1.0, 1.0)
    ux, uy = cover.axis
    facing = np.sqrt(np.maximum(1.0 - side * side - cap * cap, 0.0))
    diffuse = light[0] * (cap * ux - side * uy) + light[1] * (cap * uy + side * ux) + light[2] * facing
    shade = light[3] + np.maximum(diffuse, 0.0)
    around = np.arcsin(side) - np.float32(np.pi / 2) - body.rolls[frame, part]
    rows = (cover.along * ((TEXTURE_SIZE - 1) / cover.length)).astype(np.intp)
    columns = np.floor(around * (TEXTURE_SIZE / (2 * np.pi))).astype(np.intp) % TEXTURE_SIZE
    colour: np.ndarray = body.textures[part][rows, columns] * shade[:, :, None]
    return colour


def draw_colour(body: Body, frame: int, height: int, width: int, light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw one frame of a body on a black, uncovered image.

    light: (4,) direction x, y (down), z (towards the camera) times its strength, and the ambient strength.
    Returns the colour times the coverage, (height, width, 3) float32 in [0, 255], and the coverage, (height, width)
    float32 in [0, 1].
    """
    colour = np.zeros((height, width, 3), np.float32)
    coverage = np.zeros((height, width), np.float32)
    for part in _paint_order(body, frame):
        cover = _cover(body, frame, part, height, width)
        if cover is None:
            continue
        alpha = cover.coverage
        below = colour[cover.window]
        below += alpha[:, :, None] * (_colour(body, frame, part, cover, light) - below)
        mask = coverage[cover.window]
        mask += alpha * (1.0 - mask)
    return colour, coverage


def draw_depth(body: Body, frame: int, height: int, width: int) -> np.ndarray:
    """Return the (height, width) float32 depth in mm of the surface at each pixel's centre, 0 for none."""
    depth = np.zeros((height, width), np.float32)
    for part in _paint_order(body, frame):
        cover = _cover(body, frame, part, height, width)
        if cover is None:
            continue
        share = cover.along / np.float32(cover.length)
        (near_z, far_z), (near_r, far_r) = body.depths[frame, part], body.radii_mm[frame, part]
        off_axis = (cover.across**2 + cover.beyond**2) / cover.radius**2
        bulge = (near_r + (far_r - near_r) * share) * np.sqrt(np.maximum(1.0 - off_axis, 0.0))
        inside = cover.coverage >= 0.5
        depth[cover.window][inside] = (near_z + (far_z - near_z) * share - bulge)[inside]
    return depth


def draw_flow(body: Body, frame: int, background: np.ndarray) -> np.ndarray:
    """Return how each visible point moves from `frame` to `frame + 1`, (H, W, 2) float32 px, x then y.

    background: (H, W, 2) float32, px, the displacement where no body is seen.
    A point keeps its place on its capsule: the share of the axis, the distance from it in radii, and the angle about
    it, apart from the capsule's own turn.
    """
    flow = background.copy()
    height, width = flow.shape[:2]
    for part in _paint_order(body, frame):
        cover = _cover(body, frame, part, height, width)
        if cover is None:
            continue
        ends, radii = body.ends[frame + 1, part], body.radii[frame + 1, part]
        ux, uy, length = _axis(ends)
        share = cover.along / np.float32(cover.length)
        growth = (radii[0] + (radii[1] - radii[0]) * share) / cover.radius
        turn = body.rolls[frame + 1, part] - body.rolls[frame, part]
        angle = np.arcsin(np.clip(cover.across / cover.radius, -1.0, 1.0)) + turn
        turned = cover.radius * np.sin(np.clip(angle, -np.pi / 2, np.pi / 2)) if turn else cover.across
        axial = share * np.float32(length) + cover.beyond * growth
        across = turned * growth
        rows, columns = np.mgrid[cover.window]
        motion = np.stack(
            [ends[0, 0] + axial * ux - across * uy - columns, ends[0, 1] + axial * uy + across * ux - rows], axis=-1
        )
        inside = cover.coverage >= 0.5
        flow[cover.window][inside] = motion[inside]
    return flow


def move_image(image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the (height, width, 3) float32 view of `image` under a (2, 3) affine map from its px to the view's px."""
    view: np.ndarray = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return view


def blur(image: np.ndarray, sigma_px: float) -> np.ndarray:
    """Return a Gaussian-blurred copy of a float32 image."""
    blurred: np.ndarray = cv2.GaussianBlur(image, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def cast_shadow(coverage: np.ndarray, shift_px: tuple[float, float], sigma_px: float) -> np.ndarray:
    """Return a soft copy of a body's coverage, moved by `shift_px` (x, y): the shadow on each pixel, in [0, 1]."""
    matrix = np.array([[1, 0, shift_px[0]], [0, 1, shift_px[1]]], np.float64)
    moved = cv2.warpAffine(coverage, matrix, coverage.shape[::-1], flags=cv2.INTER_LINEAR)
    return blur(moved, sigma_px)


def use_one_thread() -> None:
    """Limit OpenCV to one thread in this process, for one worker process per core."""
    cv2.setNumThreads(1)
