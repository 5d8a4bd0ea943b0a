"""One training at a time in a folder."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from paths import python_path
from raw_runs import DepthSet, make_depth_set
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.core.errors import RunError
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.features.table import FeatureStreams
from har_pipeline.training import jobs
from har_pipeline.training.axes import parse_axis
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.lock import training_lock
from har_pipeline.training.options import TrainConfig
from har_pipeline.training.sweep import plan_points, run_sweep

HOST = socket.gethostname()
TAKEN = rf"another process is training there \(process \d+ on {HOST} since .*\): wait for it, or choose another --out"
HOLDER = """
import sys, time
from pathlib import Path
from har_pipeline.training.lock import training_lock
with training_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("folder", ["out", "out/seed0/split1", "out/units_2/seed0/split0", "."])
def test_a_folder_has_one_training_and_so_have_those_above_and_below(tmp_path: Path, folder: str) -> None:
    (tmp_path / "work/out").mkdir(parents=True)
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "work" / folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=python_path()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=TAKEN), training_lock(tmp_path / "work/out"):
            pass
        if folder != ".":
            with training_lock(tmp_path / "work/other"):
                pass
        process.send_signal(signal.SIGKILL)
    with training_lock(tmp_path / "work/out"):
        pass
    assert not list(tmp_path.rglob("*har-lock*"))


def test_nothing_is_left_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), training_lock(tmp_path / "a/b/out"):
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())


def test_a_job_and_a_sweep_are_refused_before_features_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = blobs(("boxing", "running"), 4)
    store, name = feature_store(tmp_path / "store.zarr", features)
    split = split_of([v for v in labels if int(v[-1]) < 3], [v for v in labels if int(v[-1]) == 3])
    config, out = TrainConfig(head="mean_pool", device="cpu"), tmp_path / "out"
    points = plan_points([parse_axis("logistic_c", "1,2")], config, name, out)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("features were read")

    with training_lock(out):
        monkeypatch.setattr(FeatureStreams, "read", read)
        with pytest.raises(RunError, match=TAKEN):
            run_jobs(store, [name], manifest(labels), plan_jobs([split], out), config)
        with pytest.raises(RunError, match=TAKEN):
            run_jobs(store, [name], manifest(labels), plan_jobs([split], out, repeats=2), config)
        with pytest.raises(RunError, match=TAKEN):
            run_sweep(store, manifest(labels), [split], points)
    monkeypatch.undo()
    with training_lock(out / "logistic_c_2.0"), pytest.raises(RunError, match=TAKEN):
        run_sweep(store, manifest(labels), [split], points)
    run_sweep(store, manifest(labels), [split], points, workers=1)
    assert not list(tmp_path.rglob("*har-lock*"))


def test_a_run_that_appeared_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(("boxing", "running"), 4)
    store, name = feature_store(tmp_path / "store.zarr", features)
    split = split_of([v for v in labels if int(v[-1]) < 3], [v for v in labels if int(v[-1]) == 3])
    own = jobs.train_head

    def meanwhile(*arguments: object, **options: object) -> object:
        def another(epoch: object) -> None:
            (tmp_path / "run").mkdir()
            (tmp_path / "run/run.json").write_text("{}")

        return own(*arguments, **{**options, "on_epoch": another})  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "train_head", meanwhile)
    with pytest.raises(RunError, match="holds a run already"):
        run_jobs(
            store, [name], manifest(labels), plan_jobs([split], tmp_path / "run"), TrainConfig(head="svm", device="cpu")
        )
    assert (tmp_path / "run/run.json").read_text() == "{}"


@pytest.fixture(scope="module")
def depth_set(tmp_path_factory: pytest.TempPathFactory) -> DepthSet:
    return make_depth_set(tmp_path_factory.mktemp("depth"))


@pytest.mark.parametrize("command", ["train-video", "lr-range"])
def test_a_network_is_refused_before_its_frames_are_prepared(depth_set: DepthSet, tmp_path: Path, command: str) -> None:
    write_manifest(depth_set.folder / "m.csv", depth_set.records)
    arguments = [command, str(depth_set.folder / "m.csv"), "-o", str(tmp_path / "run"), "--protocol", "holdout"]
    with training_lock(tmp_path / "run"):
        result = CliRunner().invoke(app, [*arguments, "--store", str(tmp_path / "frames.zarr"), "--device", "cpu"])
    assert isinstance(result.exception, RunError), result.output
    assert "another process is training there (process" in str(result.exception)
    assert not (tmp_path / "frames.zarr").exists()


def test_parts_of_a_job_are_made_side_by_side(tmp_path: Path) -> None:
    features, labels = blobs(("boxing", "running"), 6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    parts = [[v for v in labels if int(v[-1]) % 3 == k] for k in range(3)]
    splits = [split_of([v for v in labels if v not in part], part, index=k) for k, part in enumerate(parts)]
    planned = plan_jobs(splits, tmp_path / "job")
    config = TrainConfig(head="mean_pool", device="cpu")
    with training_lock(tmp_path / "job/split0"):
        run_jobs(store, [name], manifest(labels), planned[1:], config)
        with pytest.raises(RunError, match=TAKEN):
            run_jobs(store, [name], manifest(labels), planned, config)
        with pytest.raises(RunError, match=TAKEN):
            run_jobs(store, [name], manifest(labels), planned[:2], config)
    outcomes = run_jobs(store, [name], manifest(labels), planned, config)
    assert [one.kept for one in outcomes] == [False, True, True]
    evaluate(tmp_path / "job")
