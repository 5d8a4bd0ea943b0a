"""Small trees with the names, classes, groups and lists of the published data sets; a few tiny videos, many links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from depth_files import moving_body, write_folder
from video_files import make_video

from har_pipeline.datasets.builders import KTH_ACTIONS, KTH_MISSING
from har_pipeline.evaluation.categories import read_groups

UCF11_CLASSES = (
    "basketball",
    "biking",
    "diving",
    "golf_swing",
    "horse_riding",
    "soccer_juggling",
    "swing",
    "tennis_swing",
    "trampoline_jumping",
    "volleyball_spiking",
    "walking",
)


def tree(root: Path, *names: str) -> Path:
    """Make empty files; builders never open videos."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root.resolve()


def fill_videos(paths: Sequence[Path], *, frames: int, codec: str = "mpeg4", different: int = 16) -> None:
    """Make `different` videos and write one of them, in turn, to each path, with zeros at its end that tell it from others."""
    source = paths[0].parent.parent / ".videos"
    made = [
        make_video(source / f"{k}{paths[0].suffix}", frames, width=48, height=32, codec=codec, seed=k)
        for k in range(min(different, len(paths)))
    ]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[number % len(made)].read_bytes() + bytes(number))
    for video in made:
        video.unlink()
    source.rmdir()


def ucf101_tree(root: Path, lists: Path, *, num_classes: int = 101, frames: int = 10) -> None:
    """Three videos a class, of groups 1, 8 and 15, which splits 1, 2 and 3 test."""
    labels = sorted(read_groups("ucf101").group_of)[:num_classes]
    # One class's files are spelled otherwise than the class.
    stems = {label: label.replace("Handstand", "HandStand") for label in labels}
    groups = (1, 8, 15)
    fill_videos(
        [root / label / f"v_{stems[label]}_g{group:02d}_c01.avi" for label in labels for group in groups],
        frames=frames,
    )
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{k} {label}\n" for k, label in enumerate(labels, 1)))
    for number, tested in enumerate(groups, 1):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for k, label in enumerate(labels, 1):
            for group in groups:
                name = f"{label}/v_{stems[label]}_g{group:02d}_c01.avi"
                if group == tested:
                    lines["test"].append(name)
                else:
                    lines["train"].append(f"{name} {k}")
        for part, own in lines.items():
            (lists / f"{part}list{number:02d}.txt").write_text("\n".join(own) + "\n")


def hmdb51_tree(root: Path, lists: Path, *, num_classes: int = 51, frames: int = 10) -> None:
    """Three films a class, each tested by one split; of the first class one more, which all splits leave out."""
    labels = sorted(read_groups("hmdb51").group_of)[:num_classes]
    lists.mkdir(parents=True)
    paths = []
    for label in labels:
        names = [f"film{i}_{label}_u_nm_np1_fr_med_0.avi" for i in range(4 if label == labels[0] else 3)]
        paths += [root / label / name for name in names]
        for number in (1, 2, 3):
            flags = ["0" if i == 3 else "2" if i == number - 1 else "1" for i in range(len(names))]
            lines = [f"{name} {flag} " for name, flag in zip(names, flags, strict=True)]
            (lists / f"{label}_test_split{number}.txt").write_text("\n".join(lines) + "\n")
    fill_videos(paths, frames=frames)


def kth_tree(root: Path, sequences: Path, *, frames: int = 12) -> None:
    """All 599 files, 25 persons, and the list: four sequences a file, five files with three, one file missing."""
    names = [
        f"person{person:02d}_{action}_d{scenario}"
        for person in range(1, 26)
        for action in KTH_ACTIONS
        for scenario in (1, 2, 3, 4)
    ]
    present = [name for name in names if name != KTH_MISSING]
    fill_videos([root / name.split("_")[1] / f"{name}_uncomp.avi" for name in present], frames=frames)
    lines = []
    for number, name in enumerate(names):
        ranges = ["1-3", "4-6", "7-9", "10-12"][: 3 if number % 120 == 7 else 4]
        lines.append(f"{name}\t*missing*" if name == KTH_MISSING else f"{name}\t\tframes\t{', '.join(ranges)}")
    sequences.write_text("\n".join(lines) + "\n")


def ucf11_tree(root: Path, *, frames: int = 6) -> None:
    """All 11 classes and 25 groups, one video each."""
    paths = [
        root / label / f"v_{label}_{group:02d}" / f"v_{label}_{group:02d}_01.mpg"
        for label in UCF11_CLASSES
        for group in range(1, 26)
    ]
    fill_videos(paths, frames=frames, codec="mpeg1video")


def ntu_tree(root: Path, *, actions: int = 60) -> None:
    """Depth folders of every action: subjects 1 and 2 (training) and 3 (test), each seen by one of the three cameras.

    Of the first five actions subject 1 is seen by camera 1 too, so that cross-subject and cross-view differ. Few different
    videos, of 10 to 24 frames, are behind them: a body goes one way in even actions, the other in odd ones.
    """
    seen = ((1, 2, actions), (2, 3, actions), (3, 1, actions), (1, 1, min(5, actions)))
    for number, (subject, camera, last) in enumerate(seen):
        frames = moving_body((10, 12, 24, 14)[number], seed=subject)
        ways = (frames, frames[:, :, ::-1])
        sources = [write_folder(root.parent / f"source{number}{k}", way) for k, way in enumerate(ways)]
        for action in range(1, last + 1):
            folder = root / f"S001C{camera:03d}P{subject:03d}R001A{action:03d}"
            folder.mkdir(parents=True)
            for png in sources[action % 2].iterdir():
                os.link(png, folder / png.name)
