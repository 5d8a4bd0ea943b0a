"""Each experiment, whole, on a small tree with the data set's own file names."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_trees import hmdb51_tree, kth_tree, ucf11_tree
from experiments import PIPELINES, load
from pixel_nets import build_pixel_extractor

from har_pipeline.inference.load import load_run


def kth_data(folder: Path) -> list[str]:
    kth_tree(folder / "data", folder / "00sequences.txt")
    return []


def kth_sequence_data(folder: Path) -> list[str]:
    return [*kth_data(folder), "--sequences", str(folder / "00sequences.txt")]


def ucf11_data(folder: Path) -> list[str]:
    ucf11_tree(folder / "data")
    return []


def hmdb51_data(folder: Path) -> list[str]:
    hmdb51_tree(folder / "data", folder / "lists")
    return ["--splits", str(folder / "lists")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "data", "videos", "classes", "folds"),
    [
        ("kth", kth_data, 599, 6, 1),
        pytest.param("kth", kth_sequence_data, 2391, 6, 1, marks=pytest.mark.exhaustive),
        pytest.param("ucf11", ucf11_data, 11 * 25, 11, 25, marks=pytest.mark.exhaustive),
        ("hmdb51", hmdb51_data, 51 * 3 + 1, 51, 3),
    ],
)
def test_orozco2020(
    dataset: str,
    data: Callable[[Path], list[str]],
    videos: int,
    classes: int,
    folds: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every class, fold and official list; one frame of each video is enough for that, and one data set with a real net."""
    pipeline = load("orozco2020")
    if dataset != "hmdb51":
        monkeypatch.setattr(pipeline, "build_extractor", build_pixel_extractor)
    more = data(tmp_path)
    _, published, accuracy, _ = pipeline.PAPER[dataset]
    command = [dataset, str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--extractor", "efficientnet_lite0"]
    command += ["--frames", "1", "--units", "4", str(published), "--epochs", "1", "--device", "cpu", *more]
    options = pipeline.parse(command)
    result = pipeline.run(options)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert (stored["videos"], stored["without features"]) == (videos, [])
    assert (stored["published n_u"], stored["paper"]) == (published, accuracy)
    assert [row["units"] for row in stored["sweep"]] == [4, published]
    assert all(row["folds"] == folds and 0 <= row["accuracy"] <= 1 for row in stored["sweep"])
    assert stored["ours at the published n_u"] == stored["sweep"][1]["accuracy"]
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 5000
    assert "Orozco 2020" in (tmp_path / "out" / "report.html").read_text()
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("run.json")}
    assert len(runs) == 2 * folds
    assert {len(load_run(path.parent).classes) for path in runs} == {classes}
    if dataset == "hmdb51":
        assert pipeline.run(options) == result
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("run.json")} == runs


def test_papers_numbers_stand_once() -> None:
    """The list that the README's table is made from has what the experiments print."""
    with open(PIPELINES / "papers.csv", newline="", encoding="utf-8") as file:
        listed = {row["dataset"]: float(row["percent"]) for row in csv.DictReader(file) if row["paper"] == "orozco2020"}
    assert listed == {name: pytest.approx(100 * row[2]) for name, row in load("orozco2020").PAPER.items()}


@pytest.mark.slow
def test_synthetic_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two people, and with fewer epochs than `make demo`."""
    pipeline = load("synthetic_demo")
    short = {name: (stream, dataclasses.replace(config, epochs=3)) for name, (stream, config) in pipeline.RUNS.items()}
    monkeypatch.setattr(pipeline, "RUNS", short)
    result = pipeline.run(tmp_path / "out", 2, 0.0, "cpu")
    assert set(result["accuracy"]) == {"mean_pool", "lstm", "lstm_flow", "product"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
