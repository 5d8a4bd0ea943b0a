"""`har features encode`, from extracted features to a prediction."""

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
    """A folder of 2 classes x 4 short videos, its manifest, and features of a net."""
    folder = tmp_path_factory.mktemp("encode")
    for label, seed in (("left", 0), ("right", 50)):
        for i in range(4):
            make_video(folder / "videos" / label / f"{label}{i}.avi", 6, seed=seed + i)
    assert har("manifest", "build", "folder", folder / "videos", "-o", folder / "manifest.csv").exit_code == 0
    options = ("--num-clips", 4, "--device", "cpu", "--workers", 1)
    assert har("extract", folder / "manifest.csv", folder / "store.zarr", *options).exit_code == 0
    return folder


def test_from_features_of_a_net_to_a_prediction(work: Path) -> None:
    store, csv_file, run = work / "store.zarr", work / "manifest.csv", work / "run"
    (source,) = FeatureStore(store).feature_sets()
    command = ("features", "encode", store, "--features", source, "--manifest", csv_file)
    few = (*command, "--gaussians", 3, "--components", 5)
    (summary,) = har_json(*few)
    assert (summary["source"], summary["dim"], summary["done"], summary["fitted"]) == (source, 2 * 3 * 5, 8, True)
    assert (summary["encoding"], summary["size"], summary["blocks"]) == ("fisher", 3, ["all"])
    name = summary["feature_set"]
    again = har(*few, "--words", 5)
    assert "the encoding fisher does not read --words" in again.stderr
    assert f"{name}: 30 values a video of {source}: 3 Gaussians of all on " in again.stdout
    assert "fitted before); 0 videos encoded, 8 already there" in again.stdout
    assert f"next: har train {csv_file} {store} --features {name}" in again.stdout
    assert har_json(*few, "--seed", 1)[0]["feature_set"] != name
    assert "holdout split 0" in har("features", "list", store).stdout
    refused = har(*command).exception
    assert "fewer than the 256 Gaussians: give --gaussians" in str(refused)
    train = ("train", csv_file, store, "--features", name, "--head", "svm", "--device", "cpu")
    assert har(*train, "-o", run).exit_code == 0
    scores = load_run(run).scores()
    label, stem = scores.video_ids[0].split("__")
    video = work / "videos" / label / f"{stem}.avi"
    answer = har_json("predict", video, "--run", run, "--device", "cpu", "--workers", 1)[0]
    found = {top["label"]: top["probability"] for top in answer["top"]}  # type: ignore[attr-defined]
    for number, label in enumerate(scores.classes):
        assert found[label] == pytest.approx(scores.probabilities[0, number], abs=1e-5)
    refused = har(*train, "--seed", 5, "-o", work / "other").exception
    assert isinstance(refused, FeatureMismatchError)
    assert "har features encode STORE" in str(refused)


def test_every_fold_has_words_of_its_own(work: Path) -> None:
    store, csv_file = work / "store.zarr", work / "manifest.csv"
    folds = ("--protocol", "group_kfold", "--num-folds", 4, "--split", "all")
    source = next(name for name in FeatureStore(store).feature_sets() if FeatureStore(store).spec(name).fit is None)
    command = ("features", "encode", store, "--features", source, "--manifest", csv_file, "--encoding", "words")
    summaries = har_json(*command, "--words", 4, *folds)
    assert len({summary["feature_set"] for summary in summaries}) == 4
    assert {summary["dim"] for summary in summaries} == {4}
    assert all("rgb-words4-" in str(summary["feature_set"]) for summary in summaries)
