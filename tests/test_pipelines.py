"""Each experiment, whole, on a small tree with the data set's own file names."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_trees import hmdb51_tree, kth_tree, ucf11_tree
from experiments import PIPELINES, check_report, lines_of, load
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
        pytest.param("hmdb51", hmdb51_data, 51 * 3 + 1, 51, 3, marks=pytest.mark.exhaustive),
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
    _, table, published, label = pipeline.PAPER[dataset]
    caption = ["320"] if dataset == "hmdb51" else []
    command = [dataset, str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--extractor", "efficientnet_lite0"]
    command += ["--frames", "1", "--units", "4", str(published), *caption, "--epochs", "1", "--device", "cpu", *more]
    options = pipeline.parse(command)
    result = pipeline.run(options)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert (stored["videos"], stored["without features"]) == (videos, [])
    units = sorted([4, published, *map(int, caption)])
    assert stored["published n_u"] == published
    assert [row["units"] for row in stored["sweep"]] == units
    assert all(row["folds"] == folds for row in stored["sweep"])
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in stored["sweep"])
    headline = stored["sweep"][units.index(published)]["accuracy"]
    assert stored["ours at the published n_u"] == headline
    ours = {(row["table"], row["row"]): row["ours"] for row in stored["rows"]}
    assert ours[table, "CNN-LSTM"] == headline
    assert 0 <= ours["figure 7", label] <= 1
    if dataset == "hmdb51":
        assert ours["3", "CNN-LSTM, n_u = 320 as in the caption"] == stored["sweep"][units.index(320)]["accuracy"]
    if dataset == "ucf11":
        # The mean over folds of the mean over classes.
        written = json.loads((tmp_path / "out" / f"units_{published}" / "folds.json").read_text())
        assert headline == pytest.approx(written["mean_class"])
        assert stored["measure"] == "mean_class_accuracy"
    check_report((tmp_path / "out" / "report.html").read_text(), "orozco2020", dataset)
    assert (tmp_path / "out" / "figure7.png").stat().st_size > 5000
    for path in (tmp_path / "out").rglob("run.json"):
        assert (load_run(path.parent).config.output, load_run(path.parent).config.standardise) == ("sigmoid", False)
    said = {words.partition(" ")[0] for words in stored["departures"]}
    assert said == {"features", "1", "one"} if videos == 599 else {"features", "1"}
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 5000
    assert "Orozco 2020" in (tmp_path / "out" / "report.html").read_text()
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("run.json")}
    assert len(runs) == len(units) * folds
    assert {len(load_run(path.parent).classes) for path in runs} == {classes}
    if dataset == "hmdb51":
        assert pipeline.run(options) == result
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("run.json")} == runs


def test_papers_numbers_have_one_line_each() -> None:
    """No accuracy is listed twice, and every line says what it is."""
    with open(PIPELINES / "papers.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, restval=""))
    keys = [(line["paper"], line["table"], line["row"], line["dataset"], line["of"]) for line in lines]
    assert [key for key, count in Counter(keys).items() if count > 1] == []
    for line in lines:
        float(line["percent"])
        assert line["of"] in ("this", "cited", "class", "gain"), line
        assert line["unit"] in ("", "s", "points", "classes", "times"), line
        assert (line["of"] == "gain") == (line["unit"] in ("points", "classes", "times")), line


def test_whole_tables_are_listed() -> None:
    """The lines of each table, counted in the papers."""
    counts = Counter(
        (line["table"], line["of"]) for data in ("kth", "ucf11", "hmdb51") for line in lines_of("orozco2020", data)
    )
    assert counts == {
        **{
            ("1", "cited"): 3,
            ("1", "this"): 1,
            ("2", "cited"): 5,
            ("2", "this"): 1,
            ("3", "cited"): 4,
            ("3", "this"): 1,
        },
        **{("figure 7", "this"): 3, ("text", "this"): 3},
    }
    both = [line for data in ("ucf101", "hmdb51") for line in lines_of("lakhal2018", data)]
    assert Counter((line["table"], line["of"]) for line in both) == {
        **{("1", "this"): 8, ("2", "this"): 5, ("3", "cited"): 8, ("3", "this"): 10, ("3", "gain"): 8},
        **{("4", "cited"): 6, ("4", "this"): 2, ("5", "cited"): 41, ("5", "this"): 4, ("text", "gain"): 6},
    }
    marked = [line["note"] for line in both if line["table"] == "5"]
    assert sum("split 1" in note for note in marked) == 10
    assert sum("RGB only" in note for note in marked) == 3
    gains = {line["row"]: float(line["percent"]) for line in both if (line["table"], line["of"]) == ("3", "gain")}
    for row, gain in gains.items():
        own, other = (
            next(float(line["percent"]) for line in both if (line["table"], line["row"], line["of"]) == ("3", row, of))
            for of in ("this", "cited")
        )
        assert gain == pytest.approx(own - other, abs=0.05)


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
