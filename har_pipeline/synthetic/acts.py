"""What a person of the embedded data set does in a video: joints, ground and headings over time. Pure numpy.

Usually one of the six actions from the first frame to the last; in videos that are decided early, the action in the first
third, then a movement that is the same for all actions.
"""

from __future__ import annotations

import numpy as np

from har_pipeline.synthetic import motion, scene
from har_pipeline.synthetic.motion import FPS, Subject

# Actions on the spot: cycles per second (times the subject's pace), and how far the body is turned aside.
RATE_HZ = {"boxing": (1.1, 1.6), "handwaving": (0.55, 0.85), "handclapping": (0.9, 1.4)}
ASIDE_RAD = {"boxing": (0.45, 1.25), "handwaving": (0.0, 0.6), "handclapping": (0.0, 0.6)}
MIN_FRAMES, MAX_FRAMES = 50, 100

# So long that 30 frames with a step of 2 around a video's middle begin after its first third: (180 - 60) / 2 = 60.
EARLY_MIN_FRAMES, EARLY_MAX_FRAMES = 180, 240
ACTED_SHARE = 3

# What everybody does after the action: steps and arm swings per second, frames that the change takes.
AFTER_CADENCE_HZ, AFTER_WAVE_HZ, CHANGE_FRAMES = 1.5, 0.8, 10

# Farthest place of an action on the spot, as a share of where walkers turn: beyond it the depth camera cuts off arms.
PLACES = 0.75

# Joints as `motion.gait` returns them, ground (F, 2) mm X and Z, headings (F,) rad.
Movement = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


def act(person: Subject, action: str, num_frames: int, pace: float, start: float, rng: np.random.Generator) -> Movement:
    """Return the movement of a whole video; start: phase of the first frame, rad."""
    times = np.arange(num_frames) / FPS
    if action in motion.LOCOMOTION:
        cadence = motion.CADENCE_HZ[action] * pace
        joints = motion.gait(person, start + 2 * np.pi * cadence * times, rng)
        ground, headings = scene.walk_path(rng, num_frames, motion.gait_speed(person, cadence))
    else:
        phase = start + 2 * np.pi * rng.uniform(*RATE_HZ[action]) * pace * times
        move = {"boxing": motion.box, "handwaving": motion.wave, "handclapping": motion.clap}[action]
        joints = move(person, phase, rng)
        ground, headings = scene.stand_still(rng, num_frames, ASIDE_RAD[action])
    return joints, ground, headings


def act_early(
    person: Subject, action: str, num_frames: int, pace: float, start: float, rng: np.random.Generator
) -> Movement:
    """Return a movement whose first `num_frames // 3` frames show the action; the rest does not depend on it.

    Everybody then walks back and forth and swings both arms. That fills the view, so that not even the bounding box of the
    whole video gives the action away. People act where walkers may be, not only in the middle.
    Measured on 144 prepared depth videos (12 people, 3 folds by person; logistic regression on the mean frame and the mean
    change, chance 16.7 %): the first third alone 72 %, all that follows 23 %, the middle 60 frames 22 %, the last half 20 %.
    """
    acted = num_frames // ACTED_SHARE
    before, ground, headings = act(person, action, acted + CHANGE_FRAMES, pace, start, rng)
    distance = rng.uniform(*scene.WALK_DISTANCE_MM)
    inner = scene.half_view_mm(distance)
    if action not in motion.LOCOMOTION:
        ground[:, 0] = rng.uniform(-PLACES, PLACES) * inner
    ground[:, 1] += distance - ground[:acted, 1].mean()
    times = np.arange(num_frames - acted) / FPS
    cadence = AFTER_CADENCE_HZ * pace
    after = motion.gait_with_arms(
        person,
        rng.uniform(0, 2 * np.pi) + 2 * np.pi * cadence * times,
        rng.uniform(0, 2 * np.pi) + 2 * np.pi * AFTER_WAVE_HZ * pace * times,
        rng,
    )
    path, turned = scene.walk_on(
        rng, ground[acted], headings[acted], len(times), motion.gait_speed(person, cadence), inner, distance
    )
    change = np.linspace(0.0, 1.0, CHANGE_FRAMES + 1)[1:, None]
    joints = {}
    for name, late in after.items():
        early = np.broadcast_to(before[name], (acted + CHANGE_FRAMES, 3))
        mixed = (1 - change) * early[acted:] + change * late[:CHANGE_FRAMES]
        joints[name] = np.concatenate([early[:acted], mixed, late[CHANGE_FRAMES:]])
    return joints, np.concatenate([ground[:acted], path]), np.concatenate([headings[:acted], turned])
