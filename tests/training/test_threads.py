"""Threads of a training: by what is free, unless the caller has chosen."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from feature_sets import blobs, feature_store, manifest, split_of
from paths import python_path

from har_pipeline.models.device import pick_device
from har_pipeline.training import threads as module
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.options import TrainConfig
from har_pipeline.training.threads import VARIABLES, Threads, continue_with, free_threads, idle_cores, training_threads

CPU = pick_device("cpu")


@pytest.fixture(autouse=True)
def unchosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has chosen, and torch would take four threads."""
    before = torch.get_num_threads()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(4)
    monkeypatch.setattr(module, "_UNCHOSEN", 4)
    yield
    torch.set_num_threads(before)


def machine(monkeypatch: pytest.MonkeyPatch, cores: int, idle: float) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    monkeypatch.setattr(module, "idle_cores", lambda: idle)


@pytest.mark.parametrize(
    ("cores", "idle", "count"),
    [
        (4, 4.0, 4),
        (4, 3.76, 4),
        (4, 3.7, 3),  # another program takes a third of a core: a fourth thread would wait for it
        (2, 0.9, 1),
        (2, 0.0, 1),
        (1, 1.0, 1),
        (2, 60.0, 2),  # a container's quota of a large machine
        (64, 63.9, 4),  # torch's own number is the most
    ],
)
def test_as_many_threads_as_free_cores(monkeypatch: pytest.MonkeyPatch, cores: int, idle: float, count: int) -> None:
    machine(monkeypatch, cores, idle)
    assert free_threads().count == count
    with training_threads(CPU) as found:
        assert found is not None
        assert torch.get_num_threads() == found.count == count
    assert torch.get_num_threads() == 4


def test_the_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2, 1.21)
    assert free_threads().describe() == "1 thread: 1.2 of 2 cores idle (OMP_NUM_THREADS sets another number)"


@pytest.mark.parametrize("name", VARIABLES)
def test_the_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    machine(monkeypatch, 4, 1.0)
    monkeypatch.setenv(name, "4")
    with training_threads(CPU) as found:
        assert (found, torch.get_num_threads()) == (None, 4)
    continue_with(2)
    assert torch.get_num_threads() == 4


def test_a_call_is_left_alone_and_so_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4, 1.0)
    with training_threads(torch.device("cuda")) as found:
        assert (found, torch.get_num_threads()) == (None, 4)
    torch.set_num_threads(3)
    with training_threads(CPU) as found:
        assert (found, torch.get_num_threads()) == (None, 3)


def test_the_number_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4, 2.0)
    with pytest.raises(KeyError), training_threads(CPU):
        raise KeyError
    assert torch.get_num_threads() == 4


def test_an_interrupted_training_goes_on_with_its_threads() -> None:
    continue_with(2)
    assert torch.get_num_threads() == 2


def test_other_programs_are_seen() -> None:
    """As many busy processes as cores leave nothing idle."""
    cores = psutil.cpu_count() or 1
    spin = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(1)
        assert idle_cores() < 0.25 * cores
    finally:
        for process in spin:
            process.kill()
            process.wait()


def test_a_job_tells_its_threads_and_writes_them_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4, 2.3)
    features, labels = blobs(("a", "b"), 6, dim=4)
    store, name = feature_store(tmp_path / "s.zarr", features)
    ids = list(labels)
    runs = plan_jobs([split_of(ids[::2], ids[1::2], [])], tmp_path / "run")
    config = TrainConfig(units=4, epochs=1, device="cpu")
    told: list[Threads] = []
    run_jobs(store, [name], manifest(labels), runs, config, on_threads=told.append)
    assert [one.count for one in told] == [2]
    assert json.loads((tmp_path / "run/run.json").read_text())["threads"] == 2
    assert torch.get_num_threads() == 4
    run_jobs(store, [name], manifest(labels), runs, config, on_threads=told.append)
    assert len(told) == 1, "nothing was trained"


def test_a_process_of_its_own_takes_what_the_environment_says() -> None:
    code = (
        "import torch; from har_pipeline.training.threads import training_threads\n"
        "with training_threads(torch.device('cpu')) as found: print(found, torch.get_num_threads())"
    )
    environment = {**python_path(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "1"]
