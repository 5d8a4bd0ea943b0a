"""What the page is made of: numbers of runs, jobs, fusions and sweeps, and what is left out with its reason."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_runs import SPEC, drawn_scores, write_drawn_run
from drawn_scores import scores_of
from feature_sets import feature_store
from har_command import har
from paths import python_path

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import ClipSpec, EncodingSpec, ReductionSpec, Scores, VideoRecord
from har_pipeline.evaluation.calibration import reliability
from har_pipeline.evaluation.categories import Grouping
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.evaluation.fusion_table import fuse, write_fusion
from har_pipeline.evaluation.members import load_members
from har_pipeline.evaluation.run_folder import read_run
from har_pipeline.evaluation.statistics import wilson_interval
from har_pipeline.features.store import FeatureStore
from har_pipeline.report import charts
from har_pipeline.report.data import ReportSources, collect_results
from har_pipeline.report.page import chart_library, render, script_json, write_report
from har_pipeline.report.words import describe_clips, describe_features, describe_run, option_rows
from har_pipeline.training.options import TrainConfig
from har_pipeline.training.sweep_table import read_sweep

CLASSES = ("a", "b", "c", "d", "e", "f")
VIDEOS = [f"v{n:02d}" for n in range(36)]


def predicted(scores: Scores) -> list[str]:
    return [scores.classes[k] for k in scores.probabilities.argmax(axis=1)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_drawn_run(tmp_path / "run", drawn_scores(CLASSES, VIDEOS))


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    for fold in range(3):
        write_drawn_run(tmp_path / "job" / f"split{fold}", drawn_scores(CLASSES, VIDEOS[fold::3], fold=fold))
    return tmp_path / "job"


@pytest.fixture
def repeats(tmp_path: Path) -> Path:
    for seed in range(2):
        write_drawn_run(tmp_path / "repeats" / f"seed{seed}", drawn_scores(CLASSES, VIDEOS, seed=seed))
    return tmp_path / "repeats"


def test_reliability_by_hand() -> None:
    rows = np.array([[0.95, 0.03, 0.02], [0.91, 0.05, 0.04], [0.55, 0.45, 0.0], [0.52, 0.48, 0.0], [1.0, 0.0, 0.0]])
    found = reliability(scores_of(rows, "abaaa"))
    assert [(one.low, one.rows, one.accuracy.value) for one in found.bins] == [(0.5, 2, 1.0), (0.9, 3, 2 / 3)]
    assert found.bins[1].confidence == pytest.approx(2.86 / 3)
    assert found.bins[1].accuracy == wilson_interval(2, 3)
    assert found.expected_error == pytest.approx((2 * (1 - 0.535) + 3 * abs(2 / 3 - 2.86 / 3)) / 5)
    with pytest.raises(ValueError, match="no scores"):
        reliability(scores_of(rows[:0], ""))


def test_a_run_has_the_numbers_of_its_evaluation_and_nothing_is_written(run: Path) -> None:
    before = sorted(run.iterdir())
    (result,) = collect_results([run]).results
    measures = evaluate(run, write=False).measures
    assert measures is not None
    assert sorted(run.iterdir()) == before
    assert [one.name for one in result.headline] == ["Video accuracy", "Among the five best", "Mean class accuracy"]
    assert [one.interval for one in result.headline] == [measures.top1, measures.top5, measures.mean_class]
    assert (result.confusion == measures.confusion).all()
    assert tuple(result.per_class) == measures.per_class
    assert (result.kind, result.videos, result.repeats, result.top1) == ("run", 36, 1, measures.top1.value)
    assert sum(one.rows for one in result.confused) == int(measures.confusion.sum() - np.diag(measures.confusion).sum())


def test_mistakes_are_listed_first_the_surest_on_top(run: Path) -> None:
    (result,) = collect_results([run]).results
    scores = read_run(run).scores()
    wrong = [row for row in result.listed if not row.right]
    assert {row.video_id for row in wrong} == {
        v for v, label, said in zip(scores.video_ids, scores.labels, predicted(scores), strict=True) if label != said
    }
    assert result.listed[: len(wrong)] == wrong
    assert [row.probability for row in wrong] == sorted((row.probability for row in wrong), reverse=True)
    assert [shown.right for shown in result.gallery] == sorted(shown.right for shown in result.gallery)


def test_folds_are_pooled_and_each_is_named(folds: Path) -> None:
    (result,) = collect_results([folds]).results
    found = evaluate(folds, write=False)
    assert found.measures is not None
    assert result.kind == "folds"
    assert result.headline[0].interval == found.measures.top1
    assert result.headline[-1].name == "Mean over 3 folds"
    assert result.headline[-1].value == found.mean_top1
    assert [part.name for part in result.parts] == ["fold 0", "fold 1", "fold 2"]
    assert result.videos == 36


def test_repeats_are_summed_but_their_intervals_are_of_the_videos(repeats: Path) -> None:
    (result,) = collect_results([repeats]).results
    assert (result.kind, result.videos, result.repeats) == ("repeats", 36, 2)
    assert result.confusion.sum() == 72
    assert result.headline[0].interval == evaluate(repeats, write=False).top1
    first = result.per_class[0]
    assert first.videos == 6
    assert first.accuracy is not None
    assert first.accuracy == wilson_interval(first.correct / 2, 6)
    assert len(result.listed) == 36
    assert "mean over 2 repeats" in result.headline[0].said


def test_folds_that_share_videos_and_repeats_of_folds(tmp_path: Path) -> None:
    for fold in range(2):
        write_drawn_run(tmp_path / "shared" / f"split{fold}", drawn_scores(CLASSES, VIDEOS, fold=fold))
        for seed in range(2):
            scores = drawn_scores(CLASSES, VIDEOS[fold::2], fold=fold, seed=seed)
            write_drawn_run(tmp_path / "both" / f"seed{seed}" / f"split{fold}", scores)
    shared, both = collect_results([tmp_path / "shared", tmp_path / "both"]).results
    assert (shared.kind, shared.videos, int(shared.confusion.sum())) == ("folds", 36, 72)
    assert shared.headline[0].interval is None
    assert "mean over 2 folds" in shared.headline[0].said
    assert (both.kind, both.videos, int(both.confusion.sum())) == ("repeats", 36, 72)
    assert [figure.name for figure in both.headline][-1] == "All folds of a repeat pooled"
    assert [part.name for part in both.parts] == ["seed 0", "seed 1"]
    assert "mean over 2 repeats" in render(collect_results([tmp_path / "both"]))


def test_the_validation_part_and_a_fusion_of_repeats(tmp_path: Path, repeats: Path) -> None:
    run = write_drawn_run(tmp_path / "val", drawn_scores(CLASSES, VIDEOS, part="val"))
    assert "Validation videos." in render(collect_results([run], part="val"))
    for seed in range(2):
        scores = drawn_scores(CLASSES, VIDEOS, seed=seed, strength=1.0)
        write_drawn_run(tmp_path / "other" / f"seed{seed}", scores)
    members = load_members([repeats, tmp_path / "other"])
    table, scores = fuse(members)
    write_fusion(tmp_path / "fused", table, scores, members)
    (result,) = collect_results([tmp_path / "fused"]).results
    assert (result.kind, result.videos, result.repeats) == ("fusion", 36, 2)
    assert result.top1 == table.row("product").top1.value


def test_classes_are_ordered_by_group(run: Path) -> None:
    grouping = Grouping(name="own", group_of=dict(zip(CLASSES, "xyxyxy", strict=True)))
    (result,) = collect_results([run], grouping=grouping).results
    (plain,) = collect_results([run]).results
    assert list(result.classes) == ["a", "c", "e", "b", "d", "f"]
    assert result.spans == (("x", 0, 3), ("y", 3, 6))
    order = [0, 2, 4, 1, 3, 5]
    assert (result.confusion == plain.confusion[np.ix_(order, order)]).all()
    assert [row.label for row in result.per_class] == list(result.classes)
    assert result.gallery[0].group in "xy"


def test_curves_are_means_over_the_runs_with_their_range(tmp_path: Path) -> None:
    for fold, epochs in ((0, 2), (1, 4)):
        write_drawn_run(tmp_path / f"split{fold}", drawn_scores(CLASSES, VIDEOS[fold::2], fold=fold), epochs=epochs)
    (result,) = collect_results([tmp_path]).results
    loss = {p.epoch: p for p in result.curves if (p.part, p.measure) == ("validation", "loss")}
    assert sorted(loss) == [1, 2, 3, 4]
    assert (loss[2].mean, loss[2].low, loss[2].high) == (1.25, 1.25, 1.25)
    assert {p.measure for p in result.curves} == {"loss", "accuracy", "learning rate"}


def test_a_head_fitted_in_one_step_has_no_curves_and_says_so(tmp_path: Path) -> None:
    run = write_drawn_run(tmp_path / "run", drawn_scores(CLASSES, VIDEOS), epochs=1)
    (result,) = collect_results([run]).results
    assert result.curves == []
    assert result.absent["Learning curves"] == "the head was fitted in one step"


def stored(folder: Path, videos: list[str], lengths: list[int]) -> tuple[FeatureStore, str]:
    return feature_store(
        folder / "store.zarr", {v: np.ones((n, 3), np.float32) for v, n in zip(videos, lengths, strict=True)}
    )


def test_lengths_failures_and_throughput_come_from_the_store(tmp_path: Path) -> None:
    store, name = stored(tmp_path, VIDEOS, list(range(10, 46)))
    store.record_failure(name, "gone", "the file does not exist")
    run = write_drawn_run(tmp_path / "run", drawn_scores(CLASSES, VIDEOS), spec=store.spec(name))
    (result,) = collect_results([run], sources=ReportSources(store=store.path)).results
    assert sum(one.videos for one in result.lengths) == 36
    assert all(5 <= one.videos <= 7 for one in result.lengths)
    assert (result.lengths[0].low, result.lengths[-1].high) == (10, 45)
    scores = read_run(run).scores()
    right = [said == label for said, label in zip(predicted(scores), scores.labels, strict=True)]
    assert sum(one.accuracy.value * one.videos for one in result.lengths) == pytest.approx(sum(right))
    (extraction,) = result.extraction
    assert dict(extraction.failed) == {"gone": "the file does not exist"}
    assert dict(extraction.facts)["Stored"].startswith("36 videos")


def test_the_run_tells_where_its_store_and_manifest_are(tmp_path: Path) -> None:
    store, name = stored(tmp_path, VIDEOS, list(range(10, 46)))
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video_id", "path", "label"], *([v, f"{v}.avi", "a"] for v in VIDEOS)])
    entries = {"store": str(store.path), "manifest": str(tmp_path / "m.csv")}
    scores = drawn_scores(CLASSES, VIDEOS)
    run = write_drawn_run(tmp_path / "run", scores, spec=store.spec(name), entries=entries)
    (result,) = collect_results([run], at_most=1).results
    assert result.lengths
    assert set(result.absent) == {"Class probabilities over time"}
    assert "v" in result.gallery[0].problem  # the file is not there, and the picture says so
    store.path.rename(tmp_path / "moved.zarr")
    (tmp_path / "m.csv").unlink()
    (result,) = collect_results([run], at_most=1).results
    assert "store.zarr is not a feature store" in result.absent["Extraction"]
    assert "name it with --manifest" in result.absent["Pictures of videos"]
    assert "name the store with --store" in result.absent["Accuracy against the length of the video"]


def test_a_manifest_tells_lengths_where_there_is_no_store(run: Path) -> None:
    records = {
        v: VideoRecord(video_id=v, label="a", path=Path("/no") / v, start_frame=5, end_frame=10 + n)
        for n, v in enumerate(VIDEOS)
    }
    (result,) = collect_results([run], sources=ReportSources(records=records), at_most=0).results
    assert (result.lengths[0].low, result.lengths[-1].high) == (5, 40)


@pytest.fixture
def several(tmp_path: Path) -> list[Path]:
    runs = [
        write_drawn_run(tmp_path / name, drawn_scores(CLASSES, VIDEOS, strength=strength))
        for name, strength in (("one", 2.0), ("two", 1.0))
    ]
    members = load_members(runs)
    table, scores = fuse(members)
    write_fusion(tmp_path / "both", table, scores, members)
    other = write_drawn_run(tmp_path / "other", drawn_scores(CLASSES, [f"w{n}" for n in range(12)]))
    return [*runs, tmp_path / "both", other]


def test_pairs_are_compared_where_they_can_be(several: list[Path]) -> None:
    report = collect_results(several, at_most=0)
    assert [one.runs for one in report.comparisons] == [("one", "two"), ("one", "both"), ("two", "both")]
    assert [names for names, _ in report.uncompared] == ["one, other", "two, other", "both, other"]
    (fusion,) = report.fusions
    assert [row["name"] for row in fusion.rows][:2] == ["one", "two"]
    both = report.results[2]
    assert (both.kind, both.facts, both.options) == ("fusion", [], [])
    assert "give its runs beside it" in both.absent["What was run"]


def test_a_sweep_is_read_without_torch(tmp_path: Path) -> None:
    points = [
        {
            "values": {"units": units, "head": "lstm"},
            "runs": 2,
            "accuracy": 0.5 + units / 1000,
            "sd": 0.01,
            "mean_class_accuracy": 0.5,
            "mean_class_sd": None,
            "val_accuracy": 0.4,
            "parameters": 100 * units,
            "seconds": 1.0,
        }
        for units in (64, 128)
    ]
    chosen = {"split": 1, "values": {"units": 64, "head": "lstm"}, "val_accuracy": 0.4, "accuracy": 0.564}
    (tmp_path / "sweep.json").write_text(json.dumps({"points": points, "chosen on validation videos": [chosen]}))
    report = collect_results([tmp_path])
    assert report.results == []
    assert [point.accuracy for point in report.sweeps[0].points] == [0.5 + 0.064, 0.5 + 0.128]
    page = render(report)
    assert "recurrent units" in page
    assert "units 64, head lstm: 40.0\u00a0% of the validation videos, 56.4\u00a0% of the test videos" in page
    code = (
        "import sys; from pathlib import Path; from har_pipeline.report.data import collect_results; "
        "from har_pipeline.report.page import render; render(collect_results([Path(sys.argv[1])])); "
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    call = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(call, check=False, env=python_path()).returncode == 0
    (tmp_path / "sweep.json").write_text(json.dumps({"points": [{"values": {}}]}))
    with pytest.raises(RunError, match="run the same sweep again"):
        read_sweep(tmp_path)


def test_what_is_no_run_is_named(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        collect_results([tmp_path / "no"])
    with pytest.raises(RunError, match="twice"):
        collect_results([run, run])
    with pytest.raises(RunError, match="name a run"):
        collect_results([])
    with pytest.raises(RunError, match="no validation videos"):
        collect_results([run], part="val")


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        (ClipSpec(), "40 frames, one after the other, from the start of the video"),
        (ClipSpec(num_clips=20, clip_stride=2), "20 frames, one every 2 frames, from the start of the video"),
        (ClipSpec(sampling="uniform", num_clips=1), "1 frame, spread evenly over the whole video"),
        (
            ClipSpec(sampling="uniform", num_clips=5, clip_len=48),
            "5 clips of 48 frames, spread evenly over the whole video",
        ),
        (ClipSpec(sampling="dense", num_clips=None), "all frames of the video"),
        (
            ClipSpec(sampling="dense", num_clips=None, clip_len=16, clip_stride=8),
            "all clips of 16 frames of the video, one every 8 frames",
        ),
        (
            ClipSpec(sampling="sparse", num_clips=3, clip_len=16, clip_stride=4),
            "3 clips of 16 frames, spread evenly over those that start one every 4 frames",
        ),
        (
            ClipSpec(sampling="segments", num_clips=8, clip_len=5, segment_seed=3),
            "8 clips of 5 frames, one in each of 8 equal parts of the video, drawn with seed 3",
        ),
        (
            ClipSpec(sampling="uniform", num_clips=4, clip_len=8, frame_interval=2),
            "4 clips of 8 frames, every second frame inside a clip, spread evenly over the whole video",
        ),
    ],
)
def test_clips_in_words(clips: ClipSpec, words: str) -> None:
    assert describe_clips(clips) == words


def test_features_in_words() -> None:
    facts = dict(describe_features(SPEC))
    assert facts["Size of a frame"] == "the shorter side made 256 pixels, then the centre of 224 pixels"
    assert facts["Preprocessing"] == "rgb; (value - 127.5) / 127.5"
    assert facts["Weights"] == "the file whose SHA-256 begins with abababababab"
    of_folder = replace(SPEC, extractor="hf-videomae")
    assert dict(describe_features(of_folder))["Weights"] == "the folder whose SHA-256 begins with abababababab"
    assert dict(describe_features(replace(SPEC, weights="random:3")))["Weights"].endswith("the results mean nothing")
    fit = {"source": "s", "protocol": "leave_one_group_out", "split": 2, "train_ids_sha256": ""}
    reduced = replace(SPEC, reduction=ReductionSpec(dim=64, **fit))
    assert dict(describe_features(reduced))["Then"] == (
        "PCA to 64 dimensions, fitted on the training videos of leave one group out, split 2"
    )
    encoded = replace(SPEC, encoding=EncodingSpec(encoding="fisher", size=64, sample=9, seed=0, **fit))
    assert dict(describe_features(encoded, folds=10))["Then"] == (
        "a Fisher vector of 64 Gaussians for each video, fitted on the training videos of each of the 10 folds"
    )
    for text, words in (
        ("stretch-224", "stretched to 224 pixels"),
        ("stretch-340x256-ten224", "stretched to 340 x 256 pixels, then ten crops of 224 pixels"),
        ("fit-54x34", "the whole frame fitted into 54 x 34 pixels"),
        (
            "short60-person34x54",
            "the shorter side made 60 pixels, then a window of 34 x 54 pixels that follows the person",
        ),
        ("something new", "something new"),
    ):
        assert dict(describe_features(replace(SPEC, resize=text)))["Size of a frame"] == words


def test_a_run_in_words(folds: Path, tmp_path: Path) -> None:
    runs = [read_run(folds / f"split{fold}") for fold in range(3)]
    facts = dict(describe_run(runs))
    assert facts["Protocol"] == "holdout, 3 folds: 2 training, 0 validation, 12 test videos"
    assert facts["Trained in"] == "4.5 s for 3 runs"
    assert facts["Finished"] == "2026-01-02 03:04 UTC"
    assert facts["Folder"] == str(folds)
    assert "Command" not in facts
    options = read_run(folds / "split0").info["options"]
    run = write_drawn_run(
        tmp_path / "own",
        drawn_scores(CLASSES, VIDEOS),
        entries={"command": "har train m.csv s.zarr --units 8", "options": {**options, "units": 8}},
    )
    assert dict(describe_run([read_run(run)]))["Command"] == "har train m.csv s.zarr --units 8"
    first = option_rows(read_run(run))[0]
    assert (first.name, first.value, first.default, first.changed) == ("--units", "8", "320", True)
    assert "recurrent layer" in first.meaning


@pytest.mark.parametrize(("head", "usual"), [("lstm", "no"), ("svm", "yes")])
def test_scaling_that_was_not_asked_for_is_the_default(tmp_path: Path, head: str, usual: str) -> None:
    """run.json has it as it applied, which was told as an option that somebody changed."""
    for given, changed in ((None, False), (usual == "no", True)):
        options = TrainConfig(head=head, standardise=given).to_dict()  # type: ignore[arg-type]
        run = write_drawn_run(tmp_path / str(given), drawn_scores(CLASSES, VIDEOS), entries={"options": options})
        (row,) = [row for row in option_rows(read_run(run)) if row.name == "--standardise"]
        assert (row.default, row.changed) == (usual, changed)


def test_measured_speed_is_told(run: Path) -> None:
    times = {"videos": 3, "whole_s": 0.25, "network_s": 0.0125, "device": "cpu"}
    (run / "timing.json").write_text(json.dumps(times))
    (result,) = collect_results([run]).results
    assert dict(result.facts)["Speed"] == (
        "0.25 s a video from the file, 0.0125 s of the network alone: means over 3 videos, one at a time, cpu"
    )
    (run / "timing.json").write_text("{}")
    with pytest.raises(RunError, match="measure again"):
        collect_results([run])


def colours(spec: Any) -> Iterator[str]:
    values = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ()
    for one in values:
        if isinstance(one, str) and one.startswith("var("):
            yield one
        else:
            yield from colours(one)


def test_colours_of_charts_are_those_of_the_page(several: list[Path], repeats: Path) -> None:
    report = collect_results([*several, repeats], at_most=0)
    one = report.results[0]
    specs = [
        charts.confusion(one),
        charts.class_accuracy(one.per_class),
        charts.calibration(one.reliability),
        charts.training_curves(one.curves),
        charts.side_by_side(report.results),
        charts.class_gains(report.comparisons[0]),
    ]
    style = render(report).partition("</style>")[0]
    assert {name for name in colours(specs) if f"{name[4:-1]}:" not in style} == set()


def test_json_in_a_script_ends_no_script() -> None:
    odd = {"</script><!--": ["</SCRIPT>", "a & b", "\u202egpj\x1b", {"x": None, "y": 1.5}]}
    text = script_json(odd)
    assert not re.search("[<>&\x1b\u202e]", text)
    assert list(json.loads(text)) == ["</script><!--"]
    assert json.loads(text)["</script><!--"][2] == r"\u202egpj\x1b"
    assert "</script" not in chart_library().lower()


def test_the_page_names_no_address(run: Path) -> None:
    page = render(collect_results([run])).replace(chart_library(), "")
    assert re.findall(r"https?:|//[a-z]|url\(|@import", page.replace("http-equiv", "")) == []


def test_a_folder_of_something_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    report = collect_results([run])
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("years")
    with pytest.raises(RunError, match="something else"):
        write_report(report, tmp_path / "own")
    with pytest.raises(RunError, match="is a folder"):
        write_report(report, tmp_path / "own", single_file=True)
    (tmp_path / "own" / "index.html").write_text("<html>mine</html>")
    with pytest.raises(RunError, match="something else"):
        write_report(report, tmp_path / "own")
    with pytest.raises(RunError, match="is a file"):
        write_report(report, tmp_path / "own" / "thesis.tex")
    index = write_report(report, tmp_path / "new")
    assert write_report(report, tmp_path / "new") == index


def test_the_command(run: Path, repeats: Path, tmp_path: Path) -> None:
    done = har("report", run, "-o", "page", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"written: {Path('page') / 'index.html'}"
    assert re.match(r"run: video accuracy \d+\.\d % \(", done.stdout)
    done = har("report", run, repeats, "--single-file", "--json", "--no-clips", "--videos", 2, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert [one["name"] for one in found["results"]] == ["run", "repeats"]
    assert len(found["results"][0]["gallery"]) == 2
    assert (tmp_path / "report.html").is_file()
    assert "holds something else" in har("report", run, "-o", "run", cwd=tmp_path, code=1).stderr
    assert "--root belongs to --manifest" in har("report", run, "--root", ".", cwd=tmp_path, code=2).stderr
