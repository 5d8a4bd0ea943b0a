from __future__ import annotations

import csv
import dataclasses
import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from hypothesis import given
from hypothesis import strategies as st
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Scores
from har_pipeline.evaluation import evaluate as evaluate_module
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.evaluation.metrics import Measures, confusion_matrix, extremes, measure_scores, ranks, write_measures
from har_pipeline.evaluation.scores import concat_scores, read_scores, select_part, stack_scores, write_scores
from har_pipeline.evaluation.statistics import mean_class_accuracy, wilson_interval
from har_pipeline.inference.load import load_run
from har_pipeline.inference.predict import predict_scores, top_k
from har_pipeline.training.options import TrainConfig

RUN_FILES = ("run.json", "split.json", "head.safetensors", "scores.csv", "history.csv")
NEW = "video_id,label,split,fold,seed,predicted,correct,a,b"


def scores_of(
    labels: str,
    predicted: str,
    *,
    classes: str = "abc",
    part: str = "test",
    fold: int = 0,
    seed: int = 0,
    first: int = 0,
) -> Scores:
    """Scores of one-letter classes: 0.6 for the predicted class, the rest shared."""
    count = len(labels)
    probabilities = np.full((count, len(classes)), 0.4 / (len(classes) - 1))
    probabilities[np.arange(count), [classes.index(value) for value in predicted]] = 0.6
    return Scores(
        video_ids=tuple(f"v{first + i}" for i in range(count)),
        labels=tuple(labels),
        classes=tuple(classes),
        probabilities=probabilities,
        part=(part,) * count,
        fold=(fold,) * count,
        seed=(seed,) * count,
    )


def test_measures_by_hand() -> None:
    # a: 3 of 4 right, b: 1 of 2, c: no videos.
    result = measure_scores(scores_of("aaaabb", "aaabbc"))
    assert result.num_videos == 6
    assert result.top1.value == 4 / 6
    assert result.top5 is None
    assert result.mean_class.value == (3 / 4 + 1 / 2) / 2
    assert result.confusion.tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]
    a, b, c = result.per_class
    assert (a.videos, a.correct, a.precision, a.confused_with, a.confused_videos) == (4, 3, 1.0, "b", 1)
    assert (b.videos, b.correct, b.precision, b.confused_with) == (2, 1, 0.5, "c")
    assert a.accuracy is not None
    assert a.accuracy.value == 0.75
    assert (c.videos, c.accuracy, c.precision, c.confused_with) == (0, None, 0.0, None)


def test_top5_counts_the_true_class_among_the_first_five() -> None:
    probabilities = np.array([[0.3, 0.2, 0.15, 0.14, 0.11, 0.1], [0.1, 0.11, 0.14, 0.15, 0.2, 0.3]])
    scores = Scores(
        video_ids=("x", "y"),
        labels=("f", "b"),
        classes=tuple("abcdef"),
        probabilities=probabilities,
        part=("test",) * 2,
        fold=(0, 0),
        seed=(0, 0),
    )
    result = measure_scores(scores)
    assert result.top1.value == 0
    assert result.top5 is not None
    assert result.top5.value == 0.5


def test_ranks_break_ties_by_class_number() -> None:
    probabilities = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.4, 0.1]])
    assert ranks(probabilities, np.array([2, 1])).tolist() == [2, 0]
    assert ranks(probabilities, np.array([0, 3])).tolist() == [0, 3]
    # Enough classes for a sort to be unstable, unless asked.
    even, odd = range(0, 100, 2), range(1, 100, 2)
    many = ranks(np.tile([0.005, 0.015], (100, 50)), np.array([*odd, *even]))
    assert many.tolist() == list(range(100))


def test_confusion_has_true_classes_in_rows() -> None:
    matrix = confusion_matrix(np.array([0, 0, 2]), np.array([1, 0, 2]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_wilson_matches_published_numbers() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263 and 15 of 148; and its closed form n / (n + z^2) for all right.
    interval = wilson_interval(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    interval = wilson_interval(15, 148)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.0624, 0.1605)
    assert interval.describe() == "10.1 % (6.2 to 16.0)"
    interval = wilson_interval(20, 20)
    assert interval.high == 1
    assert interval.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_share_and_stays_in_bounds(trials: int, data: st.DataObject) -> None:
    interval = wilson_interval(data.draw(st.integers(0, trials)), trials)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("right", [(9, 9, 5), (10, 10, 10), (0, 0, 0), (10, 10, 0)])
def test_of_classes_of_one_size_the_mean_class_has_the_interval_of_the_video_accuracy(right: tuple[int, ...]) -> None:
    """It once ended at the value itself, or near it, and was another."""
    confusion = np.array([[right[0], 10 - right[0], 0], [0, right[1], 10 - right[1]], [10 - right[2], 0, right[2]]])
    interval, whole = mean_class_accuracy(confusion), wilson_interval(sum(right), 30)
    assert (interval.value, interval.low, interval.high) == pytest.approx((whole.value, whole.low, whole.high))


def test_videos_of_small_classes_widen_the_interval_of_the_mean_class() -> None:
    small, even = (np.diag(sizes) + np.ones((2, 2), int) - np.eye(2, dtype=int) for sizes in ((2, 58), (30, 30)))
    widths = [found.high - found.low for found in (mean_class_accuracy(small), mean_class_accuracy(even))]
    assert widths[0] > 2 * widths[1]
    absent = np.pad(even, ((0, 1), (0, 1)))  # a class without videos
    assert mean_class_accuracy(absent) == mean_class_accuracy(even)


@pytest.mark.parametrize(
    ("videos", "accuracies"),
    [
        ([3] * 101, [0.9] * 101),
        ([3] * 101, np.linspace(0.5, 1, 101)),
        ([1] * 20, [0.8] * 20),
        ([10] * 6, [1, 1, 0.95, 0.9, 0.6, 0.5]),
        ([2, 3, 5, 10, 30, 80], [0.99, 0.98, 0.95, 0.9, 0.7, 0.6]),
        ([37] * 101, np.linspace(0.6, 1, 101)),
    ],
    ids=["few videos", "few, classes differ", "one each", "as in the papers", "odd sizes", "UCF-101"],
)
def test_the_interval_of_the_mean_class_holds_the_truth(videos: list[int], accuracies: Sequence[float]) -> None:
    """In 95 of 100 test sets drawn from known accuracies. An earlier rule held it in 47 to 95 of them."""
    rng = np.random.default_rng(0)
    sizes, held, trials = np.array(videos), 0, 600
    for _ in range(trials):
        right = rng.binomial(sizes, accuracies)
        confusion = np.diag(right)
        confusion[np.arange(len(sizes)), np.arange(len(sizes)) - 1] += sizes - right
        found = mean_class_accuracy(confusion)
        held += found.low <= np.mean(accuracies) <= found.high
    assert held / trials > 0.93


def test_the_interval_of_the_mean_class_is_never_empty() -> None:
    """It once was, where every class was all right or all wrong."""
    for confusion in (np.diag([4, 4, 4]), np.array([[4, 0, 0], [4, 0, 0], [4, 0, 0]]), np.array([[0, 1], [1, 0]])):
        interval = mean_class_accuracy(confusion)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.high - interval.low > 0.1


def test_scores_round_trip_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(3, 0.01), size=4)
    probabilities[0] = [1e-300, 1 / 3, 2 / 3]
    scores = Scores(
        video_ids=("v1", "v2", "v3", "v4"),
        labels=("jump, high", 'say "hi"', "label", "label"),
        classes=("jump, high", "label", 'say "hi"'),
        probabilities=probabilities,
        part=("val", "test", "test", "test"),
        fold=(0, 0, 1, 2),
        seed=(7, 7, 7, 8),
    )
    write_scores(tmp_path / "scores.csv", scores)
    read = read_scores(tmp_path / "scores.csv")
    assert np.array_equal(read.probabilities, probabilities)
    for name in ("video_ids", "labels", "classes", "part", "fold", "seed"):
        assert getattr(read, name) == getattr(scores, name)


def test_scores_say_what_was_predicted_and_whether_it_is_right(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", scores_of("aab", "aba"))
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [(row["label"], row["predicted"], row["correct"]) for row in rows] == [
        ("a", "a", "true"), ("a", "b", "false"), ("b", "a", "false")
    ]  # fmt: skip
    assert list(rows[0])[:8] == ["video_id", "label", "split", "fold", "seed", "predicted", "correct", "a"]


def same(first: Scores, second: Scores) -> bool:
    one, two = ({**dataclasses.asdict(own), "probabilities": own.probabilities.tolist()} for own in (first, second))
    return one == two


@pytest.mark.parametrize(
    "classes", ["a,b,c", "correct,predicted,z", "predicted,correct,z", "predicted,correct", "0.5,true,1"]
)
@pytest.mark.parametrize("rows", [4, 0])
def test_no_class_is_taken_for_a_column_nor_a_column_for_a_class(tmp_path: Path, classes: str, rows: int) -> None:
    names = tuple(classes.split(","))
    scores = Scores(
        video_ids=tuple(f"v{k}" for k in range(rows)),
        labels=(*names, *names)[:rows],
        classes=names,
        probabilities=np.random.default_rng(0).dirichlet(np.ones(len(names)), size=rows),
        part=("test",) * rows,
        fold=(0,) * rows,
        seed=(0,) * rows,
    )
    write_scores(tmp_path / "new.csv", scores)
    assert same(read_scores(tmp_path / "new.csv"), scores)
    # As older versions wrote it: without a row nothing tells columns and classes apart.
    header, *lines = csv.reader((tmp_path / "new.csv").read_text().splitlines())
    old = "\n".join(",".join([*row[:5], *row[7:]]) for row in (header, *lines)) + "\n"
    (tmp_path / "old.csv").write_text(old)
    if rows or names[:2] != ("predicted", "correct"):
        assert same(read_scores(tmp_path / "old.csv"), scores)


def test_a_spreadsheet_may_have_written_the_scores(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", scores_of("aab", "aba"))
    text = (tmp_path / "scores.csv").read_text()
    (tmp_path / "scores.csv").write_text(text.replace("true", "TRUE").replace("false", "FALSE"))
    assert same(read_scores(tmp_path / "scores.csv"), scores_of("aab", "aba"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first columns must be"),
        ("video,label\n", "first columns must be"),
        ("video_id,label,split,fold,seed,a\nv,a,test,0,0\n", "line 2: 5 columns instead of 6"),
        ("video_id,label,split,fold,seed,a\nv,a,test,0,0,x\n", "line 2: could not convert"),
        ("video_id,label,split,fold,seed,a\nv,a,test,one,0,1\n", "line 2: invalid literal"),
        ("video_id,label,split,fold,seed,a\nv,a,test,0,0,nan\n", "not finite"),
        (f"{NEW}\nv,a,test,0,0,a,true,0.4,0.6\n", "line 2: predicted, correct are a, true, but .* say b, false"),
        (f"{NEW}\nv,a,test,0,0,b,true,0.4,0.6\n", "line 2: predicted, correct are b, true, but .* say b, false"),
        (f"{NEW}\nv,a,test,0,0,b,,0.4,0.6\n", "line 2: predicted, correct are b, , but"),
        (f"{NEW}\nv,a,test,0,0,b\n", "line 2: 6 columns instead of 9"),
    ],
)
def test_a_malformed_scores_file_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        read_scores(tmp_path / "scores.csv")
    assert "scores.csv" in str(caught.value)


def test_folds_pool() -> None:
    joined = concat_scores([scores_of("aab", "aab"), scores_of("bbc", "bca", fold=1, first=3)])
    result = measure_scores(joined)
    assert result.num_videos == 6
    assert result.folds == (0, 1)
    assert result.top1.value == 4 / 6


def test_a_video_tested_in_two_folds_is_an_error() -> None:
    with pytest.raises(RunError, match="duplicate v0 in the test scores of seed 0"):
        concat_scores([scores_of("ab", "ab"), scores_of("ab", "ab", fold=1)])
    concat_scores([scores_of("ab", "ab", part="val"), scores_of("ab", "ab", part="val", fold=1)])


def test_repeats_join_but_are_not_pooled() -> None:
    joined = concat_scores([scores_of("ab", "ab"), scores_of("ab", "ab", seed=1)])
    with pytest.raises(RunError, match="several seeds"):
        measure_scores(joined)


def test_parts_are_not_pooled() -> None:
    joined = concat_scores([scores_of("ab", "ab", part="val"), scores_of("ab", "aa", first=2)])
    with pytest.raises(RunError, match="several parts"):
        measure_scores(joined)
    assert measure_scores(select_part(joined, "test")).top1.value == 0.5
    with pytest.raises(RunError, match="no train scores; there are: test, val"):
        select_part(joined, "train")


def test_scores_of_other_classes_do_not_join() -> None:
    with pytest.raises(RunError, match=r"differing: \['d'\]"):
        concat_scores([scores_of("ab", "ab"), scores_of("ab", "ab", classes="abcd", first=2)])
    with pytest.raises(RunError, match="their order"):
        concat_scores([scores_of("ab", "ab"), scores_of("ab", "ab", classes="bac", first=2)])
    with pytest.raises(RunError, match="no scores to join"):
        concat_scores([])


def test_evaluation_refuses_nothing_and_unknown_labels() -> None:
    with pytest.raises(RunError, match="no scores to evaluate"):
        measure_scores(scores_of("", ""))
    with pytest.raises(RunError, match=r"labels \['z'\]"):
        measure_scores(scores_of("az", "aa"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    features, labels = blobs(["a", "b", "c"], 6)
    store, name = feature_store(folder / "store.zarr", features)
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for video_id in labels:
        parts[("train", "train", "train", "val", "test", "test")[int(video_id[-1])]].append(video_id)
    config = TrainConfig(units=6, epochs=4, learning_rate=1e-2, device="cpu")
    train_split(store, name, manifest(labels), split_of(**parts), config, folder / "run")
    return folder / "run"


@pytest.mark.usefixtures("pictures_drawn")
def test_evaluating_a_run_writes_what_it_returns(run_dir: Path) -> None:
    evaluation = evaluate(run_dir)
    result = evaluation.measures
    assert result.num_videos == 6
    assert (evaluation.kind, evaluation.members, evaluation.top1) == ("run", {}, result.top1)
    assert evaluation.to_dict() == result.to_dict()
    written = json.loads((run_dir / "evaluation.json").read_text())
    assert written["top1"]["value"] == result.top1.value
    assert written["confusion"] == result.confusion.tolist()
    with open(run_dir / "confusion.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["a", "b", "c"]
    assert [[int(value) for value in row[1:]] for row in rows[1:]] == result.confusion.tolist()
    with open(run_dir / "per_class.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["label"] for row in table] == ["a", "b", "c"]
    assert [int(row["correct"]) for row in table] == np.diag(result.confusion).tolist()
    for name in ("confusion.png", "training.png"):
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_mistakes_are_listed_with_the_most_confident_first(tmp_path: Path) -> None:
    scores = scores_of("aabbc", "abbac")
    values = scores.probabilities.copy()
    values[3] = [0.9, 0.1, 0.0]
    measures = measure_scores(dataclasses.replace(scores, probabilities=values))
    assert [(one.video_id, one.label, one.predicted, one.probability) for one in measures.mistakes] == [
        ("v3", "b", "a", 0.9), ("v1", "a", "b", 0.6)
    ]  # fmt: skip
    assert [one.label_probability for one in measures.mistakes] == [0.1, 0.2]
    write_measures(measures, tmp_path)
    rows = list(csv.DictReader((tmp_path / "mistakes.csv").read_text().splitlines()))
    assert [(row["video_id"], row["predicted"], float(row["probability"])) for row in rows] == [
        ("v3", "a", 0.9),
        ("v1", "b", 0.6),
    ]
    assert [one["video_id"] for one in json.loads((tmp_path / "evaluation.json").read_text())["mistakes"]] == [
        "v3",
        "v1",
    ]


def test_a_fusion_of_repeats_lists_the_mistakes_of_all(tmp_path: Path) -> None:
    scores = stack_scores([scores_of("aab", "abb"), scores_of("aab", "aaa", seed=1)])
    write_scores(tmp_path / "scores.csv", scores)
    (tmp_path / "fusion.json").write_text("{}")
    found = evaluate(tmp_path)
    assert [(one.video_id, one.seed) for one in found.mistakes] == [("v1", 0), ("v2", 1)]


def test_results_go_to_another_folder_and_the_run_stays_as_it_is(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run", ignore=lambda _, names: set(names) - {*RUN_FILES, run_dir.name})
    before = contents(tmp_path / "run")
    result = evaluate(tmp_path / "run", out=tmp_path / "new/results")
    assert contents(tmp_path / "run") == before
    assert {"evaluation.json", "confusion.png", "mistakes.csv", "training.png"} <= contents(
        tmp_path / "new/results"
    ).keys()
    assert result.to_dict() == evaluate(tmp_path / "run").to_dict()
    again = contents(tmp_path / "run")
    assert {name: again[name] for name in contents(tmp_path / "new/results")} == contents(tmp_path / "new/results")
    evaluate(tmp_path / "run", part="val", out=tmp_path / "new/results")
    assert (tmp_path / "new/results/val/evaluation.json").is_file()


def test_folds_and_repeats_are_written_as_the_same_tree_elsewhere(run_dir: Path, tmp_path: Path) -> None:
    scores = stack_scores([scores_of("aab", "abb"), scores_of("aab", "aaa", seed=1)])
    (tmp_path / "fusion").mkdir()
    write_scores(tmp_path / "fusion/scores.csv", scores)
    (tmp_path / "fusion/fusion.json").write_text("{}")
    before = contents(tmp_path / "fusion")
    evaluate(tmp_path / "fusion", out=tmp_path / "out")
    assert contents(tmp_path / "fusion") == before
    assert {"repeats.json", "seed0/mistakes.csv", "seed1/confusion.png"} <= contents(tmp_path / "out").keys()


def test_results_are_not_written_over_something_else(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "other")
    with pytest.raises(RunError, match="other holds another run or fusion"):
        evaluate(run_dir, out=tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file is a file"):
        evaluate(run_dir, out=tmp_path / "file")
    evaluate(run_dir, out=run_dir)


def test_a_run_folder_that_cannot_be_written_says_the_way_out(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = evaluate_module.write_measures

    def write(measures: Measures, folder: Path) -> None:
        if folder == run_dir:
            raise PermissionError(errno.EROFS, "Read-only file system", str(folder / "evaluation.json"))
        written(measures, folder)

    monkeypatch.setattr(evaluate_module, "write_measures", write)
    with pytest.raises(RunError, match=r"evaluation.json: Read-only file system; name another folder .* --out"):
        evaluate(run_dir)
    evaluate(run_dir, out=tmp_path / "out")


def counted_scores(counts: dict[str, dict[str, int]]) -> Scores:
    """Scores whose confusion matrix is `counts`: true class -> predicted class -> videos."""
    classes = tuple(sorted(counts))
    pairs = [(true, said) for true, row in counts.items() for said, n in row.items() for _ in range(n)]
    probabilities = np.array(
        [[0.9 if label == said else 0.1 / (len(classes) - 1) for label in classes] for _, said in pairs]
    )
    return Scores(
        video_ids=tuple(f"v{number}" for number in range(len(pairs))),
        labels=tuple(true for true, _ in pairs),
        classes=classes,
        probabilities=probabilities,
        part=("test",) * len(pairs),
        fold=(0,) * len(pairs),
        seed=(0,) * len(pairs),
    )


def test_classes_recognised_best_and_worst(tmp_path: Path) -> None:
    counts = {
        "a": {"a": 9, "b": 1},
        "b": {"b": 5, "a": 2, "c": 3},
        "c": {"c": 10},
        "d": {"d": 2, "e": 8},
        "e": {"e": 9, "d": 1},
    }
    evaluation = measure_scores(counted_scores(counts))
    found = extremes(evaluation)
    assert found is not None
    assert [row.label for row in found.best] == ["c", "a"]
    assert [(row.label, row.confused_with, row.confused_videos) for row in found.worst] == [
        ("d", "e", 8),
        ("b", "c", 3),
    ]
    assert (found.best_mean, found.worst_mean) == (pytest.approx(0.95), pytest.approx(0.35))
    one = extremes(evaluation, 1)
    assert one is not None
    assert [row.label for row in (*one.best, *one.worst)] == ["c", "d"]
    write_measures(evaluation, tmp_path)
    with open(tmp_path / "best_and_worst.csv", newline="") as file:
        table = [list(row.values()) for row in csv.DictReader(file)]
    assert table[0] == ["best", "1", "c", "1.0", "10", "", "0"]
    assert table[3] == ["worst", "1", "d", "0.2", "10", "e", "8"]
    assert table[5][:3] == ["worst", "mean", ""]
    assert float(table[5][3]) == pytest.approx(0.35)


def test_a_single_tested_class_has_no_best_and_worst() -> None:
    scores = counted_scores({"a": {"a": 2, "b": 1}, "b": {}})
    assert extremes(measure_scores(scores)) is None


def test_the_validation_part_has_its_own_folder(run_dir: Path) -> None:
    before = evaluate(run_dir).measures
    assert evaluate(run_dir, part="val").measures.num_videos == 3
    assert json.loads((run_dir / "val/evaluation.json").read_text())["part"] == "val"
    assert json.loads((run_dir / "evaluation.json").read_text())["num_videos"] == before.num_videos
    assert (run_dir / "val/confusion.png").exists()
    with pytest.raises(RunError, match="no train scores"):
        evaluate(run_dir, part="train")


def test_predicting_a_stored_video_gives_its_stored_scores(run_dir: Path) -> None:
    run = load_run(run_dir)
    scores = run.scores()
    features, _ = blobs(["a", "b", "c"], 6)
    for video_id, expected in zip(scores.video_ids, scores.probabilities, strict=True):
        np.testing.assert_allclose(predict_scores(run, features[video_id]), expected, atol=1e-6)


@pytest.mark.parametrize("features", [np.zeros((0, 8)), np.zeros((3, 7)), np.zeros(8), np.full((2, 8), np.nan)])
def test_predicting_refuses_features_that_do_not_fit(run_dir: Path, features: np.ndarray) -> None:
    with pytest.raises(RunError, match=r"expected features \(N >= 1, 8\)|not finite"):
        predict_scores(load_run(run_dir), features)


def test_top_k_is_sorted_and_bounded() -> None:
    assert top_k(("a", "b", "c", "d"), np.array([0.1, 0.4, 0.3, 0.2])) == [("b", 0.4), ("c", 0.3), ("d", 0.2)]
    assert top_k(("a", "b"), np.array([0.5, 0.5])) == [("a", 0.5), ("b", 0.5)]


def damaged_copy(run_dir: Path, tmp_path: Path, name: str, content: bytes | None) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run_dir.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    return copy


@pytest.mark.parametrize("name", ["run.json", "split.json", "head.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff\xfe\x00"])
def test_a_damaged_run_folder_is_an_error_that_names_it(
    run_dir: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    copy = damaged_copy(run_dir, tmp_path, name, content)
    with pytest.raises(RunError, match="copy"):
        load_run(copy)


def test_weights_of_another_head_are_refused(run_dir: Path, tmp_path: Path) -> None:
    info = json.loads((run_dir / "run.json").read_text())
    info["options"]["units"] = 12
    del info["sha256"]
    info["format"] = 1
    with pytest.raises(RunError, match="not the weights of this run"):
        load_run(damaged_copy(run_dir, tmp_path, "run.json", json.dumps(info).encode()))
