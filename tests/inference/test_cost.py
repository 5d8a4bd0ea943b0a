from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from feature_sets import split_of
from raw_runs import DepthSet, make_depth_set
from run_files import change_info
from train_split import train_split
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.core.errors import RunError
from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.evaluation.scores import read_scores, select_part, write_scores
from har_pipeline.evaluation.statistics import mcnemar, wilson_interval
from har_pipeline.features.frames import store_raw_frames
from har_pipeline.features.options import RawOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.cost import measure_live_cost
from har_pipeline.inference.live import live_scores
from har_pipeline.training.options import VideoTrainConfig


@pytest.fixture(scope="module")
def depth_set(tmp_path_factory: pytest.TempPathFactory) -> DepthSet:
    return make_depth_set(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def run(depth_set: DepthSet) -> Path:
    return depth_set.train()


def right(probabilities: np.ndarray, classes: tuple[str, ...], labels: tuple[str, ...]) -> np.ndarray:
    return np.array([classes[k] == label for k, label in zip(probabilities.argmax(axis=1), labels, strict=True)])


def test_both_sides_are_the_runs_own_scores_and_the_live_ones(depth_set: DepthSet, run: Path) -> None:
    seen: list[tuple[int, int]] = []
    cost = measure_live_cost(run, depth_set.records, device="cpu", on_video=lambda *done: seen.append(done))
    assert seen == [(k, 4) for k in (1, 2, 3, 4)]
    own, (live, _) = read_scores(run / "scores.csv"), live_scores(run, depth_set.records, device="cpu")
    assert own.video_ids == live.video_ids
    sides = [right(s.probabilities, s.classes, s.labels) for s in (own, live)]
    found = cost.comparison
    assert (found.runs, found.num_videos) == (("whole video", "live"), 4)
    assert found.first_top1 == wilson_interval(int(sides[0].sum()), 4)
    assert found.second_top1 == wilson_interval(int(sides[1].sum()), 4)
    assert found.test == mcnemar(*sides)
    assert cost.failed == {}


def test_the_sides_are_not_swapped(depth_set: DepthSet, run: Path, tmp_path: Path) -> None:
    """A run whose stored answers are all right has a first side of 100 %, whatever is decided live."""
    scores = select_part(read_scores(run / "scores.csv"), "test")
    certain = np.array([[float(label == name) for name in scores.classes] for label in scores.labels])
    copy = tmp_path / "run"
    copy.mkdir()
    for path in run.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    write_scores(copy / "scores.csv", dataclasses.replace(scores, probabilities=certain))
    change_info(copy)
    cost = measure_live_cost(copy, depth_set.records, device="cpu")
    live, _ = live_scores(copy, depth_set.records, device="cpu")
    wrong = int((~right(live.probabilities, live.classes, live.labels)).sum())
    assert wrong > 0
    assert cost.comparison.first_top1.value == 1
    assert (cost.comparison.test.first_only, cost.comparison.test.second_only) == (wrong, 0)


def test_a_video_that_cannot_be_read_is_on_neither_side(depth_set: DepthSet, run: Path, tmp_path: Path) -> None:
    gone = VideoRecord(video_id="v7", label="grows", depth_path=tmp_path / "v7")
    records = [gone if record.video_id == "v7" else record for record in depth_set.records]
    cost = measure_live_cost(run, records, device="cpu")
    assert cost.comparison.num_videos == 3
    assert list(cost.failed) == ["v7"]


def test_other_files_than_those_of_the_training_are_refused(depth_set: DepthSet, run: Path) -> None:
    first, second, *others = depth_set.records
    swapped = [dataclasses.replace(first, depth_path=second.depth_path), second, *others]
    with pytest.raises(RunError, match="trained with other files than the manifest names"):
        measure_live_cost(run, swapped, device="cpu")


def test_a_part_without_scores_and_a_stateless_run(depth_set: DepthSet, run: Path) -> None:
    with pytest.raises(RunError, match="val"):
        measure_live_cost(run, depth_set.records, part="val", device="cpu")
    with pytest.raises(RunError, match="has no state and needs the whole video"):
        measure_live_cost(depth_set.train("convlstm-stateless"), depth_set.records, device="cpu")


def har(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.stdout, f"{result.stderr}{result.exception or ''}"


def test_on_the_command_line(depth_set: DepthSet, run: Path, tmp_path: Path) -> None:
    manifest = depth_set.folder / "manifest.csv"
    write_manifest(manifest, depth_set.records)
    command = ("evaluate", str(run), "--live", "--device", "cpu")
    out, err = har(*command, "--manifest", str(manifest))
    cost = measure_live_cost(run, depth_set.records, device="cpu").comparison
    assert f"live, by the frames so far         {cost.second_top1.describe()}" in out
    assert f"the run's own, by the whole video  {cost.first_top1.describe()}" in out
    assert "live decisions on 4 videos (McNemar: p = " in out
    assert "live decisions lower the accuracy by " in out
    assert f"written: {run / 'live.json'}" in err
    stored = json.loads((run / "live.json").read_text())
    assert (stored["part"], stored["num_videos"], stored["failed"]) == ("test", 4, {})
    out, _ = har(*command, "--manifest", str(manifest), "--json", "--time", "--time-videos", "1")
    told = json.loads(out)
    assert told["live"] == stored
    assert told["timing"]["videos"] == 1
    _, err = har(*command, code=2)
    assert "--live reads the video files" in err
    job = tmp_path / "job"
    shutil.copytree(run, job / "seed0/split1")
    for option in ("--live", "--time"):
        _, err = har("evaluate", str(job), option, "--manifest", str(manifest), code=1)
        assert f"{job} is not a single run: {option} measures one, such as {job}/seed0/split1" in err
    _, err = har("evaluate", str(tmp_path / "none"), "--live", "--manifest", str(manifest), code=1)
    assert "none does not exist" in err


def test_the_validation_part_alone(depth_set: DepthSet, tmp_path: Path) -> None:
    """Live scores are of one part: that the others have none is no error."""
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    name = store_raw_frames(depth_set.records, store, RawOptions(size=48, workers=1)).feature_set
    ids = [record.video_id for record in depth_set.records]
    config = VideoTrainConfig(width=0.05, schedule="constant", epochs=1, device="cpu", precision="fp32")
    train_split(store, name, depth_set.records, split_of(ids[:4], ids[4:7], ids[7:]), config, tmp_path / "run")
    manifest = depth_set.folder / "manifest.csv"
    write_manifest(manifest, depth_set.records)
    command = ("evaluate", str(tmp_path / "run"), "--part", "val", "--live", "--device", "cpu")
    out, _ = har(*command, "--manifest", str(manifest))
    assert "live decisions on 3 videos" in out
    assert (tmp_path / "run/val/live.json").is_file()


def test_a_file_that_cannot_be_read_costs_its_video_and_the_exit_code(tmp_path: Path) -> None:
    own, gone = make_depth_set(tmp_path), ["v7", "v8"]
    write_manifest(tmp_path / "m.csv", own.records)
    command = ("evaluate", str(own.train()), "--manifest", str(tmp_path / "m.csv"), "--device", "cpu")
    for video_id in gone:
        shutil.rmtree(own.path(video_id))
    for option, what in (("--live", "not decided live"), ("--time", "not timed")):
        for more in ((), ("--json",)):
            out, err = har(*command, option, *more, code=1)
            assert [line for line in err.splitlines() if line.startswith("not ")] == [
                f"{what}: {v}: {own.path(v)}: does not exist" for v in gone
            ]
            assert ("video accuracy top-1" in out) != bool(more)
            if more:
                assert list(json.loads(out)[{"--live": "live", "--time": "timing"}[option]]["failed"]) == gone


def test_options_without_effect_are_named(depth_set: DepthSet, run: Path) -> None:
    manifest = depth_set.folder / "manifest.csv"
    write_manifest(manifest, depth_set.records)
    _, err = har("evaluate", str(run), "--time-videos", "5", "--root", "x", "--device", "cuda")
    assert err.splitlines()[0] == "NOTE: without --time or --live, without effect: --time-videos, --root, --device"
    command = ("evaluate", str(run), "--manifest", str(manifest), "--device", "cpu", "--time-videos", "1")
    _, err = har(*command, "--live")
    assert "NOTE: without --time, without effect: --time-videos\n" in err
    _, err = har(*command, "--time")
    assert "without effect" not in err
