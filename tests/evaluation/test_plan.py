"""An interrupted job is told from a finished one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from run_files import change_info
from typer.testing import CliRunner, Result

from har_pipeline.cli import app
from har_pipeline.core.errors import RunError
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.evaluation.members import load_members
from har_pipeline.evaluation.plan import Plan, merge_notes, planned_runs, unfinished_runs, write_plan
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.options import TrainConfig

CLASSES = ("boxing", "running", "walking")


def har(command: str, folder: Path, *options: str) -> Result:
    result = CliRunner().invoke(app, [command, str(folder), *options])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of three folds and two seeds."""
    folder = tmp_path_factory.mktemp("plan")
    features, labels = blobs(CLASSES, 6)
    store, name = feature_store(folder / "store.zarr", features)
    parts = [[v for v in labels if int(v[-1]) % 3 == k] for k in range(3)]
    splits = [split_of([v for v in labels if v not in part], part, index=k) for k, part in enumerate(parts)]
    config = TrainConfig(head="mean_pool", device="cpu")
    run_jobs(store, [name], manifest(labels), plan_jobs(splits, folder / "job", repeats=2), config)
    return folder / "job"


def test_a_plan_of_runs(tmp_path: Path) -> None:
    write_plan(Plan(tmp_path, ("seed0/split0", "seed0/split1", "seed10/split0")))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert planned_runs(tmp_path) == ("seed0/split0", "seed0/split1", "seed10/split0")
    assert planned_runs(tmp_path / "seed0") == ("split0", "split1")
    assert planned_runs(tmp_path / "seed1") is None
    assert planned_runs(tmp_path / "seed0/split0") is None


def test_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(Plan(tmp_path, ("seed0/split0", "seed1/split0")))
    (tmp_path / "seed0").mkdir()
    monkeypatch.chdir(tmp_path / "seed0")
    assert planned_runs(Path()) == ("split0",)


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}"):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(RunError, match=r"plan\.json cannot be read .*again to replace it"):
            planned_runs(tmp_path)


def test_what_is_missing_is_counted_and_named(job: Path, tmp_path: Path) -> None:
    assert unfinished_runs(job) == []
    assert "missing" not in har("evaluate", job).stderr
    shutil.copytree(job, tmp_path / "job")
    for name in ("split0", "split1"):
        shutil.rmtree(tmp_path / "job/seed1" / name)
    result = har("evaluate", tmp_path / "job")
    assert result.stderr.count("missing") == 1
    assert (
        "2 of 6 runs are missing (seed1/split0, seed1/split1): the job was interrupted or still runs" in result.stderr
    )
    assert "2 of 3 runs are missing (split0, split1)" in har("evaluate", tmp_path / "job/seed1").stderr
    shutil.rmtree(tmp_path / "job/seed1")
    result = har("evaluate", tmp_path / "job")
    assert "3 of 6 runs are missing (seed1/split0, seed1/split1, seed1/split2)" in result.stderr
    assert "mean over 1 repeat, of each over its folds:" in result.stdout
    assert "sd" not in result.stdout
    values = json.loads(har("evaluate", tmp_path / "job", "--json").stdout)
    assert [values[name] for name in ("sd_top1", "sd_class", "pooled_sd")] == [None] * 3
    assert any("3 of 6 runs" in text for text in values["notes"])


def test_runs_of_another_job_are_never_mixed_in(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job, tmp_path / "job")
    for runs in (("split0", "split1"), ("seed1/split0",), ("seed5/split0", "seed5/split1")):
        with pytest.raises(
            RunError, match=r"holds runs that are not of this job \(seed0/split0, .*choose another --out"
        ):
            write_plan(Plan(tmp_path / "job", runs))
    assert planned_runs(tmp_path / "job") == planned_runs(job)
    more = tuple(f"seed{seed}/split{fold}" for seed in range(3) for fold in range(3))
    write_plan(Plan(tmp_path / "job", more))
    assert planned_runs(tmp_path / "job") == more


def test_a_run_is_no_folder_for_a_job(job: Path) -> None:
    with pytest.raises(RunError, match="holds a single run: choose another --out"):
        write_plan(Plan(job / "seed0/split0", ("seed0", "seed1")))


def test_an_unfinished_repeat_is_left_out(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job, tmp_path / "job")
    whole = json.loads(har("evaluate", tmp_path / "job/seed0", "--json").stdout)
    shutil.rmtree(tmp_path / "job/seed1/split2")
    result = har("evaluate", tmp_path / "job")
    assert "1 of 6 runs are missing (seed1/split2)" in result.stderr
    assert "seed1 is left out: it lacks folds" in result.stderr
    values = json.loads(har("evaluate", tmp_path / "job", "--json").stdout)
    assert list(values["repeats"]) == ["0"]
    assert values["mean_top1"] == whole["mean_top1"]
    shutil.rmtree(tmp_path / "job/seed0/split0")
    with pytest.raises(
        RunError, match=r"no repeat is finished; 2 of 6 runs are missing \(seed0/split0, seed1/split2\)"
    ):
        evaluate(tmp_path / "job")


def test_a_job_without_any_finished_run(job: Path, tmp_path: Path) -> None:
    write_plan(Plan(tmp_path / "job", ("split0", "split1")))
    (tmp_path / ".run.partial").mkdir()
    for command in (["evaluate"], ["fuse", str(job / "seed0")]):
        result = CliRunner().invoke(app, [*command, str(tmp_path / "job")])
        assert "2 of 2 runs are missing (split0, split1): the job was interrupted" in str(result.exception)
        result = CliRunner().invoke(app, [*command, str(tmp_path / "run")])
        assert "is not finished: run the same training command again" in str(result.exception)
        result = CliRunner().invoke(app, [*command, str(tmp_path)])
        assert "is not a run folder" in str(result.exception)


def test_notes_of_some_runs_name_them() -> None:
    notes = {
        "split0": ["random weights", "no test video of b"],
        "split1": ["random weights"],
        "split2": ["random weights"],
    }
    assert merge_notes(notes) == ["random weights", "split0: no test video of b"]
    assert merge_notes({"run": ["narrow"]}) == ["narrow"]
    assert merge_notes({}) == []


def test_folds_without_a_plan_lack_videos(job: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        for fold in (0, 1):
            shutil.copytree(job / f"seed{seed}/split{fold}", tmp_path / f"job/seed{seed}/split{fold}")
    assert "missing" not in har("evaluate", tmp_path / "job").stderr
    for path in (tmp_path / "job").rglob("split.json"):
        change_info(path.parent)
        path.write_text(json.dumps({**json.loads(path.read_text()), "protocol": "leave_one_group_out"}))
    lacking = "folds are missing: 6 of 18 videos are tested by none of the 2 folds"
    whole = har("evaluate", tmp_path / "job")
    assert f"seed0: {lacking}" in whole.stderr
    assert f"seed1: {lacking}" in whole.stderr
    assert har("evaluate", tmp_path / "job/seed0").stderr.count(lacking) == 1


def test_the_current_folder_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="is not a run folder"):
        evaluate(Path())


def test_the_validation_part_of_a_job_leaves_its_tests_alone(tmp_path: Path) -> None:
    features, labels = blobs(CLASSES, 6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    splits = []
    for index in range(2):
        test, val = ([v for v in labels if int(v[-1]) % 3 == (index + k) % 3] for k in (0, 1))
        splits.append(split_of([v for v in labels if v not in (*test, *val)], test, val, index=index))
    config = TrainConfig(head="mean_pool", device="cpu")
    run_jobs(store, [name], manifest(labels), plan_jobs(splits, tmp_path / "job"), config)
    evaluate(tmp_path / "job")
    before = (tmp_path / "job/folds.json").read_bytes()
    evaluate(tmp_path / "job", part="val")
    assert (tmp_path / "job/folds.json").read_bytes() == before
    assert json.loads((tmp_path / "job/val/folds.json").read_text())["mean_top1"] is not None


def svm_job(folder: Path, splits: int = 3, head: str = "svm", shift: int = 0) -> Path:
    """Another job with folds of the same names: its head is another one, or its splits are."""
    features, labels = blobs(CLASSES, 6)
    store, name = feature_store(folder / "store.zarr", features)
    parts = [[v for v in labels if (int(v[-1]) // (1 + shift)) % 3 == k] for k in range(splits)]
    folds = [split_of([v for v in labels if v not in part], part, index=k) for k, part in enumerate(parts)]
    run_jobs(store, [name], manifest(labels), plan_jobs(folds, folder / "job"), TrainConfig(head=head, device="cpu"))
    return folder / "job"


@pytest.mark.parametrize(
    ("options", "told", "message"),
    [
        ({}, True, r"split2 .*are not runs of one job: the first differs in head \(svm, not mean_pool\)"),
        ({}, False, r"split2 .*are not runs of one job: the first differs in head \(svm, not mean_pool\)"),
        ({"head": "mean_pool", "shift": 1}, True, "the first differs in the splits of its job"),
    ],
)
def test_folds_of_two_jobs_are_never_pooled(
    job: Path, tmp_path: Path, options: dict[str, Any], told: bool, message: str
) -> None:
    other = svm_job(tmp_path / "other", **options)
    shutil.copytree(job / "seed0", tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed/split2")
    shutil.copytree(other / "split2", tmp_path / "mixed/split2")
    if not told:  # runs of older versions
        for path in (tmp_path / "mixed").glob("split*"):
            change_info(path, job="")
    with pytest.raises(RunError, match=message):
        evaluate(tmp_path / "mixed")
    with pytest.raises(RunError, match=message):
        load_members([tmp_path / "mixed", job / "seed1"])
    shutil.copytree(job / "seed0", tmp_path / "repeats/seed0")
    shutil.copytree(other, tmp_path / "repeats/seed1")
    with pytest.raises(RunError, match=message.replace("split2", "split0")):
        evaluate(tmp_path / "repeats")


def test_folds_of_an_older_version_are_pooled_and_join_the_job_that_goes_on(tmp_path: Path) -> None:
    job = svm_job(tmp_path)
    wanted = evaluate(job).mean_top1
    identity = json.loads((job / "plan.json").read_text())["job"]
    for name in ("split0", "split1"):
        info = json.loads((job / name / "run.json").read_text())
        assert info["job"] == identity
        change_info(job / name, job="")
    assert evaluate(job).mean_top1 == wanted
    shutil.rmtree(job / "split2")
    svm_job(tmp_path)
    assert [json.loads((job / f"split{k}/run.json").read_text())["job"] for k in range(3)] == [identity] * 3
    assert evaluate(job).mean_top1 == wanted
