"""`--protocol all`: a final model, which nothing measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store
from typer.testing import CliRunner, Result

from har_pipeline.cli import app
from har_pipeline.core.errors import RunError
from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.evaluation.run_folder import read_run

SMALL = ("--units", "4", "--epochs", "2", "--device", "cpu")


def har(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(value) for value in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest and a store of 12 videos of 3 classes; `final` of all, `kept` with validation, `one` of holdout."""
    folder = tmp_path_factory.mktemp("final")
    features, labels = blobs(("a", "b", "c"), 4)
    feature_store(folder / "store.zarr", features)
    records = [
        VideoRecord(video_id=v, label=label, path=folder / f"{v}.avi", subject=f"s{int(v[-1])}", split="train")
        for v, label in labels.items()
    ]
    write_manifest(folder / "m.csv", records)
    common = ("train", folder / "m.csv", folder / "store.zarr", *SMALL)
    har(*common, "--protocol", "all", "-o", folder / "final")
    har(*common, "--protocol", "all", "--val-fraction", "0.25", "--repeats", "2", "-o", folder / "kept")
    har(*common, "--protocol", "holdout", "-o", folder / "one")
    return folder


def test_all_videos_train_and_the_run_says_that_nothing_is_measured(work: Path) -> None:
    again = har("train", work / "m.csv", work / "store.zarr", *SMALL, "--protocol", "all", "-o", work / "final")
    said = "all videos were for training (--protocol all): no test part, accuracy is not measured"
    assert f"NOTE: {said}" in again.stderr
    assert "no test part: accuracy is not measured (12 train, 0 val)" in again.stdout
    assert f"next: har predict VIDEO --run {work / 'final'}" in again.stdout
    run = read_run(work / "final")
    assert (len(run.split.train), run.split.val, run.split.test) == (12, (), ())
    assert run.info["summary"]["test_accuracy"] is None
    assert said in run.notes
    assert run.scores().probabilities.shape == (0, 3)
    kept = read_run(work / "kept/seed1")
    assert (len(kept.split.train), len(kept.split.val), kept.info["summary"]["test_accuracy"]) == (9, 3, None)
    assert kept.info["summary"]["val_accuracy"] is not None


def test_it_is_evaluated_on_its_validation_videos_or_not_at_all(work: Path) -> None:
    for run in ("final", "kept"):
        done = har("evaluate", work / run, code=1)
        assert isinstance(done.exception, RunError)
        assert "it has no test part, and its accuracy is not measured" in str(done.exception)
        way_out = "it is for `har predict`" if run == "final" else "--part val"
        assert way_out in str(done.exception)
    assert json.loads(har("evaluate", work / "kept", "--part", "val", "--json").stdout)["repeats"].keys() == {"0", "1"}
    done = har("evaluate", work / "final", "--part", "val", code=1)
    assert "has no validation videos: train with --val-fraction" in str(done.exception)


def test_it_is_not_compared_or_fused(work: Path, tmp_path: Path) -> None:
    for command in ("fuse", "compare"):
        done = har(command, work / "one", work / "final", "-o", tmp_path / "out", code=1)
        assert str(done.exception) == "final has no test videos: a run of --protocol all is for `har predict` only"


def test_a_sweep_needs_what_it_compares(work: Path, tmp_path: Path) -> None:
    done = har(
        "sweep",
        work / "m.csv",
        work / "store.zarr",
        "--protocol",
        "all",
        "--units",
        "2,4",
        "-o",
        tmp_path / "s",
        code=1,
    )
    assert "a sweep compares accuracies, and all has no test part" in str(done.exception)


def test_its_splits_are_shown_and_written(work: Path, tmp_path: Path) -> None:
    rows = json.loads(
        har("splits", "show", work / "m.csv", "--protocol", "all", "--val-fraction", "0", "--json").stdout
    )
    assert [(row["train"], row["val"], row["test"]) for row in rows] == [(12, 0, 0)]
    har("splits", "write", work / "m.csv", "--protocol", "all", "-o", tmp_path)
    done = har(
        "train",
        work / "m.csv",
        work / "store.zarr",
        *SMALL,
        "--split-file",
        tmp_path / "all-0.json",
        "-o",
        tmp_path / "r",
    )
    assert "no test part: accuracy is not measured" in done.stdout
