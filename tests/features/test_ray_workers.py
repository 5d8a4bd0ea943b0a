"""`--engine ray`: how a cluster is shared out, and a cluster of this machine that does a whole job, one worker killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from har_command import har, har_process
from paths import python_path
from video_files import make_video

from har_pipeline.core.errors import ExtractionError, UsageError
from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.features.options import EngineOptions
from har_pipeline.features.ray_workers import ActorPlan, RayActors, cause_of_death, plan_actors
from har_pipeline.features.store import FeatureStore
from har_pipeline.video.process import MAX_STARTS


def ray(**options: object) -> EngineOptions:
    return EngineOptions(engine="ray", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "options", "device", "plan"),
    [
        # Of each node one worker, which has all of its CPUs; a node that only manages the others has none.
        ([(16, 0)], {}, "auto", (1, 16, 0)),
        ([(16, 0), (16, 0), (2, 0)], {}, "auto", (2, 16, 0)),
        ([(16, 0), (32, 0)], {}, "auto", (3, 16, 0)),
        ([(16, 0), (16, 0)], {"ray_workers": 4}, "auto", (4, 8, 0)),
        ([(16, 0), (16, 0)], {"ray_workers": 3}, "auto", (3, 8, 0)),
        ([(16, 0), (16, 0)], {"ray_workers": 1}, "auto", (1, 16, 0)),
        # One for each GPU, with its share of the CPUs; the nodes without GPUs do nothing.
        ([(32, 4), (32, 0)], {}, "auto", (4, 8, 1)),
        ([(32, 4), (8, 2)], {}, "auto", (6, 4, 1)),
        ([(2, 4)], {}, "auto", (4, 0.5, 1)),
        ([(32, 4)], {"ray_gpus": 0.5}, "auto", (8, 4, 0.5)),
        ([(32, 4)], {"ray_gpus": 0.3}, "auto", (12, 2, 0.3)),
        ([(32, 4)], {"ray_gpus": 2, "ray_workers": 1}, "auto", (1, 16, 2)),
        ([(32, 4)], {"ray_gpus": 0}, "auto", (1, 32, 0)),
        ([(32, 4)], {}, "cpu", (1, 32, 0)),
    ],
)
def test_a_cluster_is_shared_out(nodes, options, device: str, plan: tuple[int, float, float]) -> None:
    assert plan_actors(nodes, ray(**options), device) == ActorPlan(*plan)


@pytest.mark.parametrize(
    ("nodes", "options", "text"),
    [
        ([(4, 0)], {"ray_gpus": 1}, "no node of the Ray cluster has 1 GPUs: give --ray-gpus 0"),
        ([(4, 0)], {"ray_workers": 5}, "room for 4 workers with a CPU each, not for 5"),
        ([(4, 2)], {"ray_workers": 3}, "room for 2 workers with 1 GPUs each, not for 3"),
        ([(0, 0)], {}, "no CPUs for a worker"),
    ],
)
def test_a_cluster_without_room(nodes, options, text: str) -> None:
    with pytest.raises(ExtractionError, match=text):
        plan_actors(nodes, ray(**options), "auto")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ray_workers": 2}, "ray_workers belongs to engine ray"),
        ({"engine": "ray", "ray_gpus": 1.5}, "ray_gpus must be a whole number above 1"),
        ({"engine": "ray", "ray_gpus": -1}, "ray_gpus must be at least 0"),
    ],
)
def test_options_that_do_not_go_together(options, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        EngineOptions(**options)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "... Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. ...",
            "killed",
        ),
        ("Task was killed due to the node running low on memory.\nMemory on the node ...", "ran out of memory"),
        ("The actor died because its node has died. Node Id: 07", "its node is gone"),
        ("The actor died\n  Traceback ...\nModuleNotFoundError: No module named 'har_pipeline'\n", "No module named"),
        ("", "no reason given"),
    ],
)
def test_causes_of_death_are_short(text: str, cause: str) -> None:
    assert cause in cause_of_death(text)
    assert len(cause_of_death(text)) < 80


def test_the_job_ends_with_the_ray_of_its_own_machine() -> None:
    """Every worker dies with it, and no other would ever come."""

    class RayError(Exception):
        pass

    def get(ref: object) -> None:
        raise RayError("The actor is dead because its owner has died. Owner Id: 01 ...")

    pool = object.__new__(RayActors)
    pool._handles = [SimpleNamespace(pending=1)]
    pool._ray = SimpleNamespace(
        wait=lambda refs, **_: (refs, []), get=get, exceptions=SimpleNamespace(RayError=RayError)
    )
    with pytest.raises(ExtractionError, match=r"^Ray on this machine has ended; the same command goes on$"):
        pool.receive()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExtractionError, match=r"^--engine ray needs the package: pip install 'har-pipeline\[ray\]'$"):
        RayActors(ray())


@pytest.mark.parametrize(
    ("reason", "address", "starts"),
    [
        ("The current node timed out during startup.\nMore.", None, MAX_STARTS),
        ("no such port", None, 1),
        ("timed out", "head:6379", 1),
    ],
)
def test_a_cluster_of_our_own_is_started_again_where_the_machine_was_too_busy(
    reason: str, address: str | None, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())

    def fail(self: RayActors, *_: object) -> None:
        tries.append(self)
        raise RuntimeError(reason)

    monkeypatch.setattr(RayActors, "_try_to_connect", fail)
    what = r"no Ray cluster at head:6379" if address else r"no Ray cluster can be started"
    with pytest.raises(ExtractionError, match=rf"^{what} \({reason.splitlines()[0]}\)$"):
        RayActors(ray(ray_address=address))
    assert len(tries) == starts


def test_what_the_command_line_alone_says_is_wrong(tmp_path: Path) -> None:
    for words, text in (
        ("--ray-workers 2", "--ray-workers belongs to engine ray"),
        ("--engine ray --device cuda:0", "Ray chooses the GPUs of its workers"),
        ("--device cpu,", "give devices with commas between them"),
        ("--device auto,cpu", "name each device"),
        ("--device cpu,cuda:x", "unknown device 'cuda:x'"),
        ("--device cpu,cpu --extractor idt", "idt needs no device; --workers sets its processes"),
    ):
        write_manifest(tmp_path / "m.csv", [VideoRecord(video_id="v", label="a", path=tmp_path / "v.avi")])
        told = har("extract", "m.csv", "s.zarr", *words.split(), cwd=tmp_path, code=2).stderr
        assert text in " ".join(told.replace("│", " ").split())  # without the frame that Typer draws
        assert not (tmp_path / "s.zarr").exists()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 10 videos, one of which is broken, and the features that a single process makes of them."""
    folder = tmp_path_factory.mktemp("ray")
    records = [
        VideoRecord(video_id=f"v{i}", label="a", path=make_video(folder / f"v{i}.avi", 9 + i, seed=i)) for i in range(9)
    ]
    (folder / "bad.avi").write_bytes(b"no video")
    write_manifest(folder / "m.csv", [*records, VideoRecord(video_id="bad", label="a", path=folder / "bad.avi")])
    har("extract", "m.csv", "alone.zarr", *WORDS, "--device", "cpu", cwd=folder, code=1)
    return folder


WORDS = ["--weights", "random", "--num-clips", "3", "--batch-size", "2", "--workers", "1"]


def contents(store: Path) -> dict[str, np.ndarray]:
    opened = FeatureStore(store)
    (name,) = opened.feature_sets()
    assert not [damage for damage in opened.verify(name) if damage is not None]
    return {one: opened.read(name, one, check=True).features for one in opened.video_ids(name)}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "har_pipeline", "extract", "m.csv", *words],
        cwd=folder,
        env={**python_path(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stop_a_worker_at_work(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """Stop the first worker that is in the middle of a video, and return it."""
    driver = psutil.Process(process.pid)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(psutil.Error):
            for child in driver.children(recursive=True):
                # A process that decodes is there as long as its worker has videos.
                if name in " ".join(child.cmdline()) and child.children():
                    child.suspend()
                    if any(one.status() != psutil.STATUS_ZOMBIE for one in child.children()):
                        return child
                    child.resume()
        time.sleep(0.02)
    raise AssertionError("no worker was ever at work")


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert "Traceback" not in out
    return out, errors


@pytest.mark.slow
def test_a_cluster_of_this_machine_makes_the_same_features_although_a_worker_is_killed(videos: Path) -> None:
    pytest.importorskip("ray")
    process = start(videos, "ray.zarr", *WORDS, "--engine", "ray", "--ray-workers", "2", "--json")
    try:
        stop_a_worker_at_work(process, "ray::EngineActor").kill()
        out, errors = ended(process, 1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    summary = json.loads(out)
    assert (summary["done"], list(summary["failed"]), summary["device"]) == (9, ["bad"], "2 x cpu")
    assert "died: its process was killed or crashed (out of memory?); others do its videos" in errors
    expected, found = contents(videos / "alone.zarr"), contents(videos / "ray.zarr")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[one], expected[one]) for one in expected)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["ray", "local"])
def test_four_workers_interrupted_go_on(engine: str, videos: Path, tmp_path: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    name = "ray::EngineActor" if engine == "ray" else "har_pipeline.features.workers"
    where = ["--engine", "ray", "--ray-workers", "4"] if engine == "ray" else ["--device", "cpu,cpu,cpu,cpu"]
    store = str(tmp_path / "store.zarr")
    process = start(videos, store, *WORDS, *where)
    try:
        stop_a_worker_at_work(process, name)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = ended(process, 130)
        assert errors.splitlines()[-1] == "interrupted; run the same command again to go on"
        assert errors.count("interrupted") == 1
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                assert os.getsid(one.pid) != process.pid or one.status() == psutil.STATUS_ZOMBIE, one.cmdline()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    har_process("extract", "m.csv", store, *WORDS, *where, cwd=videos, code=1)
    expected, found = contents(videos / "alone.zarr"), contents(tmp_path / "store.zarr")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[one], expected[one]) for one in expected)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_raw_frames_and_points_take_ray_too(videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for words in (["frames", "m.csv", "--stream", "rgb", "--size", "16"], ["extract", "m.csv", "--extractor", "idt"]):
        command, manifest, *options = words
        for store, where in (
            ("ray.zarr", ["--engine", "ray", "--ray-workers", "2"]),
            ("alone.zarr", ["--workers", "1"]),
        ):
            done = har_process(command, manifest, tmp_path / command / store, *options, *where, cwd=videos, code=1)
            assert "failed: bad" in done.stderr, done.stderr
        expected, found = (contents(tmp_path / command / name) for name in ("alone.zarr", "ray.zarr"))
        assert len(found) == 9
        assert all(np.array_equal(found[one], expected[one]) for one in expected)
