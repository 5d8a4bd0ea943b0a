"""What the people of the embedded data set wear, where they stand and walk, and how the camera sees them. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from har_pipeline.synthetic.motion import FPS, JOINT, Pose, Subject
from har_pipeline.synthetic.render import TEXTURE_SIZE, Body, blur

HEIGHT, WIDTH = 120, 160
FOCAL_PX = 260.0
CAMERA_HEIGHT_MM = 1000.0
ACTED_FRAMES = 40
TURN_S = 0.32
FIRST_TURN_S = (0.4, 6.0)
WALK_DISTANCE_MM = (5000.0, 5600.0)
SCENARIOS = ("d1", "d2", "d3", "d4")

# Scenery around the view, for zoom and jitter, and how far along a place the camera may stand.
MARGIN_PX, CHOICE_PX = 44, 40

# Part, its first and second joint, its radius there (shares of the height), what it is made of.
_LIMBS = (
    ("hip", "knee", 0.050, 0.035, "thigh"),
    ("knee", "ankle", 0.036, 0.023, "shin"),
    ("ankle", "toe", 0.024, 0.017, "shoe"),
    ("shoulder", "elbow", 0.031, 0.024, "upper_arm"),
    ("elbow", "wrist", 0.025, 0.017, "forearm"),
    ("wrist", "fingers", 0.019, 0.016, "skin"),
)

_TRUNK = (
    ("pelvis", "chest", 0.086, 0.094, "shirt"),
    ("right_shoulder", "left_shoulder", 0.034, 0.034, "yoke"),
    ("neck", "chin", 0.034, 0.034, "skin"),
    ("chin", "crown", 0.043, 0.052, "head"),
)

# A shirt is clearly darker or clearly brighter than the scenery: least and most brightness.
_SHIRTS = ((20, 80), (195, 235))

# A trunk is flatter than wide: its radius from the side, over that from the front.
_TRUNK_FLATNESS = 0.68


@dataclass(frozen=True, slots=True)
class Outfit:
    """One set of clothes."""

    # Material -> (64, 64, 3) float32 in [0, 255].
    textures: dict[str, np.ndarray]
    # Whether a coat hangs below the waist.
    coat: bool


def _muted(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Return a colour, (3,) float, with a brightness in [low, high] and a faint hue."""
    return rng.uniform(low, high) * (1.0 + rng.uniform(-0.08, 0.08, 3))


def _cloth(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """Return a garment's texture: plain, striped along or around, or mottled, always a little uneven."""
    rows, columns = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] * (2 * np.pi / TEXTURE_SIZE)
    kind = rng.integers(4)
    strength = rng.uniform(0.12, 0.35)
    if kind == 1:
        pattern = np.sin(rng.integers(2, 6) * rows)
    elif kind == 2:
        pattern = np.sin(rng.integers(4, 9) * columns)
    elif kind == 3:
        pattern = 5.0 * _noise(rng, 5.0)
    else:
        pattern = np.zeros_like(rows)
    shade = 1.0 + strength * np.clip(pattern, -1, 1) + 0.25 * _noise(rng, 2.5)
    return np.clip(colour * shade[:, :, None], 0, 255).astype(np.float32)


def _noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Return a smooth (64, 64) float32 noise field of mean about 0."""
    return blur(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE), dtype=np.float32), sigma)


def _head(skin: np.ndarray, hair: np.ndarray, hat: np.ndarray | None) -> np.ndarray:
    """Return a head's texture: a face with eyes at the middle columns of azimuth 0, hair behind and above, or a hat."""
    texture = np.tile(skin, (TEXTURE_SIZE, TEXTURE_SIZE, 1))
    azimuth = (np.arange(TEXTURE_SIZE) + 0.5) / TEXTURE_SIZE * 360.0
    azimuth = np.where(azimuth > 180.0, azimuth - 360.0, azimuth)
    rows = np.arange(TEXTURE_SIZE)[:, None] / TEXTURE_SIZE
    texture[(rows > 0.8) | ((np.abs(azimuth) > 95) & (rows > 0.05))] = hair
    texture[(rows > 0.45) & (rows < 0.62) & (np.abs(np.abs(azimuth) - 28) < 11)] *= 0.45
    if hat is not None:
        texture[np.broadcast_to(rows > 0.66, texture.shape[:2])] = hat
    return texture.astype(np.float32)


def make_outfits(rng: np.random.Generator) -> tuple[Outfit, Outfit]:
    """Draw a person's usual clothes and the other clothes of scenario d3; skin and hair are the same in both."""
    skin = rng.uniform(0.35, 1.0) * np.array([222.0, 184.0, 158.0])
    hair = _muted(rng, 20, 120)
    return _outfit(rng, skin, hair, other=False), _outfit(rng, skin, hair, other=True)


def _outfit(rng: np.random.Generator, skin: np.ndarray, hair: np.ndarray, other: bool) -> Outfit:
    """Draw one set of clothes; `other` clothes have a coat or a hat, or both."""
    shirt = _cloth(rng, _muted(rng, *_SHIRTS[rng.integers(2)]))
    trousers = _cloth(rng, _muted(rng, 15, 75))
    bare = np.broadcast_to(skin, (TEXTURE_SIZE, TEXTURE_SIZE, 3)).astype(np.float32)
    coat = bool(other and rng.random() < 0.65)
    hat = _muted(rng, 25, 230) if other and (not coat or rng.random() < 0.5) else None
    short_sleeves, shorts = bool(not coat and rng.random() < 0.4), bool(not other and rng.random() < 0.2)
    textures = {
        "shirt": shirt,
        "yoke": np.broadcast_to(shirt[-1:, :1], shirt.shape),
        "upper_arm": shirt,
        "forearm": bare if short_sleeves else shirt,
        "thigh": trousers,
        "shin": bare if shorts else trousers,
        "shoe": _cloth(rng, _muted(rng, 15, 200)),
        "skin": bare,
        "head": _head(skin, hair, hat),
    }
    return Outfit(textures, coat)


def dress(pose: Pose, subject: Subject, outfit: Outfit, camera: np.ndarray) -> Body:
    """Return the clothed body of a pose as the camera sees it at 160x120.

    camera: (F, 2, 3) float64, the affine map of each frame from the steady view's px to the frame's (zoom and jitter).
    """
    height, build = subject.height_mm, subject.build**0.8
    parts = [*_TRUNK, *((f"{s}_{a}", f"{s}_{b}", r, q, m) for s in ("left", "right") for a, b, r, q, m in _LIMBS)]
    if outfit.coat:
        parts.append(("pelvis", "hem", 0.088, 0.108, "shirt"))
    ends = np.array([[JOINT[first], JOINT[second]] for first, second, *_ in parts])
    world = pose.joints[:, ends]
    radii_mm = np.array([part[2:4] for part in parts]) * height * build * np.ones((len(world), 1, 1))
    rolls = np.zeros(radii_mm.shape[:2])
    flatness = np.sqrt(np.sin(pose.headings) ** 2 + (_TRUNK_FLATNESS * np.cos(pose.headings)) ** 2)
    for number, (first, *_, material) in enumerate(parts):
        if first == "pelvis":
            radii_mm[:, number] *= flatness[:, None]
        if material in ("shirt", "head"):
            rolls[:, number] = pose.headings
    scale = FOCAL_PX / world[..., 2]
    steady = np.stack(
        [
            (WIDTH - 1) / 2 + scale * world[..., 0],
            (HEIGHT - 1) / 2 + scale * (CAMERA_HEIGHT_MM - world[..., 1]),
        ],
        axis=-1,
    )
    seen = np.einsum("fij,fpej->fpei", camera[:, :, :2], steady) + camera[:, None, None, :, 2]
    zoom = camera[:, 0, 0][:, None, None]
    return Body(
        ends=seen.astype(np.float32),
        radii=(radii_mm * scale * zoom).astype(np.float32),
        depths=world[..., 2].astype(np.float32),
        radii_mm=radii_mm.astype(np.float32),
        rolls=rolls.astype(np.float32),
        textures=np.stack([outfit.textures[part[4]] for part in parts]).astype(np.float32),
    )


def camera_motion(rng: np.random.Generator, num_frames: int, scenario: str) -> np.ndarray:
    """Return (F, 2, 3) float64 maps from the steady view to each frame: jitter, and in d2 a zoom over time."""
    steps = rng.normal(0.0, 0.07, (num_frames, 2))
    jitter = np.zeros((num_frames, 2))
    for frame in range(1, num_frames):
        jitter[frame] = 0.9 * jitter[frame - 1] + steps[frame]
    if scenario == "d2":
        start, end = rng.uniform(0.75, 0.98), rng.uniform(0.98, 1.15)
        ends = (start, end) if rng.random() < 0.5 else (end, start)
        zoom = np.linspace(*ends, num_frames)
    else:
        zoom = np.full(num_frames, rng.uniform(0.94, 1.06))
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    maps = np.zeros((num_frames, 2, 3))
    maps[:, 0, 0] = maps[:, 1, 1] = zoom
    maps[:, :, 2] = centre - zoom[:, None] * centre + jitter
    return maps


def camera_flow(camera: np.ndarray, frame: int) -> np.ndarray:
    """Return the (120, 160, 2) float32 flow, px, of the background from `frame` to `frame + 1`."""
    growth = camera[frame + 1, 0, 0] / camera[frame, 0, 0]
    shift = camera[frame + 1, :, 2] - growth * camera[frame, :, 2]
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1)
    return ((growth - 1.0) * grid + shift).astype(np.float32)


def make_place(rng: np.random.Generator, scenario: str) -> np.ndarray:
    """Return the scenery of a scenario, (208, 288, 3) float32 in [0, 255]: the view, 44 px around it, 40 px spare width."""
    height, width = HEIGHT + 2 * MARGIN_PX, WIDTH + 2 * MARGIN_PX + CHOICE_PX
    rows = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    grain = rng.standard_normal((height, width), dtype=np.float32)
    if scenario == "d4":
        floor = MARGIN_PX + rng.uniform(86, 94)
        wall, ground = rng.uniform(140, 180), rng.uniform(90, 130)
        level = np.where(np.arange(height)[:, None] < floor, wall, ground) + 2.0 * blur(grain, 1.0)
        level += rng.uniform(-15, 15) * np.linspace(-1, 1, width, dtype=np.float32) + 10 * blur(grain, 20.0)
        for _ in range(2):
            x, y = int(rng.integers(0, width - 40)), int(rng.integers(MARGIN_PX, MARGIN_PX + 40))
            level[y : y + int(rng.integers(12, 40)), x : x + int(rng.integers(10, 30))] *= 0.9
    else:
        turf = 8 * blur(grain, 0.7) + 14 * blur(grain, 2.0) + 60 * blur(grain, 14.0)
        level = rng.uniform(115, 150) + rng.uniform(-25, 25) * (rows - 0.5) + rng.uniform(0.5, 1.1) * turf
    tint = 1.0 + rng.uniform(-0.04, 0.04, 3)
    return np.clip(level[:, :, None] * tint, 0, 255).astype(np.float32)


def backdrop(rng: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """Return what a steady camera sees of a place, (208, 248, 3), from a random spot in a random light."""
    left = int(rng.integers(0, CHOICE_PX + 1))
    view = place[:, left : left + WIDTH + 2 * MARGIN_PX] * np.float32(rng.uniform(0.88, 1.1))
    return np.ascontiguousarray(np.clip(view, 0, 255))


def half_view_mm(distance_mm: float) -> float:
    """Return how far from the middle of the view, in mm, a walker at this distance turns round."""
    return 0.86 * distance_mm * WIDTH / 2 / FOCAL_PX


def walk_path(rng: np.random.Generator, num_frames: int, speed_mm_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the places, (F, 2) mm X and Z, and headings, (F,) rad, of someone who walks back and forth in the scene.

    The time of the first turn does not depend on the speed, and the path of the first 40 frames is moved into the view as
    far as it fits, so that neither turning nor leaving the scene reveals the speed; later turns are at the borders.
    """
    distance = rng.uniform(*WALK_DISTANCE_MM)
    inner = half_view_mm(distance)
    heading = rng.uniform(-0.2, 0.2) + rng.choice([0.0, np.pi])
    first_turn = int(rng.uniform(*FIRST_TURN_S) * FPS)
    turn_frames = int(TURN_S * FPS)
    step = speed_mm_s / FPS
    x, z, shift, remaining, side = 0.0, 0.0, 0.0, 0, 1.0
    path, headings = np.zeros((num_frames, 2)), np.zeros(num_frames)
    for frame in range(num_frames):
        if frame == ACTED_FRAMES:
            seen = path[:frame, 0]
            least, most = -inner - seen.min(), inner - seen.max()
            shift = rng.uniform(least, most) if least < most else 0.5 * (least + most)
        outbound = frame >= ACTED_FRAMES and (x + shift) * np.cos(heading) > inner
        if remaining == 0 and (frame == first_turn or outbound):
            remaining, side = turn_frames, rng.choice([-1.0, 1.0])
        if remaining:
            heading += side * np.pi / turn_frames
            remaining -= 1
        path[frame], headings[frame] = (x, z), heading
        x, z = x + step * np.cos(heading), z + step * np.sin(heading)
    path[:, 0] += shift
    path[:, 1] += distance - path[:ACTED_FRAMES, 1].mean()
    return path, headings


def walk_on(
    rng: np.random.Generator,
    start_xz: np.ndarray,
    heading: float,
    num_frames: int,
    speed_mm_s: float,
    inner_mm: float,
    distance_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places, (F, 2) mm X and Z, and headings, (F,) rad, of someone who walks off to a side from a place.

    The side is drawn; turns take as long as those of `walk_path`. On the way the distance from the camera approaches
    `distance_mm`.
    """
    turn_frames = int(TURN_S * FPS)
    step = speed_mm_s / FPS
    goal = rng.choice([0.0, np.pi])
    turn = (goal - heading + np.pi) % (2 * np.pi) - np.pi
    remaining = turn_frames
    (x, z), path, headings = start_xz, np.zeros((num_frames, 2)), np.zeros(num_frames)
    for frame in range(num_frames):
        if remaining == 0 and x * np.cos(heading) > inner_mm:
            remaining, turn = turn_frames, rng.choice([-1.0, 1.0]) * np.pi
        if remaining:
            heading += turn / turn_frames
            remaining -= 1
        path[frame], headings[frame] = (x, z), heading
        x += step * np.cos(heading)
        z += 0.05 * (distance_mm - z)
    return path, headings


def stand_still(
    rng: np.random.Generator, num_frames: int, aside_rad: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the place, (F, 2) mm X and Z, and heading, (F,) rad, of a person who stands and faces the camera.

    aside_rad: least and most turn away from the camera, to the left or to the right.
    """
    distance = rng.uniform(4700.0, 5300.0)
    heading = -np.pi / 2 + rng.choice([-1.0, 1.0]) * rng.uniform(*aside_rad)
    place = np.array([rng.uniform(-0.16, 0.16) * distance * WIDTH / FOCAL_PX, distance])
    return np.tile(place, (num_frames, 1)), np.full(num_frames, heading)
