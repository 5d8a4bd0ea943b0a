"""What Ctrl-C and SIGTERM do to a command and its child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from paths import python_path
from video_files import make_video


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "har_pipeline", *words],
        cwd=folder,
        env=python_path(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as in a terminal
    )


def wait_for_children(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    for _ in range(6000):
        assert process.poll() is None, process.stderr.read()
        children = psutil.Process(process.pid).children(recursive=True)
        if len(children) >= count:
            return children
        time.sleep(0.05)
    raise AssertionError("no child processes")


@pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
)
@pytest.mark.parametrize("pause_s", [0.0, 1.0])  # while children import, and while they work
def test_a_signal_ends_a_command_with_one_line(
    tmp_path: Path, number: int, word: str, code: int, pause_s: float
) -> None:
    process = start(tmp_path, "synth", "out", "--subjects", "8", "--workers", "2")
    children = wait_for_children(process, 2)
    time.sleep(pause_s)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1] == word
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_decode_workers_end_with_the_command(tmp_path: Path) -> None:
    rows = "".join(f"v{n},v{n}.avi,a\n" for n in range(4))
    (tmp_path / "m.csv").write_text(f"video_id,path,label\n{rows}")
    for n in range(4):
        make_video(tmp_path / f"v{n}.avi", 250)
    process = start(tmp_path, "frames", "m.csv", "s.zarr", "--stream", "rgb", "--workers", "2")
    children = wait_for_children(process, 1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode in (130, 0), errors  # it may have been done
    assert "Traceback" not in errors
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_files_in_the_current_folder_are_not_run(tmp_path: Path) -> None:
    for name in ("signal", "random", "struct", "numpy", "av", "cv2", "selectors", "tempfile"):
        (tmp_path / f"{name}.py").write_text("open('RUN', 'w').close()\nraise SystemExit(3)\n")
    # -P: the script `har` has its own folder, not the current one, on the path.
    code = "from har_pipeline.cli import main; main()"
    command = [
        sys.executable,
        "-P",
        "-c",
        code,
        "synth",
        "out",
        "--subjects",
        "1",
        "--scenario",
        "d1",
        "--workers",
        "2",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=python_path(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "RUN").exists()
