"""What a command says of its progress where stderr is no terminal."""

from __future__ import annotations

import itertools
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from har_command import har
from paths import python_path
from video_files import make_video

from har_pipeline.cli import progress
from har_pipeline.cli.progress import (
    EVERY_S,
    QUIET_S,
    Lines,
    Pace,
    duration,
    progress_bar,
    told_while_waiting,
    video_bar,
)


class Clock:
    """A clock that is set by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock, said: list[str]) -> Lines:
    return Lines(Pace("videos", "start", clock), said.append)


def test_a_quick_job_says_nothing(clock: Clock, lines: Lines, said: list[str]) -> None:
    for done in range(11):
        lines.update("render", done, 10)
        clock.now += 0.45
        lines.tick()
    assert not said


def test_a_line_says_what_is_done_how_fast_and_how_long_the_rest_takes(
    clock: Clock, lines: Lines, said: list[str]
) -> None:
    lines.update("render", 0, 40)
    clock.now += 10
    lines.update("render", 5, 40, "1 failed")
    assert said == ["render: 5 of 40 videos, 30.0/min, 70 s left, 1 failed"]


def test_never_silent_for_half_a_minute_though_nothing_gets_done(clock: Clock, lines: Lines, said: list[str]) -> None:
    times = []
    for _ in range(200):
        clock.now += 1
        before = len(said)
        lines.tick()
        if len(said) > before:
            times.append(clock.now - 1000)
    assert times[0] == QUIET_S
    assert {b - a for a, b in itertools.pairwise(times)} == {EVERY_S}
    assert said[0] == "start: 5 s so far"
    assert said[-1].endswith("min so far")


def test_a_stage_says_that_it_begins_but_not_each_of_many_short_ones(
    clock: Clock, lines: Lines, said: list[str]
) -> None:
    lines.update("fit", 0, 10)
    clock.now += 6
    lines.update("fit", 6, 10)
    clock.now += 6
    lines.update("project", 0, 20)
    assert [line.partition(":")[0] for line in said] == ["fit", "project"]
    for number in range(50):
        clock.now += 0.1
        lines.update(f"split {number}", 1, 2)
    assert len(said) == 3


def test_what_was_done_before_says_nothing_of_the_speed(clock: Clock) -> None:
    pace = Pace("runs", "train", clock)
    for done in range(1, 51):
        pace.update("train", done, 100, already=done)
    clock.now += 60
    pace.update("train", 51, 100, already=50)
    assert pace.line() == "train: 51 of 100 runs, 1.0/min, 49 min left"
    pace.update("train", 51.5, 100, "epoch 5/10", already=50)
    assert pace.line() == "train: 51 of 100 runs, 1.5/min, 32 min left, epoch 5/10"
    resumed = Pace("videos", "extract", clock)
    resumed.update("extract", 900, 1000)
    clock.now += 10
    resumed.update("extract", 910, 1000)
    assert resumed.line() == "extract: 910 of 1,000 videos, 1.0/s, 90 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (7200, "2 h 0 min"), (3e5, "3 days")],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def first_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Wait for a line on stderr, which another thread writes, and return it."""
    said = ""
    for _ in range(6000):
        said += capsys.readouterr().err
        if said.endswith("\n"):
            return said
        time.sleep(0.02)
    raise AssertionError(f"no line came: {said!r}")


def test_lines_come_while_nobody_calls(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.5)
    with video_bar() as update:
        update("render", 0, 4)
        # The time is said from a second on, which the first look may come just before.
        assert re.fullmatch(r"render: 0 of 4 videos(, \d+ s so far)?\n", first_line(capsys))
    assert capsys.readouterr().err == ""


def test_a_download_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.5)
    with told_while_waiting("fetch i3d"):
        assert re.fullmatch(r"fetch i3d: (\d+ s so far)?\n", first_line(capsys))
    assert capsys.readouterr().err == ""


def test_a_silent_bar_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    with progress_bar("runs", "train", silent=True) as (update, say):
        update("train", 1, 2)
        say("a line")
    assert capsys.readouterr().err == ""


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is due at once."""
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)


@pytest.mark.usefixtures("always")
def test_flow_and_points_count_frames(tmp_path: Path) -> None:
    make_video(tmp_path / "a.avi", 40)
    err = har("flow", "a.avi", "-o", "flow.mp4", "--flow-method", "dis", cwd=tmp_path).stderr
    assert "flow: 0 of 39 frames" in err
    assert "flow: 39 of 39 frames" in err
    err = har("points", "a.avi", "-o", "p.png", "--frames", "30", cwd=tmp_path).stderr
    assert "search: 0 of 30 frames" in err
    assert "search: 29 of 30 frames" in err


@pytest.mark.usefixtures("always")
def test_rendering_counts_videos(tmp_path: Path) -> None:
    err = har("synth", "d", "--subjects", "1", "--scenario", "d1", "--workers", "1", cwd=tmp_path).stderr
    assert [line for line in err.splitlines() if line.startswith("render: 6 of 6 videos")]


def in_terminal(folder: Path, *words: str) -> str:
    """Run `har` in a terminal and return what it shows there, without colours."""
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "har_pipeline", *words],
        cwd=folder,
        env={**python_path(), "TERM": "xterm", "COLUMNS": "120"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while select.select([mine], [], [], 60)[0]:
        try:
            shown += os.read(mine, 1 << 16)
        except OSError:  # the other end was closed
            break
    os.close(mine)
    assert process.wait() == 0, shown
    return re.sub(r"\x1b\[[\d;?]*\w", "", shown.decode())


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    make_video(tmp_path / "a.avi", 40)
    shown = in_terminal(tmp_path, "points", "a.avi", "-o", "points.png", "--frames", "30")
    assert "━" in shown
    assert "29/30 frames" in shown
    assert shown.count("trajectories in 30 frames") == 1
