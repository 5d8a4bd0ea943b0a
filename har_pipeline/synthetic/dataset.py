"""The embedded data set: rendered people performing KTH's six actions, in compressed videos named and sized like KTH's.

Videos are 160x120 px, 25 frames/s, 2 to 4 s, in KTH's four scenarios: d1 outdoors, d2 outdoors with scale variation,
d3 outdoors in other clothes, d4 indoors with a shadow. Optional depth (16 bit) and exact flow show the same bodies.
The data set is a benchmark that a method can fail: walking, jogging and running share their poses and differ only in
cadence and speed. It is frozen: a change of any pixel must change `GENERATOR_VERSION`; results of two versions are not
comparable.

Measured on version 1, seed 0: EfficientNet-Lite0 features (224x224 px, first 40 frames) of the compressed videos,
subjects held out in 3 folds, video accuracy over the six actions (chance 16.7 %) except in the first row; LSTM of 128
units, standardised features, input dropout 0.5 (in brackets: none), 40 epochs of RMSProp, mean of two seeds.

    subjects (train / test of a fold)              6 (4 / 2)       12 (8 / 4)
    one frame, walking / jogging / running         31 %            36 %         logistic regression, chance 33 %
    mean over the frames                           59 %            66 %         logistic regression
    LSTM, every frame                              78 % (76 %)     79 % (79 %)
    LSTM, every second frame                       77 % (69 %)     79 % (75 %)
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_pipeline.core.files import new_file, write_json, write_text
from har_pipeline.core.processes import working_on
from har_pipeline.synthetic import motion, scene
from har_pipeline.synthetic.acts import EARLY_MAX_FRAMES, EARLY_MIN_FRAMES, MAX_FRAMES, MIN_FRAMES, act, act_early
from har_pipeline.synthetic.motion import ACTIONS, FPS
from har_pipeline.synthetic.render import (
    Body,
    cast_shadow,
    draw_colour,
    draw_depth,
    draw_flow,
    move_image,
    use_one_thread,
)
from har_pipeline.synthetic.scene import HEIGHT, SCENARIOS, WIDTH
from har_pipeline.video.encode import write_depth_png, write_video

GENERATOR_VERSION = "1"
MAX_SUBJECTS = 25
DEPTH_HEIGHT, DEPTH_WIDTH = 424, 512
MANIFEST_NAME = "manifest.csv"
DEPTH_FOLDER = "nturgb+d_depth_masked"
FLOW_FOLDER = "flow"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedVideo:
    """One rendered video."""

    video_id: str
    action: str
    subject: str
    scenario: str
    # (F, 120, 160, 3) uint8 RGB.
    frames: np.ndarray
    # (F, 120, 160) bool: pixels of which the person covers at least half.
    person: np.ndarray
    # (F, 424, 512) uint16, mm, background 0.
    depth_mm: np.ndarray | None
    # (F - 1, 120, 160, 2) float32, px/frame, x then y.
    flow: np.ndarray | None


@dataclass(frozen=True, slots=True)
class _Take:
    """A body in front of its scenery, ready to be drawn."""

    body: Body
    # (F, 2, 3) maps of `scene.camera_motion`.
    camera: np.ndarray
    backdrop: np.ndarray
    # As in `draw_colour`.
    light: np.ndarray
    # Shift in px (x, y), blur in px, strength.
    shadow: tuple[float, float, float, float]
    noise_sigma: float


def subject_name(subject: int) -> str:
    """Return KTH's name of a person, 1-based: `person01`."""
    return f"person{subject:02d}"


def ntu_name(subject: int, action: str, scenario: str) -> str:
    """Return the NTU RGB+D name of a video's depth folder.

    `S001C001P<subject>R<scenario number>A<action number>`, three digits each; actions are numbered from 1 in the order
    of `ACTIONS`, the scenario d<k> is replication k.
    """
    return f"S001C001P{subject:03d}R{SCENARIOS.index(scenario) + 1:03d}A{ACTIONS.index(action) + 1:03d}"


def _random(seed: int, *key: int) -> np.random.Generator:
    """Return the generator of a key: (subject,), (subject, action, scenario), or (0, scenario) for a place."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _check(seed: int, subject: int) -> None:
    """Raises: ValueError if the seed is negative or the subject is not in 1..25."""
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    if not 1 <= subject <= MAX_SUBJECTS:
        raise ValueError(f"subject must be 1 to {MAX_SUBJECTS}, not {subject}")


def _stage(
    subject: int, action: str, scenario: str, seed: int, decided_early: bool = False
) -> tuple[_Take, np.random.Generator]:
    """Draw everything that is random about a video except its sensor noise."""
    person_rng = _random(seed, subject)
    person = motion.make_subject(person_rng)
    usual, other = scene.make_outfits(person_rng)
    place = scene.make_place(_random(seed, 0, SCENARIOS.index(scenario)), scenario)
    rng = _random(seed, subject, ACTIONS.index(action), SCENARIOS.index(scenario))
    shortest, longest = (EARLY_MIN_FRAMES, EARLY_MAX_FRAMES) if decided_early else (MIN_FRAMES, MAX_FRAMES)
    num_frames = int(rng.integers(shortest, longest + 1))
    pace = person.pace * rng.uniform(0.96, 1.04)
    # Recordings begin near the start of a cycle, as if the people had been told to begin.
    start = rng.uniform(-0.2, 0.2)
    movement = act_early if decided_early else act
    joints, ground, headings = movement(person, action, num_frames, pace, start, rng)
    pose = motion.place(joints, headings, ground, motion.ANKLE * person.height_mm)
    camera = scene.camera_motion(rng, num_frames, scenario)
    body = scene.dress(pose, person, other if scenario == "d3" else usual, camera)
    direction = np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.9, -0.3), rng.uniform(0.5, 0.9)])
    strength = 0.75 if scenario == "d4" else 0.55
    light = np.array([*(strength * direction / np.linalg.norm(direction)), 1.05 - strength], np.float32)
    indoors = scenario == "d4"
    shadow = (
        (
            rng.choice([-1.0, 1.0]) * rng.uniform(5, 16),
            rng.uniform(-3, 6),
            rng.uniform(1.2, 3.0),
            rng.uniform(0.25, 0.5),
        )
        if indoors
        else (rng.uniform(-3, 3), rng.uniform(0, 2), 3.0, rng.uniform(0.0, 0.12))
    )
    take = _Take(body, camera, scene.backdrop(rng, place), light, shadow, rng.uniform(1.0, 2.5))
    return take, rng


def _draw_frames(take: _Take, rng: np.random.Generator, noise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the (F, 120, 160, 3) uint8 frames of a take, and the (F, 120, 160) bool pixels that show the person."""
    num_frames = len(take.camera)
    frames = np.empty((num_frames, HEIGHT, WIDTH, 3), np.uint8)
    person = np.empty((num_frames, HEIGHT, WIDTH), bool)
    for frame in range(num_frames):
        matrix = take.camera[frame].copy()
        matrix[:, 2] -= matrix[0, 0] * scene.MARGIN_PX
        image = move_image(take.backdrop, matrix, HEIGHT, WIDTH)
        colour, coverage = draw_colour(take.body, frame, HEIGHT, WIDTH, take.light)
        *shift, sigma, strength = take.shadow
        darkness = strength * cast_shadow(coverage, (shift[0], shift[1]), sigma)
        image *= ((1.0 - darkness) * (1.0 - coverage))[:, :, None]
        image += colour
        if noise:
            grain = rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32)
            image += np.float32(take.noise_sigma) * grain[:, :, None]
        frames[frame] = np.clip(image + 0.5, 0, 255).astype(np.uint8)
        person[frame] = coverage >= 0.5
    return frames, person


def _draw_flow(take: _Take) -> np.ndarray:
    """Return the (F - 1, 120, 160, 2) float32 flow of a take, px/frame."""
    pairs = range(len(take.camera) - 1)
    return np.stack([draw_flow(take.body, frame, scene.camera_flow(take.camera, frame)) for frame in pairs])


def _draw_depth(take: _Take, rng: np.random.Generator, noise: bool) -> np.ndarray:
    """Return the (F, 424, 512) uint16 depth maps of a take, mm."""
    factor = DEPTH_HEIGHT / HEIGHT
    body = take.body.scaled(factor, ((WIDTH * factor - DEPTH_WIDTH) / 2, 0.0))
    maps = np.empty((len(take.camera), DEPTH_HEIGHT, DEPTH_WIDTH), np.uint16)
    for frame in range(len(maps)):
        depth = draw_depth(body, frame, DEPTH_HEIGHT, DEPTH_WIDTH)
        if noise:
            seen = depth > 0
            depth[seen] += rng.normal(0.0, 4.0, int(seen.sum())).astype(np.float32)
        maps[frame] = np.rint(depth).astype(np.uint16)
    return maps


def render_video(
    subject: int,
    action: str,
    scenario: str,
    seed: int = 0,
    *,
    depth: bool = False,
    flow: bool = False,
    noise: bool = True,
    decided_early: bool = False,
) -> RenderedVideo:
    """Return one video of the data set; the same arguments give the same bytes.

    subject: 1 to 25; action: one of `ACTIONS`; scenario: `d1` to `d4`. `noise=False` leaves out only the sensor noise of
    colour and depth. Depth has its own camera of 512x424 px at the same place, which sees the 145 middle columns of the
    view. Flow is exact: the displacement of the surface point at a pixel's centre; the background moves with the camera, a
    shadow is not a surface. It may point out of the image or behind a limb.
    `decided_early`: a variant with 180 to 240 frames: the first `F // 3` of them show the action, the rest a movement that
    is the same for all actions; see `acts.act_early`.
    Raises: ValueError if an argument is none of these.
    """
    _check(seed, subject)
    if action not in ACTIONS or scenario not in SCENARIOS:
        raise ValueError(f"no action {action!r} in scenario {scenario!r}: choose from {ACTIONS} and {SCENARIOS}")
    take, rng = _stage(subject, action, scenario, seed, decided_early)
    noise_rng, depth_rng = rng.spawn(2)
    frames, person = _draw_frames(take, noise_rng, noise)
    return RenderedVideo(
        video_id=f"{subject_name(subject)}_{action}_{scenario}",
        action=action,
        subject=subject_name(subject),
        scenario=scenario,
        frames=frames,
        person=person,
        depth_mm=_draw_depth(take, depth_rng, noise) if depth else None,
        flow=_draw_flow(take) if flow else None,
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which files to write for each video, and where."""

    out: Path
    seed: int
    depth: bool
    flow: bool
    decided_early: bool


def _write_video_files(wanted: _Wanted, subject: int, action: str, scenario: str) -> None:
    """Render one video and write its files."""
    out = wanted.out
    video = render_video(
        subject,
        action,
        scenario,
        wanted.seed,
        depth=wanted.depth,
        flow=wanted.flow,
        decided_early=wanted.decided_early,
    )
    write_video(out / action / f"{video.video_id}_uncomp.avi", video.frames, FPS)
    if video.depth_mm is not None:
        folder = out / DEPTH_FOLDER / ntu_name(subject, action, scenario)
        folder.mkdir(parents=True, exist_ok=True)
        for number, depth_map in enumerate(video.depth_mm, start=1):
            write_depth_png(folder / f"MDepth-{number:08d}.png", depth_map)
    if video.flow is not None:
        (out / FLOW_FOLDER).mkdir(parents=True, exist_ok=True)
        path = out / FLOW_FOLDER / f"{video.video_id}.npy"
        with new_file(path) as partial:
            np.save(partial, video.flow.astype(np.float16))


def _write_job(wanted: _Wanted, job: tuple[int, str, str]) -> None:
    _write_video_files(wanted, *job)


def _write_all(wanted: _Wanted, jobs: list[tuple[int, str, str]], workers: int) -> Iterator[None]:
    """Write the files of all jobs; yields after each."""
    if workers == 1:
        for job in jobs:
            _write_video_files(wanted, *job)
            yield
        return
    with working_on(jobs, functools.partial(_write_job, wanted), workers, use_one_thread) as futures:
        for future in as_completed(futures):
            future.result()
            yield


def _manifest(jobs: list[tuple[int, str, str]], depth: bool, flow: bool) -> str:
    """Return the manifest's text; paths are relative to its folder."""
    columns = ["video_id", "path", "label", "subject", "scenario"]
    columns += ["depth_path"] * depth + ["x_flow_path"] * flow
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for subject, action, scenario in jobs:
        video_id = f"{subject_name(subject)}_{action}_{scenario}"
        row = [video_id, f"{action}/{video_id}_uncomp.avi", action, subject_name(subject), scenario]
        row += [f"{DEPTH_FOLDER}/{ntu_name(subject, action, scenario)}"] * depth
        row += [f"{FLOW_FOLDER}/{video_id}.npy"] * flow
        table.writerow(row)
    return text.getvalue()


def write_dataset(
    out: Path,
    *,
    num_subjects: int = 6,
    seed: int = 0,
    depth: bool = False,
    flow: bool = False,
    decided_early: bool = False,
    scenarios: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
) -> Path:
    """Write the data set and return the path of its manifest, `out/manifest.csv`, which is written last.

    num_subjects: 1 to 25, each in 6 actions and 4 scenarios, `<action>/personNN_<action>_d<k>_uncomp.avi`; KTH's own
    split of persons needs all 25.
    depth: also write `nturgb+d_depth_masked/S001C001PxxxR00dA00a/MDepth-%08d.png` (see `ntu_name`), numbered from 1, 16
    bit, mm. flow: also write `flow/<video_id>.npy`, (F - 1, 120, 160, 2) float16 px/frame, x then y.
    decided_early: as `render_video`. scenarios: which of the four, None = all. workers: processes, None = one per core, at
    most 16; the files do not depend on it. on_progress: called with the numbers of videos written and wanted.
    `out/dataset.json` records the generator's version, the seed and the counts. Files already there are replaced.
    Raises: ValueError if num_subjects, seed, scenarios or workers is out of range; VideoError if a file cannot be written.
    """
    _check(seed, num_subjects)
    workers = min(os.cpu_count() or 1, 16) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    asked = SCENARIOS if scenarios is None else scenarios
    chosen = [scenario for scenario in SCENARIOS if scenario in asked]
    if not chosen or len(chosen) != len(set(asked)):
        raise ValueError(f"scenarios must be some of {SCENARIOS}, not {tuple(asked)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(s, action, scenario) for s in range(1, num_subjects + 1) for action in ACTIONS for scenario in chosen]
    wanted = _Wanted(out, seed, depth, flow, decided_early)
    on_progress(0, len(jobs))
    for done, _ in enumerate(_write_all(wanted, jobs, workers), start=1):
        on_progress(done, len(jobs))
    facts: dict[str, object] = {
        "generator": "har_pipeline.synthetic",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "num_subjects": num_subjects,
        "num_videos": len(jobs),
        "actions": ACTIONS,
        "scenarios": chosen,
        "depth": depth,
        "flow": flow,
    }
    if decided_early:
        facts["decided_early"] = True
    write_json(out / "dataset.json", facts)
    write_text(out / MANIFEST_NAME, _manifest(jobs, depth, flow))
    return out / MANIFEST_NAME
