"""`har fuse`, `har compare` and `har evaluate --groups` on small runs, as a user runs them."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_scores import fused
from feature_sets import blobs, feature_store, manifest, split_of
from run_files import change_info
from train_split import train_split
from typer.testing import CliRunner, Result

from har_pipeline.cli import app
from har_pipeline.cli.fuse import _print_comparison
from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Scores, Split
from har_pipeline.evaluation.compare import compare_members, write_comparison
from har_pipeline.evaluation.fusion import product_rule
from har_pipeline.evaluation.members import Member, load_members, run_folders
from har_pipeline.evaluation.plan import Plan, write_plan
from har_pipeline.evaluation.scores import read_scores, write_scores
from har_pipeline.evaluation.statistics import wilson_interval
from har_pipeline.inference.load import load_run
from har_pipeline.training.options import TrainConfig

CLASSES = ["a", "b", "c"]


def har(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(value) for value in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def splits(labels: dict[str, str]) -> list[Split]:
    """Two folds of 9 videos a class: each tests 3, trains on 4 and validates on 2."""
    found = []
    for index, tests in enumerate(("012", "345")):
        rest = [number for number in "012345678" if number not in tests]
        parts = {"test": tests, "val": rest[:2], "train": rest[2:]}
        ids = {part: [v for v in labels if v[-1] in numbers] for part, numbers in parts.items()}
        found.append(split_of(**ids, index=index))
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `rgb` and `flow` with two folds each, one run `single` and one of another split, `other`."""
    folder = tmp_path_factory.mktemp("fuse")
    for name, seed in (("rgb", 0), ("flow", 7)):
        features, labels = blobs(CLASSES, 9, seed=seed)
        rng = np.random.default_rng(seed)
        noisy = {
            video: array + 4 * rng.standard_normal(array.shape[1]).astype("float32")
            for video, array in features.items()
        }
        store, feature_set = feature_store(folder / f"{name}.zarr", noisy)
        config = TrainConfig(head="mean_pool", device="cpu")
        for split in splits(labels):
            train_split(store, feature_set, manifest(labels), split, config, folder / name / f"split{split.index}")
        turned = split_of(train=splits(labels)[0].test, val=[], test=[v for v in labels if v[-1] in "678"], index=0)
        train_split(store, feature_set, manifest(labels), turned, config, folder / f"{name}_other")
    (folder / "groups.csv").write_text("class,group,complex\nc,x,\na,y,yes\nb,x,\n")
    return folder


def test_fusing_folds_by_hand(work: Path, tmp_path: Path) -> None:
    result = har(
        "fuse", work / "rgb", work / "flow", "--weights", "1.5,1", "--learn-weights", "-o", tmp_path / "out", "--json"
    )
    table = json.loads(result.stdout)
    assert [row["name"] for row in table["rows"]] == ["rgb", "flow", "sum", "product", "weighted", "learned", "oracle"]
    assert (table["num_videos"], table["folds"], table["missing"]) == (18, [0, 1], {"rgb": [], "flow": []})
    assert sorted(table["learned_weights"]) == ["fold 0 seed 0", "fold 1 seed 0"]
    written = json.loads((tmp_path / "out/fusion.json").read_text())
    assert [(one["name"], (tmp_path / "out" / one["path"]).resolve()) for one in written.pop("members")] == [
        (name, (work / name).resolve()) for name in ("rgb", "flow")
    ]
    assert written == table
    fused = read_scores(tmp_path / "out/scores.csv")
    expected = {}
    for fold in (0, 1):
        one, two = (load_run(work / name / f"split{fold}").scores() for name in ("rgb", "flow"))
        assert one.video_ids == two.video_ids
        product = product_rule(np.stack([one.probabilities, two.probabilities]))
        expected |= {(fold, video): row for video, row in zip(one.video_ids, product, strict=True)}
    assert len(fused.video_ids) == len(expected)
    for video, fold, row in zip(fused.video_ids, fused.fold, fused.probabilities, strict=True):
        np.testing.assert_allclose(row, expected[fold, video], atol=1e-12)
    with open(tmp_path / "out/fusion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["top1"]) for row in rows] == [row["top1"]["value"] for row in table["rows"]]


def test_the_printed_table_has_every_rule_and_a_verdict(work: Path, tmp_path: Path) -> None:
    out = har("fuse", work / "rgb", work / "flow", "--calibrate", "-o", tmp_path / "out").stdout
    for text in ("18 test videos, 2 folds", "rgb", "product", "oracle", "(best rule)", "temperatures, fold 0 seed 0"):
        assert text in out
    assert "than the best run alone" in out or "above the best run alone" in out


def test_a_fusion_is_evaluated_and_fused_again(work: Path, tmp_path: Path) -> None:
    har("fuse", work / "rgb", work / "flow", "-o", tmp_path / "product")
    table = json.loads((tmp_path / "product/fusion.json").read_text())
    evaluated = json.loads(har("evaluate", tmp_path / "product", "--json").stdout)
    product = next(row for row in table["rows"] if row["name"] == "product")
    assert evaluated["top1"] == product["top1"]
    assert (tmp_path / "product/confusion.png").exists()
    again = har("fuse", tmp_path / "product", work / "flow", "-o", tmp_path / "again", "--json")
    names = [row["name"] for row in json.loads(again.stdout)["rows"]]
    assert names[0].endswith("/product")
    assert names[0] != "product"
    # What the first two learned from is still known.
    har("fuse", tmp_path / "product", work / "rgb_other", "-o", tmp_path / "leak", code=1)


def with_repeats(source: Path, target: Path) -> Path:
    """Two repeats of a run's folds; the second has the scores of two classes exchanged."""
    for seed in (0, 1):
        shutil.copytree(source, target / f"seed{seed}")
    for path in (target / "seed1").glob("*/scores.csv"):
        scores = read_scores(path)
        exchanged = scores.probabilities[:, [1, 0, *range(2, len(scores.classes))]]
        seeds = (1,) * len(scores.seed)
        write_scores(path, dataclasses.replace(scores, probabilities=exchanged, seed=seeds))
        change_info(path.parent)
    return target


def test_repeats_are_fused_and_evaluated_one_by_one(work: Path, tmp_path: Path) -> None:
    rgb, flow = (with_repeats(work / name, tmp_path / name) for name in ("rgb", "flow"))
    printed = har("fuse", rgb, flow, "-o", tmp_path / "out").stdout
    assert "18 test videos, 2 folds, 2 repeats" in printed
    assert "sd of repeats" in printed
    row = next(r for r in json.loads((tmp_path / "out/fusion.json").read_text())["rows"] if r["name"] == "product")
    repeats = json.loads(har("evaluate", tmp_path / "out", "--json").stdout)
    assert list(repeats["repeats"]) == ["0", "1"]
    assert [one["num_videos"] for one in repeats["repeats"].values()] == [18, 18]
    assert repeats["mean_top1"] == pytest.approx(row["top1"]["value"])
    assert repeats["sd_top1"] == pytest.approx(row["sd"])
    assert row["sd"] > 0
    assert (tmp_path / "out/seed1/confusion.png").exists()
    assert "mean over 2 repeats" in har("evaluate", tmp_path / "out").stdout
    # One repeat of the other run pairs with both.
    table = json.loads(har("fuse", rgb, work / "flow", "-o", tmp_path / "mixed", "--json").stdout)
    assert (table["seeds"], table["num_rows"]) == ([0, 1], 36)


def test_folds_that_share_test_videos_are_evaluated_one_by_one(work: Path, tmp_path: Path) -> None:
    har("fuse", work / "rgb", work / "flow", "-o", tmp_path / "out")
    lines = (tmp_path / "out/scores.csv").read_text().splitlines(keepends=True)
    again = next(line for line in lines if ",test,0," in line)
    (tmp_path / "out/scores.csv").write_text("".join([*lines, again.replace(",test,0,", ",test,1,")]))
    result = json.loads(har("evaluate", tmp_path / "out", "--json").stdout)
    assert [fold["num_videos"] for fold in result["folds"].values()] == [9, 10]
    assert result["pooled"] is None


def test_runs_of_other_splits_are_refused(work: Path, tmp_path: Path) -> None:
    result = har("fuse", work / "rgb/split0", work / "flow_other", "-o", tmp_path / "out", code=1)
    assert isinstance(result.exception, RunError)
    assert "split0 learned from 9 videos that flow_other tests in fold 0 (a-6, a-7, a-8)" in str(result.exception)
    assert not (tmp_path / "out").exists()
    result = har("fuse", work / "rgb/split0", work / "flow/split1", "-o", tmp_path / "out", code=1)
    assert "in the same fold of all runs" in str(result.exception)


def test_the_rule_named_in_advance_is_the_one_written(work: Path, tmp_path: Path) -> None:
    har("fuse", work / "rgb", work / "flow", "--rule", "learned", "-o", tmp_path / "learned")
    har("fuse", work / "rgb", work / "flow", "--rule", "sum", "-o", tmp_path / "sum")
    learned, even = (read_scores(tmp_path / name / "scores.csv") for name in ("learned", "sum"))
    assert learned.video_ids == even.video_ids
    assert not np.allclose(learned.probabilities, even.probabilities)
    members = load_members([work / "rgb", work / "flow"])
    np.testing.assert_allclose(fused(members, "learned").probabilities, learned.probabilities, atol=1e-15)


def test_flow_counts_more_than_rgb_without_being_told(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "flow/split0", tmp_path / "flow")
    info = json.loads((tmp_path / "flow/run.json").read_text())
    change_info(tmp_path / "flow", feature_spec={**info["feature_spec"], "stream": "flow"})
    result = har("fuse", tmp_path / "flow", work / "rgb/split0", "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["weights"] == [1.5, 1.0]
    assert "flow counts 1.5 and RGB 1" in result.stderr


def test_a_missing_video_is_named(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "flow/split0", tmp_path / "part")
    lines = (tmp_path / "part/scores.csv").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("b-1,")]
    assert len(kept) == len(lines) - 1
    (tmp_path / "part/scores.csv").write_text("".join(kept))
    change_info(tmp_path / "part")
    result = har("fuse", work / "rgb/split0", tmp_path / "part", "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["missing"] == {"split0": [], "part": ["b-1"]}
    assert "part: no scores for 1 test video that other runs have, left out: b-1" in result.stderr


def test_a_foreign_scores_file_joins_with_a_note(work: Path, tmp_path: Path) -> None:
    (tmp_path / "idt").mkdir()
    shutil.copy(work / "flow/split0/scores.csv", tmp_path / "idt/scores.csv")
    result = har("fuse", work / "rgb/split0", work / "flow/split0", tmp_path / "idt", "-o", tmp_path / "out", "--json")
    assert "idt: it is not known which videos it learned from" in result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)["rows"]}
    assert rows["idt"]["top1"] == rows["flow/split0"]["top1"]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--weights", "1,x"], 2, "give numbers"),
        (["--weights", "1,2,3"], 2, "3 weights for 2 runs"),
        (["--rule", "weighted"], 1, "`weighted` needs one weight per run"),
        (["--rule", "mean"], 2, "mean"),
    ],
)
def test_options_that_do_not_fit(work: Path, tmp_path: Path, more: list[str], code: int, says: str) -> None:
    result = har("fuse", work / "rgb", work / "flow", "-o", tmp_path / "out", *more, code=code)
    assert says in result.output + str(result.exception)


def test_what_is_no_run(work: Path, tmp_path: Path) -> None:
    assert "is not a run folder (no run.json, no split0 or seed0)" in str(
        har("fuse", work / "rgb", tmp_path, code=1).exception
    )
    assert "given twice" in har("fuse", work / "rgb", work / "rgb", code=2).stderr
    result = har("fuse", work / "rgb", work / "flow", "-o", work / "rgb/split0", code=1)
    assert "holds a run" in str(result.exception)


def test_folds_and_repeats_are_found_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    for name in ("split0/seed1", "split0/seed0", "split1/seed0", ".split2.partial-1", "split0/.seed2.partial-1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    found = [path.relative_to(tmp_path).as_posix() for path in run_folders(tmp_path)]
    assert found == ["split0/seed0", "split0/seed1", "split1/seed0"]
    assert run_folders(tmp_path / "split1/seed0") == [tmp_path / "split1/seed0"]


def test_members_know_their_stream_and_what_they_learned_from(work: Path) -> None:
    (member, _) = load_members([work / "rgb", work / "flow"])
    split = load_run(work / "rgb/split1").split
    assert member.stream == "rgb"
    assert member.learned_from[1] == {*split.train, *split.val}
    assert [m.name for m in load_members([work / "rgb/split0", work / "flow/split0"])] == ["rgb/split0", "flow/split0"]


def test_a_fusion_of_an_interrupted_job_says_so(work: Path, tmp_path: Path) -> None:
    for name in ("rgb", "flow"):
        shutil.copytree(work / name, tmp_path / name)
        write_plan(Plan(tmp_path / name, ("split0", "split1", "split2")))
    for command in ("fuse", "compare"):
        result = har(command, tmp_path / "rgb", tmp_path / "flow", "-o", tmp_path / command)
        assert f"NOTE: {tmp_path / 'rgb'}: 1 of 3 runs are missing (split2)" in result.stderr


def test_what_must_be_known_of_a_run_stands_beside_its_fusion(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "rgb", tmp_path / "narrow")
    for fold, notes in (("split0", ["half the filters", "no test video of c"]), ("split1", ["half the filters"])):
        folder = tmp_path / "narrow" / fold
        summary = json.loads((folder / "run.json").read_text())["summary"]
        change_info(folder, summary={**summary, "notes": notes})
    for command in ("fuse", "compare"):
        result = har(command, tmp_path / "narrow", work / "flow", "-o", tmp_path / command)
        assert "NOTE: narrow: half the filters\n" in result.stderr
        assert "NOTE: narrow: split0: no test video of c\n" in result.stderr
    result = har("evaluate", tmp_path / "narrow")
    assert "NOTE: half the filters\n" in result.stderr
    assert "NOTE: split0: no test video of c\n" in result.stderr


def test_repeats_are_compared_by_how_often_they_are_right(work: Path, tmp_path: Path) -> None:
    job = with_repeats(work / "rgb", tmp_path / "job")
    once = har("compare", work / "rgb", work / "flow", "-o", tmp_path / "once").stdout
    assert "McNemar: " in once
    assert "videos only this run has right" in once
    often = har("compare", job, work / "flow", "-o", tmp_path / "often").stdout
    assert "sign test: " in often
    assert "videos more often right" in often


def test_repeats_have_an_interval_and_groups(work: Path, tmp_path: Path) -> None:
    job = with_repeats(work / "rgb", tmp_path / "job")
    result = har("evaluate", job, "--groups", work / "groups.csv")
    values = json.loads(har("evaluate", job, "--groups", work / "groups.csv", "--json").stdout)
    pooled = [one["pooled"] for one in values["repeats"].values()]
    mean = (pooled[0]["top1"]["value"] + pooled[1]["top1"]["value"]) / 2
    interval = wilson_interval(mean * 18, 18)
    assert values["top1"] == pytest.approx(dataclasses.asdict(interval))
    assert f"95 % interval of the mean over repeats, for the test videos of one: {interval.describe()}" in result.stdout
    for number, group in enumerate(values["per_group"]):
        each = [one["per_group"][number] for one in pooled]
        assert (group["name"], group["videos"]) == (each[0]["name"], each[0]["videos"])
        assert group["accuracy"]["value"] == pytest.approx(sum(one["accuracy"]["value"] for one in each) / 2)
        assert group["in_group"]["value"] == pytest.approx(sum(one["in_group"]["value"] for one in each) / 2)
    assert "of the right group" in result.stdout
    assert "complex classes" in result.stdout


@pytest.mark.usefixtures("pictures_drawn")
def test_evaluation_by_groups(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "rgb", tmp_path / "rgb")
    result = har("evaluate", tmp_path / "rgb", "--groups", work / "groups.csv")
    assert "of the right group" in result.stdout
    assert "complex classes" in result.stdout
    with open(tmp_path / "rgb/confusion_groups.csv", newline="") as file:
        assert next(csv.reader(file))[1:] == ["b", "c", "a"]
    assert cv2.imread(str(tmp_path / "rgb/confusion_groups.png")).std() > 5
    one = json.loads(har("evaluate", tmp_path / "rgb/split0", "--groups", work / "groups.csv", "--json").stdout)
    assert [group["name"] for group in one["per_group"]] == ["x", "y", "a", "complex classes"]
    assert one["per_group"][0]["videos"] == 6
    assert "no group for the classes a, b, c" in str(
        har("evaluate", tmp_path / "rgb", "--groups", "ucf101", code=1).exception
    )


def member(name: str, predicted: str, *, seed: int = 0) -> Member:
    labels = "aaaabbbc"
    probabilities = np.full((8, 4), 0.1)
    probabilities[np.arange(8), ["abcd".index(value) for value in predicted]] = 0.7
    scores = Scores(
        video_ids=tuple(f"v{i}" for i in range(8)),
        labels=tuple(labels),
        classes=tuple("abcd"),
        probabilities=probabilities,
        part=("test",) * 8,
        fold=(0,) * 8,
        seed=(seed,) * 8,
    )
    return Member(name=name, scores=scores)


@pytest.mark.usefixtures("pictures_drawn")
def test_comparison_by_hand(tmp_path: Path) -> None:
    comparison = compare_members(member("rgb", "aabbbbbc"), member("both", "aaabbbcc"))
    assert [(row.label, row.videos, row.first, row.second) for row in comparison.per_class] == [
        ("a", 4, 0.5, 0.75),
        ("b", 3, 1.0, pytest.approx(2 / 3)),
        ("c", 1, 1.0, 1.0),
    ]
    expected = [[0.25, -0.25, 0, 0], [0, -1 / 3, 1 / 3, 0], [0] * 4, [0] * 4]
    np.testing.assert_allclose(comparison.difference, expected, atol=1e-15)
    assert (comparison.test.first_only, comparison.test.second_only, comparison.test.p_value) == (1, 1, 1)
    assert (comparison.first_top1.value, comparison.second_top1.value) == (0.75, 0.75)
    write_comparison(comparison, tmp_path)
    with open(tmp_path / "difference.csv", newline="") as file:
        rows = list(csv.reader(file))
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], float), expected, atol=1e-15)
    with open(tmp_path / "class_gains.csv", newline="") as file:
        assert [float(row["gain"]) for row in csv.DictReader(file)] == [row.gain for row in comparison.per_class]
    for name in ("difference.png", "class_gains.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 5
    with pytest.raises(RunError, match="rgb has no val videos: train it with --val-fraction"):
        compare_members(member("rgb", "aabbbbbc"), member("both", "aaabbbcc"), part="val")


def test_comparing_runs(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = har("compare", work / "rgb", work / "flow", "--groups", work / "groups.csv", "-o", out).stdout
    assert "McNemar:" in printed
    assert re.search(r"\d class(es)? better, \d worse, \d unchanged", printed)
    values = json.loads((out / "comparison.json").read_text())
    assert values["classes"] == ["b", "c", "a"]
    assert values["spans"] == [["x", 0, 2], ["y", 2, 3]]
    assert [row["label"] for row in values["per_group"]] == ["x", "y", "a", "complex classes"]
    swapped = json.loads(har("compare", work / "flow", work / "rgb", "-o", out, "--json").stdout)
    assert swapped["classes"] == ["a", "b", "c"]
    assert swapped["test"]["p_value"] == values["test"]["p_value"]
    assert swapped["test"]["first_only"] == values["test"]["second_only"]
    np.testing.assert_allclose(
        np.array(swapped["difference"])[np.ix_([1, 2, 0], [1, 2, 0])], -np.array(values["difference"])
    )


@pytest.mark.parametrize(
    ("second", "only", "words"),
    [
        ("aabbbbbc", (0, 1), "1 class better, 0 worse, 2 unchanged"),
        ("aaabbbbb", (1, 2), "1 class better, 1 worse, 1 unchanged"),
        ("acbbbbbc", (0, 0), "0 classes better, 0 worse, 3 unchanged"),
    ],
)
def test_one_is_singular(
    second: str, only: tuple[int, int], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _print_comparison(compare_members(member("rgb", "acbbbbbc"), member("both", second)), tmp_path)
    printed = capsys.readouterr().out
    rows = printed.splitlines()[3:5]
    assert [int(row.rsplit(maxsplit=1)[1]) for row in rows] == list(only)
    assert words in printed


def test_comparing_repeats_counts_videos_once(work: Path, tmp_path: Path) -> None:
    first, second = (with_repeats(work / name, tmp_path / name) for name in ("rgb", "flow"))
    values = json.loads(
        har("compare", first, second, "--groups", work / "groups.csv", "-o", tmp_path / "o", "--json").stdout
    )
    assert (values["num_videos"], values["num_rows"]) == (18, 36)
    assert [(row["videos"], row["rows"]) for row in values["per_class"]] == [(6, 12)] * 3
    assert [(row["videos"], row["rows"]) for row in values["per_group"][:2]] == [(12, 24), (6, 12)]
    assert "18 test videos (36 rows" in har("compare", first, second, "-o", tmp_path / "o").stdout


def test_comparing_runs_that_agree_says_so(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "rgb", tmp_path / "copy")
    printed = har("compare", work / "rgb", tmp_path / "copy", "-o", tmp_path / "out").stdout
    assert "all classes have the same accuracy in both runs" in printed
    assert "gain / points" not in printed
