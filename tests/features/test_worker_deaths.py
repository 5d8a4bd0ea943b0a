"""A worker that dies, at any moment of its life, costs at most the video it was on; clips and raw frames alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from depth_files import moving_body, write_folder
from har_command import har
from typer.testing import CliRunner
from video_files import make_video
from worker_faults import lay_trap

from har_pipeline.cli import app
from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.manifests import write_manifest

IDS = ("v0", "v1", "v2", "v3")
COMMANDS = {
    "extract": ["--num-clips", "2", "--weights", "random", "--device", "cpu"],
    "frames": ["--size", "16"],
}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """`har extract` of four videos, or `har frames`, by one worker."""
    if request.param == "extract":
        records = [VideoRecord(video_id=i, label="a", path=make_video(tmp_path / f"{i}.avi", 8)) for i in IDS]
    else:
        records = [
            VideoRecord(video_id=i, label="a", depth_path=write_folder(tmp_path / i, moving_body(8))) for i in IDS
        ]
    write_manifest(tmp_path / "manifest.csv", records)
    paths = [str(tmp_path / "manifest.csv"), str(tmp_path / "store.zarr")]
    return [request.param, *paths, *COMMANDS[request.param], "--workers", "1", "--json"]


def run(command: list[str], code: int) -> dict[str, dict[str, str]]:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, (result.output, result.exception)
    summary = json.loads(result.stdout)
    assert summary["done"] + len(summary["failed"]) == len(IDS)
    return summary["failed"]


@pytest.mark.parametrize(("stage", "how"), [("starting", "3"), ("idle", "SIGKILL"), ("between", "SIGKILL")])
def test_a_death_without_a_task_costs_no_video(command, tmp_path, monkeypatch, stage, how) -> None:
    monkeypatch.setenv("PYTHONPATH", lay_trap(tmp_path / "trap", stage, how))
    assert run(command, code=0) == {}
    assert (tmp_path / "trap/died0").exists()


@pytest.mark.parametrize(
    ("stage", "how", "cause"),
    [
        ("decoding", "SIGKILL", "killed by signal 9 (out of memory?): last words"),
        ("decoding", "3", "exit code 3: last words"),
        ("mid-message", "SIGKILL", "killed by signal 9 (out of memory?): last words"),
        ("nonsense", "3", "exit code 3: last words"),
    ],
)
def test_a_death_on_a_video_fails_that_video(command, tmp_path, monkeypatch, stage, how, cause) -> None:
    monkeypatch.setenv("PYTHONPATH", lay_trap(tmp_path / "trap", stage, how))
    failed = run(command, code=1)
    assert list(failed) == ["v1"]
    assert failed["v1"].endswith(f"the process reading it died: {cause}")
    assert str(tmp_path / "v1") in failed["v1"]


def test_a_worker_that_sends_no_message_is_ended(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("har_pipeline.video.process.EXIT_WAIT_S", 0.5)
    monkeypatch.setenv("PYTHONPATH", lay_trap(tmp_path / "trap", "nonsense alive", "0"))
    failed = run(command, code=1)
    assert list(failed) == ["v1"]
    assert "sent no valid message (UnpicklingError" in failed["v1"]


def test_workers_that_cannot_start_end_the_job_with_one_line(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", lay_trap(tmp_path / "trap", "starting", "3", times=99))
    done = har(*command, cwd=tmp_path, code=1)
    assert done.stdout == ""
    *warnings, line = [text for text in done.stderr.splitlines() if "so far" not in text]  # of a busy machine
    assert line == "error: no worker process can be started, 3 died at the start: exit code 3: last words"
    assert all(text.startswith("WARNING: efficientnet_lite0: random weights") for text in warnings)
    assert len(list((tmp_path / "trap").glob("died*"))) == 3


def test_files_in_the_current_folder_are_not_imported(command, tmp_path, monkeypatch) -> None:
    (tmp_path / "av.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert run(command, code=0) == {}
