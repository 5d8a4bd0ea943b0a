"""Lakhal's experiments, whole: every class and official list, every cell of every table."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import hmdb51_tree, ucf101_tree
from experiments import check_report, lines_of, load
from pixel_nets import build_pixel_extractor

from har_pipeline.core.records import ClipSpec, FeatureSpec, Scores, VideoRecord, VideoSource
from har_pipeline.datasets.builders import build_manifest
from har_pipeline.datasets.splits import make_splits
from har_pipeline.evaluation.categories import read_groups
from har_pipeline.evaluation.scores import write_scores
from har_pipeline.features.store import FeatureStore

CHEAP = ["--tsn", "tsn_efficientnet_lite0", "--crops", "center"]
SMALL = ["--quick", "--epochs", "1", "--device", "cpu", "--flow-method", "dis"]


def idt_folder(folder: Path, records: list[VideoRecord], dataset: str) -> Path:
    """Write a scores.csv of split 1 as a third system has it: nearly always right."""
    classes = tuple(sorted({record.label for record in records}))
    labels = {record.video_id: record.label for record in records}
    split = make_splits(records, dataset, val_fraction=0.0)[0]
    rows = [(video_id, split.index) for video_id in split.test]
    own = [labels[video_id] for video_id, _ in rows]
    probabilities = np.full((len(rows), len(classes)), 0.1 / (len(classes) - 1))
    probabilities[np.arange(len(rows)), [classes.index(label) for label in own]] = 0.9
    folder.mkdir()
    scores = Scores(
        video_ids=tuple(video_id for video_id, _ in rows),
        labels=tuple(own),
        classes=classes,
        probabilities=probabilities,
        part=("test",) * len(rows),
        fold=tuple(fold for _, fold in rows),
        seed=(0,) * len(rows),
    )
    write_scores(folder / "scores.csv", scores)
    return folder


def idt_store(folder: Path, records: list[VideoRecord]) -> Path:
    """Write a store with six trajectories of each video, around a place of its class; one video has none."""
    store, rng = FeatureStore(folder, create=True), np.random.default_rng(0)
    blocks = {"trajectory": 30, "hog": 96, "hof": 108, "mbh": 192}
    clips = ClipSpec(sampling="dense", num_clips=None)
    layer, dim = "+".join(blocks), sum(blocks.values())
    name = store.create_feature_set(
        FeatureSpec(extractor="idt", weights="none", layer=layer, feature_dim=dim, clips=clips)
    )
    places = {label: rng.random(dim) for label in sorted(classes_of(records))}
    for number, record in enumerate(records):
        rows = places[record.label] + 0.2 * rng.random((6, dim)) if number else np.zeros((1, dim))
        starts = np.arange(len(rows))
        clip = VideoSource(clip_starts=starts, clip_ends=starts + 15, num_frames=25, fps=25.0)
        store.write(name, record.video_id, rows.astype(np.float16), clip)
    return folder


def classes_of(records: list[VideoRecord]) -> set[str]:
    return {record.label for record in records}


def check_cells(result: dict[str, Any], dataset: str, groups: int) -> None:
    """Every cell of the paper's tables and of figure 3 was executed: ours is a number wherever the system's own is printed."""
    rows = [row for row in result["rows"] if row["of"] == "this" and row["ours"] is not None]
    sizes = Counter(row["table"] for row in rows)
    assert sizes == {
        **{"1": 4, "figure 3a": 4, "figure 3b-c": 4 * 3 * 2, "section 3.3": 2 + 3, "2": 5},
        **{"3": groups, "4": 1, "5": 3},
    }
    assert all(0 <= row["low"] <= row["ours"] <= row["high"] <= 1 for row in rows)
    ours = {(row["table"], row["row"], row["of"]): row["ours"] for row in result["rows"]}
    for line in lines_of("lakhal2018", dataset):
        cited = line["of"] == "cited"
        assert (ours[line["table"], line["row"], line["of"]] is None) == cited, line
    for (table, name, of), value in ours.items():
        if (table, of) == ("3", "gain"):
            l2stm = [line for line in lines_of("lakhal2018", dataset) if (line["row"], line["of"]) == (name, "cited")]
            assert value == pytest.approx(ours["3", name, "this"] - float(l2stm[0]["percent"]) / 100)
    counts = [ours["text", f"classes that IDT {what}", "gain"] for what in ("improves or keeps", "makes worse")]
    assert sum(counts) == len(result["classes"])
    pairs = ours["5", "Res-LSTM x IDT", "this"], ours["5", "Res-LSTM", "this"]
    assert ours["text", "Res-LSTM x IDT over Res-LSTM", "gain"] == pytest.approx(pairs[0] - pairs[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "tree", "classes", "groups"),
    [
        pytest.param("ucf101", ucf101_tree, 101, 5 + 5, marks=pytest.mark.exhaustive),
        ("hmdb51", hmdb51_tree, 51, 5),
    ],
)
@pytest.mark.usefixtures("pictures_drawn")
def test_every_cell(
    dataset: str, tree: Any, classes: int, groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every class and list; the nets are stand-ins here, and the next test has real ones."""
    root, lists, out = tmp_path / "data", tmp_path / "lists", tmp_path / "out"
    tree(root, lists)
    records = build_manifest(dataset, root, splits=lists)
    of_store = dataset == "hmdb51"
    idt = idt_store(tmp_path / "idt", records) if of_store else idt_folder(tmp_path / "idt", records, dataset)
    command = [dataset, str(root), "--lists", str(lists), "--out", str(out), "--idt", str(idt)]
    pipeline = load("lakhal2018")
    monkeypatch.setattr(pipeline, "build_extractor", build_pixel_extractor)
    result = pipeline.run(pipeline.parse([*command, *CHEAP, *SMALL]))
    assert (len(classes_of(records)), result["splits"]) == (classes, 1)
    assert result["without features"] == []
    assert len(list(out.glob("idt/split*/encoding.safetensors"))) == of_store
    alone = {row["row"]: row["ours"] for row in result["rows"] if row["table"] == "5" and row["ours"] is not None}
    assert alone["IDT"] > 0.8
    assert alone["Res-LSTM x IDT"] > alone["Res-LSTM"]
    check_cells({**result, "classes": classes_of(records)}, dataset, groups)
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(result))
    page = (out / "report.html").read_text()
    check_report(page, "lakhal2018", dataset)
    # Figures 3 (three curves), 4 (videos recognised, if there are any, and mistaken), 5, and 6 (a) to (c).
    assert (out / "res_lstm" / "wrong.png").stat().st_size > 5000
    assert page.count("data:image/png;base64,") == 3 + 1 + (out / "res_lstm" / "right.png").exists() + 1 + 3
    assert "these numbers mean nothing" in page
    assert "TSN&#39;s weights: rgb: random:0; flow: random:0." in page
    assert not [path for path in out.rglob("run.json") if json.loads(path.read_text())["options"]["standardise"]]
    matrix = (out / "res_lstm_idt" / "confusion_groups.csv").read_text().splitlines()[0]
    order = list(dict.fromkeys(read_groups(dataset).group_of[label] for label in matrix.split(",")[1:]))
    assert order == list(read_groups(dataset).groups)
    assert all(len(list(out.glob(f"{name}/split*/run.json"))) == 1 for name in ("rgb", "flow", "mid_sum"))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_papers_own_net_and_crops(tmp_path: Path) -> None:
    """C3D, ten crops and all splits on two classes; without IDT the page says so, and a second start trains nothing."""
    root, lists, out = tmp_path / "data", tmp_path / "lists", tmp_path / "out"
    hmdb51_tree(root, lists, num_classes=2, frames=34)
    pipeline = load("lakhal2018")
    command = ["hmdb51", str(root), "--lists", str(lists), "--out", str(out), "--splits", "all", *SMALL]
    command += ["--clip-layer", "pool5", "--weights-clip", "random", "--tsn", "tsn_efficientnet_lite0"]
    result = pipeline.run(pipeline.parse(command))
    assert (result["weights"]["c3d rgb"], result["splits"]) == ("random:0", 3)
    assert len(list(out.glob("depth/*/split*/run.json"))) == 4 * 3 * 2 * 3
    page = (out / "report.html").read_text()
    assert "Random weights of c3d rgb" in page
    assert "No IDT was given" in page
    assert [row["ours"] for row in result["rows"] if row["row"] == "Res-LSTM x IDT"] == [None]
    # The centre crop alone beside the mean of ten.
    crops = [row["row"] for row in result["rows"] if row["table"] == "section 3.3" and "crop" in row["row"]]
    assert crops == [
        f"{one}, {way}" for one in ("mean of ten crops", "centre crop") for way in ("rgb", "flow", "product")
    ]
    assert "efficientnet_lite0" not in page or "ImageNet-1k" in page
    runs = {path: path.stat().st_mtime_ns for path in out.rglob("run.json")}
    assert pipeline.run(pipeline.parse(command)) == result
    assert {path: path.stat().st_mtime_ns for path in out.rglob("run.json")} == runs


# What each option is changed to, and what is then told; None: which files, lists, machine or number of processes, or what the
# report says elsewhere (IDT's scores, TSN's weights).
CHANGED = {
    "dataset": (["ucf101"], None),
    "root": (["elsewhere"], None),
    "lists": (["--lists", "elsewhere"], None),
    "out": (["--out", "elsewhere"], None),
    "idt": (["--idt", "scores.csv"], None),
    "device": (["--device", "cpu"], None),
    "workers": (["--workers", "1"], None),
    "train_workers": (["--train-workers", "2"], None),
    "weights_rgb": (["--weights-rgb", "mine.pth"], None),
    "weights_flow": (["--weights-flow", "mine.pth"], None),
    "splits": (["--splits", "all"], "the mean of all splits; the paper: split 1"),
    "quick": (["--quick"], "h = 8; the paper: 1,024"),
    "epochs": (["--epochs", "3"], "3 epochs; the paper does not say, our guess is 50"),
    "clip_net": (
        ["--clip-net", "i3d"],
        "Table 1 and Figure 3 are of i3d, its own layer; the paper: c3d, 4,096 values, here fc6",
    ),
    "clip_layer": (["--clip-layer", "pool5"], "Table 1 and Figure 3 are of c3d, pool5; the paper"),
    "weights_clip": (["--weights-clip", "ucf101-mmaction2"], "C3D's weights; the paper's learned from Sports-1M alone"),
    "tsn": (
        ["--tsn", "tsn_resnet50"],
        "TSN's frame net is tsn_resnet50, so that h is not 1,024; the published TSN: tsn_bninception",
    ),
    "crops": (["--crops", "center"], "features of the centre crop; the paper: the mean of ten crops"),
    "flow_method": (["--flow-method", "dis"], "optical flow by dis; the paper does not say, TSN has tvl1"),
}


def differing(*arguments: str, dataset: str = "hmdb51", videos: int = 6_849) -> list[str]:
    pipeline = load("lakhal2018")
    options = pipeline.parse([dataset, "root", "--lists", "lists", "--out", "out", *arguments])
    found: list[str] = pipeline.departures(options, videos)
    return found


def test_the_published_experiment_has_no_departure_and_no_option_is_left_out() -> None:
    assert differing() == []
    assert differing(dataset="ucf101", videos=13_320) == []
    assert differing("--weights-clip", "sports1m-mmaction2", "--clip-layer", "fc6") == []
    assert differing(videos=6_766) == ["6,766 videos; the paper has 6,849"]
    options = load("lakhal2018").parse(["hmdb51", "root", "--lists", "lists", "--out", "out"])
    assert set(CHANGED) == set(vars(options))


@pytest.mark.parametrize("name", sorted(set(CHANGED) - {"dataset", "root", "lists", "out"}))
def test_each_option_that_differs_from_the_paper_is_told(name: str) -> None:
    arguments, told = CHANGED[name]
    found = differing(*arguments)
    assert bool(found) == bool(told)
    assert not told or told in " ".join(found)


def test_the_report_lists_departures_runs_that_failed_and_what_the_paper_leaves_open(tmp_path: Path) -> None:
    pipeline = load("lakhal2018")
    command = ["hmdb51", "root", "--lists", "lists", "--out", str(tmp_path), "--crops", "center"]
    options = pipeline.parse(command)
    folder = tmp_path / pipeline.CURVES["figure 3b-c"]
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({"failed": {"res_lstm_2_2048": "only 900 rows"}}))
    result: dict[str, Any] = {
        **{"rows": [], "without features": [], "departures": pipeline.departures(options, 6_849)},
        "not trained": pipeline.not_trained(tmp_path),
        "weights": {"c3d rgb": "sports1m", **{f"{options.tsn} {stream}": "kinetics" for stream in ("rgb", "flow")}},
    }
    result["rows"] = [{**pipeline.found("1", "T = 5", 0.5), "printed": "", "note": ""}]
    assert result["not trained"] == {"depth/res_lstm_2_2048": "only 900 rows"}
    pipeline.report(options, result)
    page = (tmp_path / "report.html").read_text()
    assert "Departure: features of the centre crop; the paper: the mean of ten crops" in page
    assert "depth/res_lstm_2_2048 could not be trained: only 900 rows" in page
    assert "docs/papers.md" in page
    assert "Clips of c3d: sports1m." in page
