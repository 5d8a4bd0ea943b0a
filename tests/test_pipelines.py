"""Each experiment, whole, on a small tree with the data set's own file names."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_trees import hmdb51_tree, kth_tree, ucf11_tree
from experiments import PIPELINES, check_report, lines_of, load
from feature_sets import split_of
from pixel_nets import build_pixel_extractor

from har_pipeline.core.records import ClipSpec
from har_pipeline.features.extract import feature_spec
from har_pipeline.features.options import ExtractOptions
from har_pipeline.inference.load import load_run
from har_pipeline.models.extractors import build_extractor


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
@pytest.mark.usefixtures("pictures_drawn")
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
    said = " ".join(stored["departures"])
    for part in ("features of efficientnet_lite0", "1 frames;", "1 epochs;"):
        assert part in said
    assert ("216 test files" in said) == (videos == 599)
    assert (f"{videos:,} videos; the paper has" in said) == (dataset != "kth")
    assert (said.count("training videos in split"), said.count("folds")) == (folds if dataset == "hmdb51" else 0, 0)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("Departure: ") == len(stored["departures"])
    assert "docs/papers.md" in page
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 5000
    assert "Orozco 2020" in (tmp_path / "out" / "report.html").read_text()
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("run.json")}
    assert len(runs) == len(units) * folds
    assert {len(load_run(path.parent).classes) for path in runs} == {classes}
    if dataset == "hmdb51":
        assert pipeline.run(options) == result
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("run.json")} == runs


def test_published_feature_sets_are_not_those_of_a_net_s_own_clips() -> None:
    """The names, and so the specs, that the sets had when nets read the first frames by default."""
    vgg16 = build_extractor("vgg16", weights="random", device="cpu", precision="fp32")
    lite0 = build_extractor("efficientnet_lite0", device="cpu", precision="fp32")
    orozco, demo, interaction = (load(name) for name in ("orozco2020", "synthetic_demo", "ut_interaction"))
    clips = orozco.first_frames(vgg16, orozco.FRAMES)
    assert clips == ClipSpec(sampling="first", num_clips=40)
    assert feature_spec(vgg16, ExtractOptions(clips=clips)).name == "vgg16-rgb-f94a514e5c"
    assert feature_spec(lite0, demo.RGB).name == "efficientnet_lite0-rgb-d081122907"
    of_pairs = ExtractOptions(clips=interaction.CLIPS["efficientnet_lite0"])
    assert feature_spec(lite0, of_pairs).name == "efficientnet_lite0-rgb-0ca0ca4312"
    own = vgg16.input.clips
    assert (own.sampling, own.num_clips) == ("uniform", 40)


# What each option of Orozco's pipeline is changed to, and what is then told; None: which files, machine, number of processes.
CHANGED = {
    "dataset": (["hmdb51"], None),
    "root": (["elsewhere"], None),
    "out": (["--out", "elsewhere"], None),
    "splits": (["--splits", "elsewhere"], None),
    "device": (["--device", "cpu"], None),
    "workers": (["--workers", "1"], None),
    "train_workers": (["--train-workers", "2"], None),
    "frames": (["--frames", "16"], "16 frames; the paper: 40"),
    "units": (["--units", "4"], "no run at the published n_u = 320"),
    "epochs": (["--epochs", "3"], "3 epochs; the paper: 50"),
    "extractor": (["--extractor", "i3d"], "features of i3d, its own layer; the paper: vgg16, pool5"),
    "layer": (["--layer", "fc6"], "features of vgg16, fc6; the paper: vgg16, pool5"),
    "weights": (["--weights", "imagenet"], "weights theirs; the paper: those of Keras"),
    "sequences": (["--sequences", "00sequences.txt"], "1,600 of the data set's 2,391 sequences are the videos"),
}


def orozco_departures(*arguments: str, videos: int = 1_600, folds: int = 25) -> list[str]:
    pipeline = load("orozco2020")
    options = pipeline.parse(["ucf11", "root", "--out", "out", *arguments])
    splits = [split_of([f"a{k}"], [f"b{k}"]) for k in range(folds)]
    found: list[str] = pipeline.departures(options, 320, "theirs", videos, splits)
    return found


def test_orozcos_published_experiment_has_no_departure_and_no_option_is_left_out() -> None:
    assert orozco_departures() == []
    assert orozco_departures(videos=1_599, folds=24) == ["1,599 videos; the paper has 1,600", "24 folds; the paper: 25"]
    options = load("orozco2020").parse(["ucf11", "root", "--out", "out"])
    assert set(CHANGED) == set(vars(options))


@pytest.mark.parametrize("name", sorted(set(CHANGED) - {"dataset", "root", "out"}))
def test_each_option_that_differs_from_orozcos_paper_is_told(name: str) -> None:
    arguments, told = CHANGED[name]
    found = orozco_departures(*arguments)
    assert bool(found) == bool(told)
    assert not told or told in " ".join(found)


def test_orozcos_hmdb51_has_the_sizes_of_the_official_splits() -> None:
    pipeline = load("orozco2020")
    options = pipeline.parse(["hmdb51", "root", "--out", "out"])
    ids = [f"v{k}" for k in range(5_100)]
    splits = [split_of(ids[:3_570], ids[3_570:])] * 3
    assert pipeline.departures(options, 400, "theirs", 6_766, splits) == []
    splits[1] = split_of(ids[:3_570], ids[3_570:-1])
    found = pipeline.departures(options, 400, "theirs", 6_766, splits)
    assert found == ["1,529 test videos in split 1; the paper has 1,530"]


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
    """Of two people outdoors, and with fewer clips and epochs than `make demo`."""
    pipeline = load("synthetic_demo")
    monkeypatch.setattr(pipeline, "write_dataset", functools.partial(pipeline.write_dataset, scenarios=["d1"]))
    for name in ("RGB", "FLOW"):
        options = getattr(pipeline, name)
        few = dataclasses.replace(options, clips=dataclasses.replace(options.clips, num_clips=3))
        monkeypatch.setattr(pipeline, name, few)
    short = {name: (stream, dataclasses.replace(config, epochs=3)) for name, (stream, config) in pipeline.RUNS.items()}
    monkeypatch.setattr(pipeline, "RUNS", short)
    for name in ("NET", "STEPS_LSTM"):
        monkeypatch.setattr(pipeline, name, dataclasses.replace(getattr(pipeline, name), epochs=1))
    result = pipeline.run(tmp_path / "out", 2, 0.0, "cpu")
    assert set(result["accuracy"]) == {"mean_pool", "lstm", "lstm_flow", "lstm_product", "convnet3d", "convnet3d_lstm"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<details class="run"') == 6
    assert page.count("data:image/jpeg;base64,") >= 6
    assert page.count("data:video/mp4;base64,") >= 6
