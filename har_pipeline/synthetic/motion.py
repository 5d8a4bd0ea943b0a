"""How the people of the embedded data set are built and move: subjects, and joints over time. Pure numpy.

World axes: X right, Y up from the ground, Z away from the camera; mm. A heading of 0 faces along X, of -pi/2 the camera.
Walking, jogging and running draw every measure of the pose from one distribution; only the cadence, and with it the speed,
depends on the action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FPS = 25.0
LOCOMOTION = ("walking", "jogging", "running")
ACTIONS = (*LOCOMOTION, "boxing", "handwaving", "handclapping")

# Gait cycles (two steps) per second, before a person's own pace.
CADENCE_HZ = {"walking": 0.65, "jogging": 1.12, "running": 2.0}
_SIDE_JOINTS = ("hip", "knee", "ankle", "toe", "shoulder", "elbow", "wrist", "fingers")

JOINTS = (
    *("pelvis", "chest", "neck", "chin", "crown", "hem"),
    *(f"{side}_{joint}" for side in ("left", "right") for joint in _SIDE_JOINTS),
)

JOINT = {name: number for number, name in enumerate(JOINTS)}

# Segment lengths as shares of the body's height, near those of Winter, Biomechanics and Motor Control of Human Movement,
# figure 4.1; hands are loosely closed.
THIGH, SHIN, FOOT, ANKLE = 0.245, 0.246, 0.105, 0.035
UPPER_ARM, FOREARM, HAND = 0.180, 0.150, 0.065
SPINE, NECK, HEAD = 0.290, 0.050, 0.055
HIP_WIDTH, SHOULDER_WIDTH = 0.050, 0.108


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What stays the same in all videos of one person."""

    height_mm: float
    build: float  # factor about 1 on every radius
    leg_share: float  # factor about 1 on the legs
    shoulder_share: float  # factor about 1 on the shoulders' width
    pace: float  # factor about 1 on every rate
    stride_rad: float  # largest hip angle
    knee_rad: float  # knee flexion in swing
    lean_rad: float  # forward
    elbow_rad: float  # elbow flexion in gait
    arm_swing_rad: float
    wave_rad: tuple[float, float]  # lowest and highest arm angle in waving, from straight down
    clap_share: float  # width of a clap's opening, as a share of the height
    clap_height: float  # where hands meet, as a share of the height
    punch_share: float  # reach of a punch, as a share of the height


def make_subject(rng: np.random.Generator) -> Subject:
    """Draw one person."""
    return Subject(
        height_mm=rng.uniform(1560, 1940),
        build=rng.uniform(0.85, 1.25),
        leg_share=rng.uniform(0.96, 1.04),
        shoulder_share=rng.uniform(0.90, 1.12),
        pace=rng.uniform(0.94, 1.06),
        stride_rad=rng.uniform(0.48, 0.60),
        knee_rad=rng.uniform(0.95, 1.3),
        lean_rad=rng.uniform(0.03, 0.13),
        elbow_rad=rng.uniform(0.7, 1.4),
        arm_swing_rad=rng.uniform(0.45, 0.65),
        wave_rad=(rng.uniform(0.5, 1.2), rng.uniform(2.3, 2.9)),
        clap_share=rng.uniform(0.22, 0.44),
        clap_height=rng.uniform(0.66, 0.80),
        punch_share=rng.uniform(0.27, 0.32),
    )


@dataclass(frozen=True, slots=True)
class Pose:
    """A body over F frames."""

    joints: np.ndarray  # (F, J, 3) float64 mm
    headings: np.ndarray  # (F,) rad


def _stack(forward: np.ndarray | float, up: np.ndarray | float, left: np.ndarray | float) -> np.ndarray:
    """Return (F, 3) vectors (or (1, 3)) in the body's own axes: forward, up, left."""
    parts = np.broadcast_arrays(np.atleast_1d(forward), np.atleast_1d(up), np.atleast_1d(left))
    return np.stack(parts, axis=-1).astype(np.float64)


def _trunk(subject: Subject, lean: np.ndarray, twist: np.ndarray) -> dict[str, np.ndarray]:
    """Return the joints of trunk and head, hips and shoulders, the pelvis at the origin.

    lean: forward; twist: of the shoulders about the spine, positive brings the right shoulder forward; hips twist back
    by half of it. Both (F,) rad.
    """
    height = subject.height_mm
    spine = _stack(np.sin(lean), np.cos(lean), 0.0)
    joints = {"pelvis": np.zeros((len(lean), 3)), "neck": SPINE * height * spine}
    joints["chest"] = 0.74 * joints["neck"]
    joints["chin"] = joints["neck"] + NECK * height * _stack(np.sin(lean) + 0.25, np.cos(lean), 0.0)
    joints["crown"] = joints["chin"] + HEAD * height * _stack(0.3 * np.sin(lean), 1.0, 0.0)
    joints["hem"] = _stack(0.0, -0.13 * height, 0.0) + np.zeros((len(lean), 3))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        across = sign * HIP_WIDTH * height
        joints[f"{side}_hip"] = _stack(-0.5 * np.sin(twist) * across, -0.01 * height, np.cos(0.5 * twist) * across)
        across = sign * SHOULDER_WIDTH * height * subject.shoulder_share
        joints[f"{side}_shoulder"] = (
            joints["neck"] - 0.02 * height * spine + _stack(-np.sin(twist) * across, 0.0, np.cos(twist) * across)
        )
    return joints


def _leg(
    subject: Subject, joints: dict[str, np.ndarray], side: str, hip: np.ndarray, knee: np.ndarray, pitch: np.ndarray
) -> None:
    """Add a leg that hangs from its hip: thigh `hip` forward of straight down, knee and foot flexed; (F,) rad."""
    length = subject.height_mm * subject.leg_share
    shin = hip - knee
    joints[f"{side}_knee"] = joints[f"{side}_hip"] + THIGH * length * _stack(np.sin(hip), -np.cos(hip), 0.0)
    joints[f"{side}_ankle"] = joints[f"{side}_knee"] + SHIN * length * _stack(np.sin(shin), -np.cos(shin), 0.0)
    foot = shin + pitch
    joints[f"{side}_toe"] = joints[f"{side}_ankle"] + FOOT * length * _stack(np.cos(foot), np.sin(foot) - 0.12, 0.0)


def _arm_by_angles(
    subject: Subject, joints: dict[str, np.ndarray], side: str, swing: np.ndarray, spread: np.ndarray, elbow: np.ndarray
) -> None:
    """Add an arm: upper arm `swing` forward of straight down and `spread` to its side, elbow flexed; all (F,) rad."""
    height, sign = subject.height_mm, 1.0 if side == "left" else -1.0
    out = sign * np.sin(spread)
    joints[f"{side}_elbow"] = joints[f"{side}_shoulder"] + UPPER_ARM * height * _stack(
        np.sin(swing) * np.cos(spread), -np.cos(swing) * np.cos(spread), out
    )
    lower = swing + elbow
    forearm = _stack(np.sin(lower) * np.cos(spread), -np.cos(lower) * np.cos(spread), out * np.cos(elbow))
    _add_hand(subject, joints, side, forearm)


def _arm_by_wrist(subject: Subject, joints: dict[str, np.ndarray], side: str, wrist: np.ndarray) -> None:
    """Add an arm that reaches for `wrist` (F, 3), as far as it can, the elbow bent down and outwards."""
    height, shoulder = subject.height_mm, joints[f"{side}_shoulder"]
    upper, lower = UPPER_ARM * height, FOREARM * height
    reach = wrist - shoulder
    distance = np.linalg.norm(reach, axis=1, keepdims=True)
    direction = reach / np.maximum(distance, 1e-6)
    distance = np.clip(distance, 0.35 * (upper + lower), 0.995 * (upper + lower))
    axial = (distance**2 + upper**2 - lower**2) / (2 * distance)
    pole = _stack(-0.3, -1.0, 0.55 if side == "left" else -0.55)
    pole = pole - (pole * direction).sum(axis=1, keepdims=True) * direction
    pole /= np.maximum(np.linalg.norm(pole, axis=1, keepdims=True), 1e-6)
    joints[f"{side}_elbow"] = shoulder + axial * direction + np.sqrt(np.maximum(upper**2 - axial**2, 0.0)) * pole
    _add_hand(subject, joints, side, shoulder + distance * direction - joints[f"{side}_elbow"])


def _add_hand(subject: Subject, joints: dict[str, np.ndarray], side: str, forearm: np.ndarray) -> None:
    """Add wrist and finger tips along the direction of the forearm, (F, 3)."""
    along = forearm / np.linalg.norm(forearm, axis=1, keepdims=True)
    joints[f"{side}_wrist"] = joints[f"{side}_elbow"] + FOREARM * subject.height_mm * along
    joints[f"{side}_fingers"] = joints[f"{side}_wrist"] + HAND * subject.height_mm * along


def gait(subject: Subject, phase: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the joints of a walking, jogging or running body (the same for all three) at each phase, (F,) rad."""
    stride = subject.stride_rad * rng.uniform(0.93, 1.07)
    knee_swing = subject.knee_rad * rng.uniform(0.9, 1.1)
    stance = rng.uniform(0.10, 0.22)
    lean = subject.lean_rad + rng.uniform(-0.02, 0.04) + 0.02 * np.cos(2 * phase)
    joints = _trunk(subject, lean, 0.18 * np.sin(phase))
    elbow = subject.elbow_rad * rng.uniform(0.85, 1.15)
    for side, offset in (("left", 0.0), ("right", np.pi)):
        angle = phase + offset
        hip = stride * np.sin(angle) + 0.08
        swing = (0.5 + 0.5 * np.cos(angle + 0.5)) ** 2
        _leg(subject, joints, side, hip, stance + knee_swing * swing, -0.25 * swing + 0.12 * np.sin(angle))
        arm = -subject.arm_swing_rad * np.sin(angle) + 0.1 - 0.15 * elbow
        _arm_by_angles(subject, joints, side, arm, np.full_like(angle, 0.1), elbow + 0.2 * np.sin(-angle))
    return joints


def stand(subject: Subject, phase: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the joints of a standing body without arms that sways a little with the phase, (F,) rad."""
    sway, spread = rng.uniform(0.0, 0.03), rng.uniform(-0.03, 0.10)
    joints = _trunk(subject, 0.03 + sway * np.sin(phase), rng.uniform(-0.08, 0.08) + sway * np.sin(phase + 1.0))
    bend = np.full_like(phase, rng.uniform(0.03, 0.12)) + sway * (1 + np.sin(phase))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        _leg(subject, joints, side, sign * spread + 0.5 * bend, bend, 0.5 * bend - sign * spread)
    return joints


def box(subject: Subject, phase: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the joints of a body that punches with one arm after the other, one cycle per 2 pi of phase, (F,) rad."""
    joints = stand(subject, phase, rng)
    height = subject.height_mm
    level, inward, sharp = rng.uniform(-0.07, 0.0), rng.uniform(0.0, 0.06), rng.uniform(1.0, 2.0)
    guard = rng.uniform(0.10, 0.17)
    for side, sign, offset in (("left", 1.0, 0.0), ("right", -1.0, np.pi)):
        out = np.maximum(np.sin(phase + offset), 0.0) ** sharp
        forward = guard + (subject.punch_share - guard) * out
        across = sign * (0.075 - inward * out)
        target = joints["neck"] + height * _stack(forward, level - 0.05 * (1 - out), across)
        _arm_by_wrist(subject, joints, side, target)
    return joints


def wave(subject: Subject, phase: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the joints of a body that swings both arms up and down at its sides, one cycle per 2 pi of phase."""
    joints = stand(subject, phase, rng)
    low, high = (angle + rng.uniform(-0.1, 0.1) for angle in subject.wave_rad)
    forward, bend = rng.uniform(0.05, 0.35), rng.uniform(0.85, 0.98)
    angle = low + (high - low) * (0.5 - 0.5 * np.cos(phase))
    length = (UPPER_ARM + FOREARM) * subject.height_mm * bend
    for side, sign in (("left", 1.0), ("right", -1.0)):
        reach = _stack(forward * np.sin(angle), -np.cos(angle), sign * np.sin(angle))
        _arm_by_wrist(subject, joints, side, joints[f"{side}_shoulder"] + length * reach)
    return joints


def clap(subject: Subject, phase: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the joints of a body that claps its hands before its chest, one cycle per 2 pi of phase, (F,) rad."""
    joints = stand(subject, phase, rng)
    height = subject.height_mm
    opening = 0.5 - 0.5 * np.cos(phase)
    apart = subject.clap_share * rng.uniform(0.85, 1.1) * opening + 0.035
    meet = (subject.clap_height + rng.uniform(-0.03, 0.03) - 0.81) * height
    forward = rng.uniform(0.16, 0.24) - 0.10 * opening
    for side, sign in (("left", 1.0), ("right", -1.0)):
        target = joints["neck"] + _stack(forward * height, meet + 0.04 * height * opening, sign * apart * height)
        _arm_by_wrist(subject, joints, side, target)
    return joints


def gait_speed(subject: Subject, cadence_hz: float) -> float:
    """Return the speed in mm/s of a gait of `cadence_hz` cycles per second."""
    leg = (THIGH + SHIN) * subject.leg_share * subject.height_mm
    return cadence_hz * 4 * leg * np.sin(subject.stride_rad) * 0.45


def gait_with_arms(
    subject: Subject, phase: np.ndarray, arm_phase: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the joints of `gait` at each phase, with the arms of `wave` at each arm_phase; both (F,) rad."""
    joints, waving = gait(subject, phase, rng), wave(subject, arm_phase, rng)
    for side in ("left", "right"):
        shift = joints[f"{side}_shoulder"] - waving[f"{side}_shoulder"]
        for name in ("elbow", "wrist", "fingers"):
            joints[f"{side}_{name}"] = waving[f"{side}_{name}"] + shift
    return joints


def place(joints: dict[str, np.ndarray], headings: np.ndarray, ground_xz: np.ndarray, clearance_mm: float) -> Pose:
    """Return the pose in the world, turned to its headings (F,), its pelvis above `ground_xz` (F, 2) mm.

    The lowest ankle or toe of each frame is `clearance_mm` above the ground.
    """
    body = np.stack([np.broadcast_to(joints[name], (len(headings), 3)) for name in JOINTS], axis=1)
    feet = [JOINT[f"{side}_{joint}"] for side in ("left", "right") for joint in ("ankle", "toe")]
    lowest = body[:, feet, 1].min(axis=1, keepdims=True)
    cos, sin = np.cos(headings)[:, None], np.sin(headings)[:, None]
    forward, up, left = body[..., 0], body[..., 1] - lowest + clearance_mm, body[..., 2]
    x = forward * cos - left * sin + ground_xz[:, :1]
    z = forward * sin + left * cos + ground_xz[:, 1:]
    return Pose(np.stack([x, up, z], axis=-1), headings)
