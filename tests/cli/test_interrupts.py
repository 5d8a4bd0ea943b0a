"""Ctrl-C ends every command at once: one line, exit code 130, no process left; from a terminal or sent to the command alone."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from depth_files import moving_body, write_folder
from feature_sets import blobs, feature_store
from har_command import har
from paths import python_path
from video_files import make_video

GOES_ON = "interrupted; run the same command again to go on"
# At work: a file of this pattern is there, the command has a child, or it has used so many seconds of a core.
Ready = Callable[[psutil.Process, Path], bool]


def file(pattern: str) -> Ready:
    return lambda process, folder: any(folder.glob(pattern))


def cores(seconds: float) -> Ready:
    return lambda process, folder: sum(process.cpu_times()[:2]) > seconds


def child(process: psutil.Process, folder: Path) -> bool:
    return any(sum(one.cpu_times()[:2]) > 0.5 for one in process.children(recursive=True))


@dataclass(frozen=True)
class Case:
    """A command, with the names of files of `Data`, and when it is at work."""

    words: str
    ready: Ready
    goes_on: bool = False


VIDEO_NET = "--width 0.1 --protocol xsub --device cpu"
CASES = {
    "synth": Case("synth out --subjects 25 --workers 2", file("out/*/*.avi")),
    "synth alone": Case("synth out --subjects 25 --workers 1", file("out/*/*.avi")),
    "extract": Case("extract many.csv s.zarr --weights random --device cpu", child, True),
    "extract devices": Case(
        "extract many.csv s.zarr --weights random --device cpu,cpu", file("s.zarr/eff*/video*"), True
    ),
    "extract ray": Case(
        "extract many.csv s.zarr --weights random --engine ray --ray-workers 2", file("s.zarr/eff*/video*"), True
    ),
    "extract points": Case("extract many.csv s.zarr --extractor idt --workers 2", child, True),
    "frames": Case("frames many.csv s.zarr --stream rgb --workers 2", child, True),
    "flow": Case("flow long.avi -o flow.mp4", cores(4)),
    "points": Case("points long.avi -o points.png --frames 1000", cores(2)),
    "train": Case("train rows.csv store.zarr -o run --epochs 100000", cores(4)),
    "train folds": Case(
        "train rows.csv store.zarr -o run --epochs 500 --protocol leave_one_subject_out --split all",
        file("run/split0/run.json"),
        True,
    ),
    "sweep": Case(
        "sweep rows.csv store.zarr -o out --units 2,3,4,5,6,7,8,9 --epochs 500 --workers 2 --protocol "
        "leave_one_subject_out --split all",
        file("out/*/*/run.json"),
        True,
    ),
    "train-video": Case(f"train-video depth.csv --store depth.zarr -o run --epochs 5000 {VIDEO_NET}", cores(5), True),
    "lr-range": Case(f"lr-range depth.csv --store depth.zarr -o out --steps 50000 {VIDEO_NET}", cores(5)),
    "reduce": Case("features reduce big.zarr --manifest big.csv --dim 4", file("big.zarr/drawn-rgb-pca4*"), True),
    "encode": Case(
        "features encode big.zarr --manifest big.csv --encoding words --words 4",
        file("big.zarr/drawn-rgb-words4*"),
        True,
    ),
    "pack": Case("features pack big.zarr -o pack --features drawn", file("pack/*"), True),
    "copy": Case("features copy big.zarr copy.zarr --features drawn", file("copy.zarr/drawn*/*/zarr.json"), True),
    "verify": Case("features verify big.zarr --features drawn", cores(1.2)),
    "predict": Case(f"predict {'long.avi ' * 200} --run head --device cpu", child),
    "live": Case("predict --live depth --run network --device cpu", cores(3)),
}
# (name, whether the whole process group gets the signal) of those that every test run tries; tests/core/test_processes.py
# has a command with worker processes and a signal to all of them.
USUAL = [("train", False)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature store of 24 drawn videos."""
    folder = tmp_path_factory.mktemp("interrupts")
    features, labels = blobs(("boxing", "running"), 12)
    feature_store(folder / "store.zarr", features)
    rows = [f"{v},{label},{v}.avi,s{int(v.partition('-')[2]) % 4}" for v, label in labels.items()]
    (folder / "rows.csv").write_text("video_id,label,path,subject\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def more(data: Path) -> Path:
    """Also long videos, a large store, raw frames, a trained head and a trained network."""
    make_video(data / "long.avi", 1000)
    many = "\n".join(f"video-{number},{'ab'[number % 2]},long.avi,s{number % 4}" for number in range(300))
    (data / "many.csv").write_text(f"video_id,label,path,subject\n{many}\n")
    rng = np.random.default_rng(0)
    ids = [f"video-{number}" for number in range(1500)]
    feature_store(data / "big.zarr", {one: rng.standard_normal((4, 16)).astype(np.float32) for one in ids})
    big = "\n".join(f"{one},{'ab'[number % 2]},{one}.avi,s{number % 4}" for number, one in enumerate(ids))
    (data / "big.csv").write_text(f"video_id,label,path,subject\n{big}\n")
    for subject in (1, 2, 3, 6):
        for action in (1, 2):
            name = f"S001C001P{subject:03d}R001A{action:03d}"
            frames = moving_body(12, seed=subject)
            write_folder(data / "nturgb+d_depth_masked" / name, frames if action == 1 else frames[:, :, ::-1])
    har("manifest", "build", "ntu", data, "-o", "depth.csv", cwd=data)
    har("frames", "depth.csv", "depth.zarr", cwd=data)
    har(*f"train-video depth.csv --store depth.zarr -o network --epochs 1 {VIDEO_NET}".split(), cwd=data)
    write_folder(data / "depth", np.tile(moving_body(20), (150, 1, 1)))
    for number in range(4):
        make_video(data / f"few-{number}.avi", 30, seed=number)
    few = "\n".join(f"few-{number},{'ab'[number % 2]},few-{number}.avi,s{number // 2}" for number in range(4))
    (data / "few.csv").write_text(f"video_id,label,path,subject\n{few}\n")
    har("extract", "few.csv", "few.zarr", "--weights", "random", "--device", "cpu", cwd=data)
    har("train", "few.csv", "few.zarr", "-o", "head", "--head", "mean_pool", "--test-fraction", "0.5", cwd=data)
    return data


@pytest.mark.parametrize(("name", "group"), USUAL)
def test_ctrl_c_ends_a_command(name: str, group: bool, data: Path, tmp_path: Path) -> None:
    interrupt(CASES[name], group, data, tmp_path)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("group", [True, False], ids=["terminal", "alone"])
@pytest.mark.parametrize("name", CASES)
def test_ctrl_c_ends_every_command(name: str, group: bool, more: Path, tmp_path: Path) -> None:
    if (name, group) in USUAL:
        pytest.skip("tested above")
    interrupt(CASES[name], group, more, tmp_path)


def interrupt(case: Case, group: bool, data: Path, folder: Path) -> None:
    """Start a command in `folder`, which sees the files of `data`, interrupt it at work, and check how it ends."""
    for path in data.iterdir():
        if path.name == "big.zarr" and "--manifest" in case.words:
            shutil.copytree(path, folder / path.name)  # it is written to
        else:
            (folder / path.name).symlink_to(path)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = ended.ru_utime + ended.ru_stime
    process = subprocess.Popen(
        [sys.executable, "-m", "har_pipeline", *case.words.split()],
        cwd=folder,
        env={**python_path(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        watched = psutil.Process(process.pid)
        for _ in range(20_000):
            assert process.poll() is None, process.communicate()
            if case.ready(watched, folder):
                break
            time.sleep(0.03)
        else:
            raise AssertionError("never at work")
        used = sum(watched.cpu_times())
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert errors.splitlines()[-1] == (GOES_ON if case.goes_on else "interrupted")
        assert errors.count("interrupted") == 1
        # At once, which on a busy machine its processor time tells, and no clock does.
        assert ended.ru_utime + ended.ru_stime - before - used < 3
        assert not left(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def left(session: int) -> list[psutil.Process]:
    """Return the processes of a session that still run a second later."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(one.pid) == session and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return [one for one in psutil.wait_procs(found, timeout=1)[1] if one.status() != psutil.STATUS_ZOMBIE]
