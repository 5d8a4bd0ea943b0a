"""Sweeps: what is planned, trained, kept, written and chosen."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from matplotlib.image import imread
from train_split import train_split
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.cli.progress import sweep_table
from har_pipeline.core.errors import RunError, UsageError
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.evaluation.scores import read_scores
from har_pipeline.features.pack import open_features, pack_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.load import load_run
from har_pipeline.training.axes import Axis, parse_axis
from har_pipeline.training.options import TrainConfig
from har_pipeline.training.sweep import Point, SweepRuns, plan_points, point_name, run_sweep
from har_pipeline.training.sweep_table import Cell, cells_of, choose, curves, summarise, write_sweep

CLASSES = ("boxing", "running", "walking")
BASE = TrainConfig(units=3, epochs=2, batch_size=6, learning_rate=1e-2, device="cpu")
UNITS = Axis("units", (8, 2))


@dataclasses.dataclass(frozen=True)
class Task:
    store: FeatureStore
    name: str
    records: list[VideoRecord]
    splits: list[Split]

    def run(self, points: list[Point], splits: int = 1, workers: int = 1, **options: object) -> SweepRuns:
        return run_sweep(self.store, self.records, self.splits[:splits], points, workers=workers, **options)  # type: ignore[arg-type]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    features, labels = blobs(CLASSES, 6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    ids = list(labels)
    splits = [
        split_of(
            [v for v in ids if int(v[-1]) % 3 != k and int(v[-1]) != (k + 1) % 3],
            [v for v in ids if int(v[-1]) % 3 == k],
            [v for v in ids if int(v[-1]) == (k + 1) % 3],
            index=k,
        )
        for k in range(3)
    ]
    return Task(store, name, manifest(labels), splits)


def test_values_are_read_as_their_option_wants_them() -> None:
    assert parse_axis("units", "64, 128") == Axis("units", (64, 128))
    assert parse_axis("dropout", "0,0.5") == Axis("dropout", (0.0, 0.5))
    assert parse_axis("num_steps", "5,none") == Axis("num_steps", (5, None))
    assert parse_axis("standardise", "true,False,none") == Axis("standardise", (True, False, None))
    assert parse_axis("head", "res_lstm,stacked_lstm") == Axis("head", ("res_lstm", "stacked_lstm"))
    assert parse_axis("pca", "4") == Axis("pca", (4,))
    assert parse_axis("features", "a,b") == Axis("features", ("a", "b"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("units", "64,many", "units: 'many' is not int"),
        ("units", "64,", "units: '' is not int"),
        ("units", "none", "units: 'none' is not int"),
        ("head", "gru,rnn", "head: 'rnn' is not one of"),
        ("standardise", "1", "standardise: '1' is not bool"),
        ("features", "a,,b", "features: '' is not str"),
        ("seed", "1,2", "'seed' cannot be swept; these can: head, units"),
        ("unit", "1,2", "'unit' cannot be swept"),
    ],
)
def test_values_that_are_none(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_axis(name, text)


def test_a_plan_has_every_combination_in_order() -> None:
    axes = [Axis("head", ("stacked_lstm", "res_lstm")), Axis("dropout", (0.5,)), Axis("num_layers", (10, 2))]
    points = plan_points([*axes, Axis("pca", (4,))], BASE, "set", Path("out"))
    assert [point.folder.name for point in points] == [
        f"head_{head}-num_layers_{layers}" for head in ("stacked_lstm", "res_lstm") for layers in (2, 10)
    ]
    assert {(point.pca, point.feature_set, point.config.dropout) for point in points} == {(4, "set", 0.5)}
    assert points[3].config == dataclasses.replace(BASE, head="res_lstm", num_layers=10, dropout=0.5)
    assert point_name(points[0].values) == "head_stacked_lstm-num_layers_2"
    (single,) = plan_points([Axis("units", (4,))], BASE, "set", Path("out"))
    assert (single.folder.name, single.config.units) == ("units_4", 4)
    several = plan_points([Axis("features", ("b", "a"))], BASE, "", Path("out"))
    assert [(point.feature_set, point.pca) for point in several] == [("b", None), ("a", None)]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([], "nothing is swept"),
        ([UNITS, Axis("units", (3, 4))], "units given twice"),
        ([Axis("units", (3, 3))], "units: duplicate value in 3, 3"),
        ([Axis("dropout", (0.5, 1.5))], r"dropout_1.5: dropout must be at least 0 and below 1"),
        ([Axis("head", ("svm",)), Axis("num_layers", (1, 2))], "num_layers_1: num_layers belongs to lstm"),
        (
            [Axis("head", ("lstm", "res_lstm")), UNITS],
            "units has no effect in head_res_lstm-units_2: the head res_lstm",
        ),
        ([Axis("head", ("svm",)), Axis("epochs", (1, 2))], "epochs has no effect in epochs_1: the head svm"),
        ([Axis("schedule_factor", (0.1, 0.2))], "schedule_factor has no effect"),
        ([Axis("logistic_c", (0.1, 1.0))], "logistic_c has no effect in logistic_c_0.1: the head lstm"),
    ],
)
def test_plans_that_make_no_sense(axes: list[Axis], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_points(axes, BASE, "", Path("out"))


def test_the_table_has_every_run_as_it_would_be_alone(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    points = plan_points([UNITS, Axis("num_steps", (3, 1))], BASE, task.name, out)
    result = task.run(points, splits=2, repeats=2)
    write_sweep(out, result)
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    keys = [(int(row["units"]), int(row["num_steps"]), int(row["seed"]), int(row["split"])) for row in rows]
    assert keys == [(u, t, seed, split) for u in (2, 8) for t in (1, 3) for seed in (0, 1) for split in (0, 1)]
    row = rows[-1]
    assert row["folder"] == "units_8-num_steps_3/seed1/split1"
    run = load_run(out / row["folder"])
    assert (run.config.units, run.config.num_steps, run.config.seed, run.split.index) == (8, 3, 1, 1)
    assert int(row["parameters"]) == sum(one.numel() for one in run.head.parameters())
    assert int(row["num_test"]) == len(run.split.test)
    alone = train_split(task.store, task.name, task.records, task.splits[1], run.config, tmp_path / "alone")
    assert float(row["accuracy"]) == alone.test_accuracy
    assert float(row["val_accuracy"]) == alone.val_accuracy
    assert (tmp_path / "alone/scores.csv").read_bytes() == (run.path / "scores.csv").read_bytes()
    # Two test videos of each class: the mean over the classes is the mean over the videos.
    assert float(row["mean_class_accuracy"]) == pytest.approx(alone.test_accuracy)
    assert json.loads((out / "sweep.json").read_text())["swept"] == ["units", "num_steps"]


def test_mean_class_accuracy_counts_classes_alike(task: Task, tmp_path: Path) -> None:
    test = [v for v in task.splits[0].test if v != "boxing-0"]
    split = dataclasses.replace(task.splits[0], test=tuple(test))
    points = plan_points([Axis("epochs", (1, 2))], BASE, task.name, tmp_path / "out")
    for cell in cells_of(dataclasses.replace(task, splits=[split]).run(points)):
        scores = read_scores(cell.folder / "scores.csv")
        right: dict[str, list[bool]] = {}
        for part, label, row in zip(scores.part, scores.labels, scores.probabilities, strict=True):
            if part == "test":
                right.setdefault(label, []).append(scores.classes[row.argmax()] == label)
        shares = [sum(own) / len(own) for own in right.values()]
        assert cell.mean_class_accuracy == pytest.approx(sum(shares) / 3)


def test_finished_runs_are_kept_and_the_missing_ones_made(task: Task, tmp_path: Path) -> None:
    points = plan_points([UNITS], BASE, task.name, tmp_path / "out")
    _, first = write_sweep(tmp_path / "out", task.run(points, splits=2))
    table = (tmp_path / "out/sweep.csv").read_text()
    shutil.rmtree(tmp_path / "out/units_8/split1")
    told: list[tuple[str, list[bool]]] = []
    result = task.run(
        points, splits=2, on_done=lambda point, made: told.append((point.folder.name, [o.kept for o in made]))
    )
    assert told == [("units_2", [True, True]), ("units_8", [True]), ("units_8", [False])]
    _, again = write_sweep(tmp_path / "out", result)

    def results(text: str) -> list[list[str]]:
        return [[cell for k, cell in enumerate(row) if k != 8] for row in csv.reader(text.splitlines())]

    assert next(csv.reader(table.splitlines()))[8] == "seconds"
    assert results((tmp_path / "out/sweep.csv").read_text()) == results(table)
    assert again == first
    assert [one.split for one in first] == [0, 1]
    other = plan_points([UNITS], dataclasses.replace(BASE, epochs=3), task.name, tmp_path / "out")
    with pytest.raises(RunError, match=r"was trained differently \(epochs: 2 != 3\)"):
        task.run(other, splits=2)
    assert not any(one.kept for made in task.run(other, splits=2, overwrite=True).runs.values() for one in made)


def test_worker_processes_make_the_same_runs(task: Task, tmp_path: Path) -> None:
    def table(folder: str, workers: int) -> list[Cell]:
        points = plan_points([UNITS], BASE, task.name, tmp_path / folder)
        cells = cells_of(task.run(points, splits=3, workers=workers))
        return [dataclasses.replace(cell, seconds=0.0, folder=Path(cell.folder.name)) for cell in cells]

    assert table("several", 2) == table("one", 1)
    assert not list(tmp_path.rglob("*har-lock*"))


def test_a_run_that_fails_does_not_stop_the_others(task: Task, tmp_path: Path) -> None:
    features, _ = blobs(CLASSES, 6, dim=4)
    del features["walking-5"]
    _, lacking = feature_store(tmp_path / "store.zarr", features)
    points = plan_points([Axis("features", (lacking, task.name))], BASE, "", tmp_path / "out")
    result = task.run(points, splits=2)
    assert list(result.failed) == [f"features_{lacking}"]
    assert "no features of 1 video (walking-5)" in result.failed[f"features_{lacking}"]
    assert [len(made) for made in result.runs.values()] == [0, 2]
    with pytest.raises(RunError, match="no run of the sweep was finished: features_drawn"):
        write_sweep(tmp_path / "none", dataclasses.replace(result, runs={}))


def test_pca_is_fitted_for_each_split(task: Task, tmp_path: Path) -> None:
    points = plan_points([Axis("pca", (4, 2)), Axis("head", ("res_lstm",))], BASE, task.name, tmp_path / "out")
    cells = cells_of(task.run(points, splits=2))
    for cell in cells:
        run = load_run(cell.folder)
        assert run.spec.reduction is not None
        assert (run.spec.reduction.split, run.spec.reduction.dim) == (cell.split, dict(cell.values)["pca"])
    assert [cell.values for cell in cells] == [(("pca", 2),)] * 2 + [(("pca", 4),)] * 2
    assert len(task.store.feature_sets()) == 5
    assert all(one.kept for made in task.run(points, splits=2).runs.values() for one in made)
    assert len(task.store.feature_sets()) == 5


@pytest.mark.parametrize(("dim", "message"), [(9, "of 8 features allow 1 to 8"), (99, "pca 99, holdout split 0: ")])
def test_a_pca_that_is_too_large_is_an_error_before_anything_is_made(
    task: Task, tmp_path: Path, dim: int, message: str
) -> None:
    points = plan_points([Axis("pca", (2, dim))], BASE, task.name, tmp_path / "out")
    with pytest.raises(RunError, match=message):
        task.run(points)
    assert not (tmp_path / "out").exists()
    assert task.store.feature_sets() == [task.name]


def test_a_pack_is_swept_as_its_store_but_not_reduced(task: Task, tmp_path: Path) -> None:
    pack_features(task.store, task.name, tmp_path / "pack")
    pack = open_features(tmp_path / "pack")
    one = cells_of(task.run(plan_points([UNITS], BASE, task.name, tmp_path / "one")))
    points = plan_points([UNITS], BASE, task.name, tmp_path / "other")
    other = cells_of(run_sweep(pack, task.records, task.splits[:1], points, workers=1))
    assert [cell.accuracy for cell in one] == [cell.accuracy for cell in other]
    points = plan_points([Axis("pca", (2, 4))], BASE, task.name, tmp_path / "pca")
    with pytest.raises(RunError, match="a pack cannot be reduced"):
        run_sweep(pack, task.records, task.splits[:1], points, workers=1)


def test_a_pca_larger_than_the_training_clips_allow(tmp_path: Path) -> None:
    features, labels = blobs(CLASSES, 2, dim=64)
    store, name = feature_store(tmp_path / "store.zarr", features)
    split = split_of([v for v in labels if v.endswith("0")], [v for v in labels if v.endswith("1")])
    rows = sum(len(features[v]) for v in split.train)
    points = plan_points([Axis("pca", (2, rows))], BASE, name, tmp_path / "out")
    with pytest.raises(RunError, match=f"{rows} training rows of 64 features allow 1 to {rows - 1}"):
        run_sweep(store, manifest(labels), [split], points, workers=1)


def cell(units: int, split: int, val: float | None, accuracy: float, seed: int = 0, layers: int = 1) -> Cell:
    return Cell(
        values=(("units", units), ("num_layers", layers)),
        split=split,
        seed=seed,
        val_accuracy=val,
        accuracy=accuracy,
        mean_class_accuracy=accuracy / 2,
        num_test=10,
        parameters=units,
        seconds=1.0,
        folder=Path(f"out/{units}-{layers}/seed{seed}/split{split}"),
    )


def test_the_choice_reads_validation_accuracies_only() -> None:
    cells = [cell(2, 0, 0.9, 0.1), cell(2, 1, 0.5, 0.8), cell(8, 0, 0.8, 0.7), cell(8, 1, 0.5, 0.9)]
    chosen = choose(cells)
    assert [(one.split, dict(one.values)["units"], one.val_accuracy, one.accuracy) for one in chosen] == [
        (0, 2, 0.9, 0.1),
        (1, 2, 0.5, 0.8),  # as good as 8: the first
    ]
    assert choose([*cells, cell(9, 0, None, 1.0)]) == []
    # Seeds are averaged, and a point that lacks one does not stand for choice.
    seeds = [cell(2, 0, 0.6, 0.5), cell(2, 0, 0.8, 0.7, seed=1), cell(8, 0, 0.99, 0.9)]
    (only,) = choose(seeds)
    assert (dict(only.values)["units"], only.val_accuracy, only.accuracy) == (2, pytest.approx(0.7), pytest.approx(0.6))


def test_means_and_deviations_by_hand() -> None:
    first, second = summarise([cell(2, 0, 0.6, 0.5), cell(2, 1, 0.8, 0.7), cell(8, 0, None, 0.9)])
    assert (first.runs, first.accuracy, first.sd) == (2, pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert (first.mean_class_accuracy, first.mean_class_sd) == (pytest.approx(0.3), pytest.approx(0.005**0.5))
    assert first.val_accuracy == pytest.approx(0.7)
    assert (second.runs, second.sd, second.val_accuracy) == (1, None, None)


def test_lines_are_told_apart_by_the_other_options() -> None:
    x, lines = curves(summarise([cell(u, s, None, 0.5, layers=n) for n in (1, 2) for u in (2, 8) for s in (0, 1)]))
    assert x == "units"
    assert [name for name, _ in lines] == ["recurrent layers 1", "recurrent layers 2"]
    assert [[value for value, _, _ in points] for _, points in lines] == [[2, 8], [2, 8]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep_cli")
    features, labels = blobs(CLASSES, 9, dim=6)
    feature_store(folder / "store.zarr", features)
    rows = [f"{v},{label},videos/{v}.avi,s{v[-1]}" for v, label in labels.items()]
    (folder / "manifest.csv").write_text("video_id,label,path,subject\n" + "\n".join(rows) + "\n")
    return folder


def arguments(work: Path, out: Path, *more: str) -> list[str]:
    usual = ("--device", "cpu", "--epochs", "2", "--workers", "1", "-o", str(out))
    return ["sweep", str(work / "manifest.csv"), str(work / "store.zarr"), *usual, *more]


@pytest.mark.usefixtures("pictures_drawn")
def test_on_the_command_line(work: Path, tmp_path: Path) -> None:
    protocol = ["--protocol", "group_kfold", "--num-folds", "3", "--split", "all"]
    more = ["--units", "4,2", "--set", "dropout=0,0.5", *protocol]
    result = CliRunner().invoke(app, arguments(work, tmp_path / "out", *more))
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    assert "[12/12] units_4-dropout_0.5: 3 trained, test video accuracy" in result.stderr
    assert result.stdout.count(" chosen by its validation accuracy ") == 3
    assert "mean test video accuracy of the chosen values" in result.stdout
    assert min(imread(tmp_path / "out" / "sweep.png").shape[:2]) > 300
    found = json.loads(CliRunner().invoke(app, arguments(work, tmp_path / "out", *more, "--json")).stdout)
    assert [one["values"] for one in found["points"]] == [{"units": u, "dropout": d} for u in (2, 4) for d in (0, 0.5)]
    assert found == json.loads((tmp_path / "out/sweep.json").read_text())


def test_without_validation_videos_nothing_is_chosen(work: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments(work, tmp_path / "out", "--num-steps", "1,2", "--val-fraction", "0"))
    assert result.exit_code == 0, result.output
    assert ("no values chosen" in result.stdout, "chosen by" in result.stdout) == (True, False)


def test_a_failed_run_is_an_exit_code(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "data")
    full = FeatureStore(tmp_path / "data/store.zarr").feature_sets()[0]
    _, lacking = feature_store(tmp_path / "data/store.zarr", {"boxing-0": np.zeros((2, 3), np.float32)})
    more = ["--features", f"{lacking},{full}"]
    result = CliRunner().invoke(app, arguments(tmp_path / "data", tmp_path / "out", *more))
    assert result.exit_code == 1
    assert f"failed: features_{lacking}: " in result.stderr
    assert len((tmp_path / "out/sweep.csv").read_text().splitlines()) == 2
    assert CliRunner().invoke(app, arguments(work, tmp_path / "out", "--set", "units")).exit_code == 2


def test_a_terminal_shows_a_table(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes stderr for a terminal
    points = plan_points([UNITS], BASE, task.name, tmp_path / "out")
    with sweep_table(points, 2, live=True) as on_done:
        task.run(points, splits=2, on_done=on_done)
    shown = capsys.readouterr().err
    assert "4 of 4 runs finished" in shown
    assert shown.count("2/2") >= 2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_killed_sweep_goes_on_and_leaves_no_worker(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--units", "2,3,4,5,6,7", "--epochs", "60", "--repeats", "2", "--workers", "2"]
    command = arguments(work, out, *more)
    code = "from har_pipeline.cli import main; main()"
    python = [sys.executable, "-c", code]
    process = subprocess.Popen([*python, *command], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600
    while len(list(out.glob("*/*/run.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while _group_lives(process.pid):
        assert time.monotonic() < deadline, "a worker outlived the sweep"
        time.sleep(0.1)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/*/run.json")}
    assert 2 <= len(kept) < 12
    assert not (out / "sweep.csv").exists()
    result = CliRunner().invoke(app, [*command, "--workers", "1"])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    assert not list(out.glob("*/.*.partial*"))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    rows = csv.DictReader((out / "sweep.csv").read_text().splitlines())
    keys = [(int(row["units"]), int(row["seed"])) for row in rows]
    assert keys == [(units, seed) for units in range(2, 8) for seed in range(2)]


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
