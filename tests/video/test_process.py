"""One supervised child process: who is to blame for a death."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from video_files import make_video

from har_pipeline.core.errors import ExtractionError
from har_pipeline.video.frame_worker import RawTask, RawVideo, raw_worker
from har_pipeline.video.process import Failed, Worker, run_tasks


def task(path: Path) -> RawTask:
    return RawTask(
        video_id=path.stem, path=path, start_frame=0, end_frame=None, time_limit_s=60.0, memory_limit_gb=4.0,
        max_frames=1000, stream="rgb", size=16, aspect="stretch", causal=False, fps=30.0,
    )  # fmt: skip


def result_of(worker: Worker[RawTask, RawVideo | Failed], path: Path) -> RawVideo | Failed:
    worker.start(task(path))
    while (message := worker.receive()) is None:
        pass
    assert worker.task is None
    return message


def test_a_worker_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.avi", 4)
    worker = raw_worker()
    try:
        for _ in range(4):  # more often than `MAX_STARTS`: these deaths are not in a row
            assert isinstance(result_of(worker, video), RawVideo)
            os.kill(worker.process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        worker.close()


def test_all_messages_come_and_workers_end(tmp_path: Path) -> None:
    paths = [make_video(tmp_path / f"{i}.avi", 4) for i in range(3)]
    paths.insert(1, tmp_path / "missing.avi")
    seen = list(run_tasks(raw_worker, 2, [task(path) for path in paths]))
    found = {task.video_id: type(message) for _, task, message in seen}
    assert found == {"0": RawVideo, "missing": Failed, "1": RawVideo, "2": RawVideo}
    workers = {worker for worker, _, _ in seen}
    assert len(workers) <= 2
    assert all(worker.process.returncode is not None for worker in workers)


def test_a_module_that_does_not_exist_ends_the_job(tmp_path: Path) -> None:
    workers = run_tasks(lambda: Worker("har_pipeline.video.nothing"), 1, [task(tmp_path / "a.avi")])
    with pytest.raises(ExtractionError, match=r"3 died at the start: exit code 1: ModuleNotFoundError.*nothing"):
        list(workers)


def test_a_system_without_processes_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ExtractionError, match=r"no worker process can be started: .*No such file"):
        raw_worker()


def test_a_path_that_is_no_text_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python ignores such entries of `sys.path`."""
    monkeypatch.setattr("sys.path", [*sys.path, tmp_path])
    worker = raw_worker()
    try:
        assert isinstance(result_of(worker, make_video(tmp_path / "a.avi", 4)), RawVideo)
    finally:
        worker.close()
