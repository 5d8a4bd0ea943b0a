"""Sanchez-Caballero's experiments, whole, on a small tree with NTU RGB+D's names: every cell of every table."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from dataset_trees import ntu_tree
from depth_files import moving_body, write_folder, write_mat
from experiments import PIPELINES, lines_of, load
from feature_sets import split_of

from har_pipeline.core.records import VideoRecord
from har_pipeline.evaluation.run_folder import read_history
from har_pipeline.inference.load import load_run

SMALL = ["--epochs", "2", "2", "--width", "0.04", "--batch-size", "30", "--device", "cpu"]
ACTIONS = 22
QUICK = ["--range-steps", "2", "--time-videos", "3", "--workers", "1"]
NAMES = ("Stateless ConvLSTM", "Stateful ConvLSTM")


def check_tables(result: dict[str, Any]) -> None:
    """Every number of the paper stands beside one of ours."""
    for name in NAMES:
        rows = result["table 3"][name]
        assert [row["place"] for row in rows] == [*range(1, 11), "mean of 10"]
        noted = [
            row[key]
            for row in rows
            for key in ("best, paper", "worst, paper")
            if not row[key].rstrip(")").endswith("%")
        ]
        sic = "reading -> writing (46.37%, sic: 128 of the class's 276 test videos are 46.38)"
        assert noted == ([sic] if name == NAMES[0] else [])
        assert all("%" in row[key] for row in rows for key in ("best, ours, reduced", "worst, ours, reduced"))
    assert "-> take off a shoe (40.22%)" in result["table 3"]["Stateless ConvLSTM"][0]["worst, paper"]
    assert result["table 3"]["Stateful ConvLSTM"][10]["best, paper"] == "96.49%"
    # Intervals stand beside accuracies.
    assert result["table 3"]["Stateful ConvLSTM"][0]["best, ours, reduced"].count("%") == 3
    table4 = {row["method"]: row for row in result["table 4"]}
    papers = {name: (table4[name]["CS, paper"], table4[name]["CV, paper"]) for name in NAMES}
    assert papers == {NAMES[0]: ("75.26 %", "75.45 %"), NAMES[1]: ("80.43 %", "79.91 %")}
    for name in NAMES:
        assert all(" % (" in table4[name][f"{short}, ours, reduced"] for short in ("CS", "CV"))
    assert table4["Unsupervised ConvLSTM (2017), depth"]["CV, paper"] == ""
    assert len(table4) == 9 + 1
    baseline = table4["motion maps + ridge classifier, a baseline of ours"]
    assert [" % (" in value for value in baseline.values()] == [False, False, False, True, True]
    assert [row["paper"] for row in result["gains"]] == [
        *("more than 4 points", "almost 5 points", "around 7 points", "approximately 100 times")
    ]
    assert [row["ours, reduced"].endswith(" points") for row in result["gains"]] == [True, True, False, False]
    assert [(row["method"], row["paper"], row["videos"]) for row in result["table 5"]] == [
        ("MSFK+DeepID", "41.00", ""),
        ("SFAM", "6.33", ""),
        ("WHDMM", "0.62", ""),
        ("DDI+DDNI+DDMNI", "62.03", ""),
        ("Multi-view dynamic images+CNN", "51.02", ""),
        (NAMES[0], "0.21", 3),
        (NAMES[1], "0.89", 3),
    ]
    for row in result["table 5"][5:]:
        assert 0 < float(row["ours, reduced, network alone"]) <= float(row["ours, reduced, from files"]) < 60


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_cell(tmp_path: Path) -> None:
    root, out = tmp_path / "nturgb+d_depth_masked", tmp_path / "out"
    ntu_tree(root, actions=ACTIONS)
    # One folder is broken, and an action of the larger NTU RGB+D 120 is none of the paper's.
    broken = next(iter((root / "S001C001P003R001A022").iterdir()))
    for png in (root / "S001C001P003R001A022").iterdir():
        png.unlink()
    broken.write_bytes(b"no png")
    write_folder(root / "S018C001P041R001A061", moving_body(8))
    pipeline = load("sanchez2020")
    options = pipeline.parse([str(root), "--out", str(out), *SMALL, *QUICK])
    result = pipeline.run(options)
    assert (result["videos"], list(result["without frames"])) == (71, ["S001C001P003R001A022"])
    check_tables(result)
    assert result["range test"]["batches"] == 2
    told = " ".join(result["differs"])
    for part in (
        *("0.04 times", "2 epochs", "have 12", "have 6", "3 videos are timed"),
        "xsub: 49 training and 21 test videos; the paper has 40,320 and 16,560",
        "xview: 44 training and 26 test videos; the paper has 37,920 and 18,960",
    ):
        assert part in told
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(result))
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 + 1 + 3
    assert page.count("Reduced: ") == len(result["differs"]) == 9
    assert "the network of the last epoch is tested" in page
    assert "goes on from epoch 1," in page
    runs = {path: path.stat().st_mtime_ns for path in (out).glob("convlstm-*/run.json")}
    assert len(runs) == 4
    for path in runs:
        loaded = load_run(path.parent)
        assert (loaded.split.protocol, len(loaded.classes)) == (path.parent.name.rsplit("_", 1)[1], ACTIONS)
        assert len(read_history(path.parent)["epoch"]) == 2
        assert not loaded.split.val
        assert loaded.info["precision"] == "fp32"
    timing = {path: path.stat().st_mtime_ns for path in out.rglob("timing.json")}
    assert len(timing) == 2
    # What is not finished is made again, and made the same; the rest is kept.
    unfinished = out / "convlstm-stateful_xview"
    shutil.rmtree(unfinished)
    del runs[unfinished / "run.json"]
    assert pipeline.run(options) == result
    assert {path: path.stat().st_mtime_ns for path in (*runs, *timing)} == runs | timing


@pytest.mark.slow
def test_utd_mhad_has_one_protocol_and_the_papers_numbers_are_of_another_set(tmp_path: Path) -> None:
    root, out = tmp_path / "UTD-MHAD", tmp_path / "out"
    for action in range(1, 5):
        for subject in (1, 2):
            write_mat(root / f"a{action}_s{subject}_t1_depth.mat", moving_body(8 + 2 * subject, seed=action))
    pipeline = load("sanchez2020")
    arguments = ["--dataset", "utd_mhad", "--width", "0.04", "--epochs", "1", "1", "--device", "cpu", *QUICK]
    result = pipeline.run(pipeline.parse([str(root), "--out", str(out), *arguments]))
    told = " ".join(result["differs"])
    assert "UTD-MHAD instead of NTU RGB+D" in told
    assert "column: 4 training and 4 test videos; the paper has 40,320 and 16,560" in told
    row = next(row for row in result["table 4"] if row["method"] == "Stateful ConvLSTM")
    assert list(row) == [
        *("method", "CS, paper (NTU RGB+D)", "CV, paper (NTU RGB+D)"),
        "odd subjects train, even ones test, ours, reduced",
    ]
    assert row["CS, paper (NTU RGB+D)"] == "80.43 %"
    assert [len(rows) for rows in result["table 3"].values()] == [2 + 1, 2 + 1]
    assert [row["videos"] for row in result["table 5"][5:]] == [3, 3]
    page = (out / "report.html").read_text()
    assert "<title>Sanchez-Caballero 2020 on UTD-MHAD" in page
    assert page.count("data:image/png;base64,") == 1 + 3  # one epoch makes no curve


def full_data(pipeline: ModuleType) -> Any:
    """Return data with as many videos in each part as the paper has."""
    splits = {}
    for protocol, (train, test) in pipeline.PAPER_VIDEOS.items():
        ids = [f"v{k}" for k in range(train + test)]
        splits[protocol] = split_of(ids[:train], ids[train:])
    return pipeline.Data([], None, "", splits, {})


def differing(*arguments: str, root: str = "root") -> list[str]:
    pipeline = load("sanchez2020")
    options = pipeline.parse([root, "--out", "out", *arguments])
    found: list[str] = pipeline.departures(options, full_data(pipeline), pipeline.make_configs(options))
    return found


def test_the_published_experiment_is_not_called_reduced() -> None:
    pipeline = load("sanchez2020")
    options, data = pipeline.parse(["root", "--out", "out"]), full_data(pipeline)
    configs = pipeline.make_configs(options)
    assert (options.val_fraction, {config.precision for config in configs.values()}) == (0, {"fp32"})
    assert pipeline.departures(options, data, configs) == []
    assert pipeline.departures(options, data._replace(missing={"v0": ""}), configs) == [
        "xsub: 40,319 training and 16,560 test videos; the paper has 40,320 and 16,560",
        "xview: 37,919 training and 18,960 test videos; the paper has 37,920 and 18,960",
    ]
    assert sum(pipeline.PAPER_VIDEOS["xsub"]) == sum(pipeline.PAPER_VIDEOS["xview"]) == 56_880


def test_depth_with_its_background_is_told(tmp_path: Path) -> None:
    pipeline = load("sanchez2020")
    records = []
    for name, first in (("full", "Depth"), ("masked", "MDepth")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{first}-00000001.png").write_bytes(b"never read")
        records.append(VideoRecord(video_id=name, label="walk", depth_path=tmp_path / name))
    records.append(VideoRecord(video_id="mat", label="walk", depth_path=tmp_path / "a1_s1_t1_depth.mat"))
    options = pipeline.parse(["root", "--out", "out"])
    data = full_data(pipeline)._replace(records=records)
    assert pipeline.departures(options, data, pipeline.make_configs(options)) == [
        "the background is not masked in 1 of 3 videos; the paper's frames are masked"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_table_3_is_of_276_test_videos_a_class(name: str) -> None:
    """16,560 test videos of 60 actions: the shares that it prints are of so many, but for one, whose note says so."""
    for line in lines_of("sanchez2020", "ntu_xsub"):
        if (line["table"], line["of"], line["row"].startswith(name)) == ("3", "class", True):
            value = float(line["percent"])
            assert (value == round(100 * round(2.76 * value) / 276, 2)) == (not line["note"]), line


def test_where_the_papers_words_and_its_tables_differ_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load("sanchez2020")
    means = {0: SimpleNamespace(best_mean=0.5, worst_mean=0.25), 1: SimpleNamespace(best_mean=0.75, worst_mean=0.25)}
    monkeypatch.setattr(pipeline, "extremes", means.get)
    rows = pipeline.gains({(name, "xsub"): k for k, name in enumerate(NAMES)}, "xsub", "ours")
    assert [row["ours"] for row in rows] == ["+25.00 points", "+0.00 points", "", ""]
    assert rows[1]["note"] == "sic: 5.33 in Table 3"
    assert rows[3]["note"].startswith("sic: 51.02 / 0.89 = 57")


# What each option is changed to, and what is then told; None: which files, machine, or how finely Figure 5 is drawn.
CHANGED = {
    "root": (["elsewhere"], None),
    "out": (["--out", "elsewhere"], None),
    "device": (["--device", "cpu"], None),
    "workers": (["--workers", "1"], None),
    "range_steps": (["--range-steps", "50"], None),
    "dataset": (["--dataset", "utd_mhad"], "UTD-MHAD instead of NTU RGB+D"),
    "epochs": (["--epochs", "75", "24"], "in 24 epochs; the paper's schedule has 25"),
    "width": (["--width", "0.5"], "0.5 times the paper's filters"),
    "gates": (["--gates", "hard-sigmoid"], "hard sigmoids"),
    "batch_size": (["--batch-size", "12"], "12 videos in a batch; the paper's batches have 6"),
    "val_fraction": (["--val-fraction", "0.1"], "10% of the training videos"),
    "precision": (["--precision", "bf16"], "trained in bf16"),
    "time_videos": (["--time-videos", "100"], "100 videos are timed; the paper times 10,000"),
}


def test_no_option_is_left_out() -> None:
    assert set(CHANGED) == set(vars(load("sanchez2020").parse(["root", "--out", "out"])))


@pytest.mark.parametrize("name", sorted(set(CHANGED) - {"root"}))
def test_each_option_that_differs_from_the_paper_is_told(name: str) -> None:
    arguments, told = CHANGED[name]
    found = differing(*arguments)
    assert bool(found) == bool(told)
    assert not told or told in " ".join(found)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epochs", "0", "3"], "epochs must be at least 1, not 0"),
        (["--width", "0"], "width must be above 0 and at most 8, not 0.0"),
        (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["--val-fraction", "0.95"], "argument --val-fraction: must be 0 to 0.9, not 0.95"),
        (["--val-fraction", "nan"], "argument --val-fraction: must be 0 to 0.9, not nan"),
        (["--time-videos", "0"], "argument --time-videos: must be at least 1, not 0"),
        (["--range-steps", "1"], "argument --range-steps: must be at least 2, not 1"),
        (["--workers", "0"], "argument --workers: must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load("sanchez2020").parse(["root", "--out", "out", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"error: {told}")


def test_how_the_epoch_is_chosen_is_told() -> None:
    pipeline = load("sanchez2020")
    told = []
    for arguments in ([], ["--val-fraction", "0.2"]):
        options = pipeline.parse(["root", "--out", "out", *arguments])
        told.append(pipeline.epoch_choice(options, pipeline.make_configs(options)))
    assert all("seem to be its test videos; of the stateful one it does not say" in text for text in told)
    assert "last epoch is tested" in told[0]
    assert "from epoch 48, and its rate is halved after 4 epochs without better training accuracy" in told[0]
    assert "the best of its first 48 epochs" in told[1]
    assert "better validation accuracy" in told[1]


@pytest.mark.parametrize(("name", "side"), [(name, side) for name in NAMES for side in ("best", "worst")])
def test_the_papers_table_3_adds_up(name: str, side: str) -> None:
    """The ten accuracies that it prints have the mean that it prints, and name actions of NTU RGB+D."""
    with open(PIPELINES / "ntu60.csv", newline="", encoding="utf-8") as file:
        actions = {row["label"]: row["action"] for row in csv.DictReader(file)}
    assert list(actions) == [f"A{number:03d}" for number in range(1, 61)]
    with open(PIPELINES / "papers.csv", newline="", encoding="utf-8") as file:
        listed = [row for row in csv.DictReader(file) if (row["paper"], row["table"]) == ("sanchez2020", "3")]
    rows = {row["row"]: float(row["percent"]) for row in listed}
    own = {key.partition(": ")[2]: value for key, value in rows.items() if key.startswith(f"{name}, {side} ")}
    assert len(own) == 10
    assert sum(own.values()) / 10 == pytest.approx(rows[f"{name}, ten {side}"], abs=0.0051)
    assert {word for key in own for word in key.split(" -> ")} <= set(actions.values())


def test_a_tree_of_one_camera_is_refused_in_a_line_before_anything_is_read(tmp_path: Path) -> None:
    root = tmp_path / "nturgb+d_depth_masked"
    for subject in (1, 3):
        (root / f"S001C001P00{subject}R001A001").mkdir(parents=True)
        (root / f"S001C001P00{subject}R001A001/MDepth-00000001.png").write_bytes(b"never read")
    command = [sys.executable, str(PIPELINES / "sanchez2020.py"), str(root), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out/frames.zarr").exists()
