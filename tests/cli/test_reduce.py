"""`har features reduce`, from extracted features to a prediction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from video_files import make_video

from har_pipeline.cli import app
from har_pipeline.core.errors import FeatureMismatchError
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.load import load_run


def har(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def har_json(*arguments: object) -> list[dict[str, object]]:
    done = har(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2 classes x 4 short videos, its manifest, and features."""
    folder = tmp_path_factory.mktemp("reduce")
    for label, seed in (("left", 0), ("right", 50)):
        for i in range(4):
            make_video(folder / "videos" / label / f"{label}{i}.avi", 6, seed=seed + i)
    assert har("manifest", "build", "folder", folder / "videos", "-o", folder / "manifest.csv").exit_code == 0
    options = ("--num-clips", 4, "--device", "cpu", "--workers", 1)
    assert har("extract", folder / "manifest.csv", folder / "store.zarr", *options).exit_code == 0
    return folder


def test_from_features_to_a_prediction(work: Path) -> None:
    store, csv_file, run = work / "store.zarr", work / "manifest.csv", work / "run"
    (source,) = FeatureStore(store).feature_sets()
    command = ("features", "reduce", store, "--features", source, "--manifest", csv_file, "--dim", 5, "--whiten")
    (summary,) = har_json(*command)
    assert (summary["source"], summary["dim"], summary["done"], summary["fitted"]) == (source, 5, 8, True)
    name = summary["feature_set"]
    assert "does not read --num-folds" in har(*command, "--num-folds", 3).stderr
    (again,) = har_json(*command)
    assert (again["feature_set"], again["done"], again["already"], again["fitted"]) == (name, 0, 8, False)
    shown = har("features", "show", store, "--features", name).stdout
    assert f"Made of the set: {source}" in shown
    assert "holdout split 0" in har("features", "list", store).stdout
    train = ("train", csv_file, store, "--features", name, "--epochs", 2, "--units", 8, "--device", "cpu")
    assert har(*train, "-o", run).exit_code == 0
    scores = load_run(run).scores()
    store.rename(work / "gone.zarr")
    try:
        label, stem = scores.video_ids[0].split("__")
        video = work / "videos" / label / f"{stem}.avi"
        answer = har_json("predict", video, "--run", run, "--device", "cpu", "--workers", 1)[0]
    finally:
        (work / "gone.zarr").rename(store)
    found = {top["label"]: top["probability"] for top in answer["top"]}  # type: ignore[attr-defined]
    for number, label in enumerate(scores.classes):
        assert found[label] == pytest.approx(scores.probabilities[0, number], abs=1e-5)
    refused = har(*train, "--patience", 2, "-o", work / "patient").exception
    assert isinstance(refused, FeatureMismatchError)
    assert "--val-fraction 0.2 where --patience" in str(refused)
    (patient,) = har_json(*command, "--val-fraction", 0.2)
    assert patient["feature_set"] != name
    train = (*train[:4], patient["feature_set"], *train[5:])
    assert har(*train, "--patience", 2, "-o", work / "patient").exit_code == 0


def test_every_fold_has_a_reduction_of_its_own(work: Path) -> None:
    store, csv_file = work / "store.zarr", work / "manifest.csv"
    folds = ("--protocol", "group_kfold", "--num-folds", 4)
    (source,) = (
        name for name in FeatureStore(store).feature_sets() if FeatureStore(store).spec(name).reduction is None
    )
    command = ("features", "reduce", store, "--features", source, "--manifest", csv_file, "--dim", 3)
    summaries = har_json(*command, *folds, "--split", "all")
    assert len({summary["feature_set"] for summary in summaries}) == 4
    train = ("train", csv_file, store, *folds, "--head", "mean_pool", "--device", "cpu")
    for summary in summaries:
        out = work / f"fold{summary['split']}"
        chosen = ("--features", summary["feature_set"], "--split", summary["split"])
        assert har(*train, *chosen, "-o", out).exit_code == 0
    refused = har(*train, "--features", summaries[0]["feature_set"], "--split", "all", "-o", work / "all").exception
    assert isinstance(refused, FeatureMismatchError)
    assert "group_kfold split 0" in str(refused)
    assert "group_kfold split 1" in str(refused)
    assert not (work / "all").exists()
    assert har(*command, *folds, "--split", 4).exit_code == 2
    with_file = har_json(*command, "--split-file", split_file(work))
    assert with_file[0]["protocol"] == "group_kfold"
    assert with_file[0]["feature_set"] == summaries[2]["feature_set"]
    assert not with_file[0]["fitted"]


def split_file(work: Path) -> Path:
    options = ("--protocol", "group_kfold", "--num-folds", 4, "--val-fraction", 0)
    assert har("splits", "write", work / "manifest.csv", "-o", work / "splits", *options).exit_code == 0
    return work / "splits/group_kfold-2.json"
