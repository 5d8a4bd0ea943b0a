"""Measures of a run or of pooled folds, and the class probabilities of one more video."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import write_json
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.categories import Grouping, GroupResult, group_results
from har_pipeline.evaluation.metrics import Interval, confusion_matrix, mean_class_accuracy, ranks, wilson_interval
from har_pipeline.evaluation.plots import save_confusion_matrix, save_training_curves
from har_pipeline.evaluation.run_folder import read_history, read_run
from har_pipeline.evaluation.scores import check_unique, select_part

TOP = 5


EXTREMES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """One class's row: its test videos, how many were right, recall (= its accuracy) and precision.

    `accuracy` is None for a class without videos, `precision` None for one that was never predicted.
    `confused_with`: the class it was most often taken for, with the number of videos; None if never.
    """

    label: str
    videos: int
    correct: int
    accuracy: Interval | None
    precision: float | None
    confused_with: str | None
    confused_videos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Video accuracies with 95 % confidence intervals, in [0, 1].

    top1, top5: share of videos whose class is the first, or among the first five (None with five classes or fewer,
    where it says nothing), Wilson intervals; mean_class: mean of the classes' accuracies, 95 % interval (see
    `metrics.mean_class_accuracy`); confusion: (K, K) int64, rows true, columns predicted; folds: numbers pooled.
    notes: what a reader must know, such as random backbone weights. grouping, per_group: coarse categories, if asked for.
    """

    part: str
    classes: tuple[str, ...]
    num_videos: int
    folds: tuple[int, ...]
    top1: Interval
    top5: Interval | None
    mean_class: Interval
    per_class: tuple[ClassResult, ...]
    confusion: np.ndarray
    notes: tuple[str, ...] = ()
    grouping: Grouping | None = None
    per_group: tuple[GroupResult, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as a plain nested dict, ready for JSON; of the grouping the name."""
        grouping = self.grouping.name if self.grouping else None
        return {**dataclasses.asdict(self), "confusion": self.confusion.tolist(), "grouping": grouping}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """The classes recognised best and worst, each from its end, and the mean accuracy of each list, in [0, 1]."""

    best: tuple[ClassResult, ...]
    worst: tuple[ClassResult, ...]
    best_mean: float
    worst_mean: float


def extremes(evaluation: Evaluation, count: int = EXTREMES) -> Extremes | None:
    """Return the `count` classes recognised best and the `count` worst, of those with test videos.

    Fewer than `count` of each where there are not twice as many classes, so that none is on both sides; None with less
    than two. Equal accuracies are in alphabetical order. Source: Sanchez-Caballero 2020, table 3.
    """
    tested = [(result, result.accuracy.value) for result in evaluation.per_class if result.accuracy is not None]
    count = min(count, len(tested) // 2)
    if not count:
        return None
    best = sorted(tested, key=lambda row: (-row[1], row[0].label))[:count]
    rest = [row for row in tested if row not in best]
    worst = sorted(rest, key=lambda row: (row[1], row[0].label))[:count]
    means = [float(np.mean([value for _, value in rows])) for rows in (best, worst)]
    best_rows, worst_rows = (tuple(result for result, _ in rows) for rows in (best, worst))
    return Extremes(best=best_rows, worst=worst_rows, best_mean=means[0], worst_mean=means[1])


def evaluate_scores(scores: Scores, *, notes: Sequence[str] = (), grouping: Grouping | None = None) -> Evaluation:
    """Return the measures over all rows of `scores`: one part of one run, or the pooled folds of a protocol.

    Raises: RunError if there is no row, several parts or several seeds (repeats are not pooled: evaluate each), a video
    stands twice, or a label is not among the classes; ManifestError if a class has no group in the grouping.
    """
    if not scores.video_ids:
        raise RunError("there are no scores to evaluate")
    for name in ("part", "seed"):
        if len(found := sorted(set(getattr(scores, name)))) > 1:
            raise RunError(f"scores of several {name}s {found} cannot be pooled: select one")
    check_unique(scores)
    number = {label: k for k, label in enumerate(scores.classes)}
    if unknown := sorted(set(scores.labels) - set(number)):
        raise RunError(f"labels {unknown[:5]} are not among the {len(number)} classes of the scores")
    labels = np.array([number[label] for label in scores.labels], np.int64)
    rank = ranks(scores.probabilities, labels)
    predicted = np.argmax(scores.probabilities, axis=1)
    confusion = confusion_matrix(labels, predicted, len(scores.classes))
    total = len(labels)
    return Evaluation(
        part=scores.part[0],
        classes=scores.classes,
        num_videos=total,
        folds=tuple(sorted(set(scores.fold))),
        top1=wilson_interval(int((rank == 0).sum()), total),
        top5=wilson_interval(int((rank < TOP).sum()), total) if len(scores.classes) > TOP else None,
        mean_class=mean_class_accuracy(confusion),
        per_class=tuple(_class_result(confusion, k, scores.classes) for k in range(len(scores.classes))),
        confusion=confusion,
        notes=tuple(notes),
        grouping=grouping,
        per_group=tuple(group_results(confusion, scores.classes, grouping)) if grouping else (),
    )


def _class_result(confusion: np.ndarray, k: int, classes: Sequence[str]) -> ClassResult:
    videos, correct, predicted = int(confusion[k].sum()), int(confusion[k, k]), int(confusion[:, k].sum())
    wrong = np.where(np.arange(len(classes)) == k, 0, confusion[k])
    other = int(wrong.argmax())
    return ClassResult(
        label=classes[k],
        videos=videos,
        correct=correct,
        accuracy=wilson_interval(correct, videos) if videos else None,
        precision=correct / predicted if predicted else None,
        confused_with=classes[other] if wrong[other] else None,
        confused_videos=int(wrong[other]),
    )


def evaluate_run(
    run_dir: Path | str, *, part: str = "test", out: Path | None = None, grouping: Grouping | None = None
) -> Evaluation:
    """Evaluate the stored scores of a run and write the measures beside them.

    Files go to `out`; by default the run folder for the test videos, and its subfolder `val` for the validation ones:
    those of `write_evaluation`, and training.png of a head trained in epochs.
    Raises: RunError if the run is incomplete or has no scores of that part.
    """
    run = read_run(run_dir)
    notes: Sequence[str] = run.notes
    if missing := run.info.get("summary", {}).get("missing", []):
        notes = [*notes, f"{len(missing)} videos had no features and were left out: {', '.join(missing[:5])}"]
    evaluation = evaluate_scores(select_part(run.scores(), part), notes=notes, grouping=grouping)
    folder = out if out is not None else (run.path if part == "test" else run.path / part)
    write_evaluation(evaluation, folder)
    history = read_history(run.path)
    if len(history["epoch"]) > 1:
        save_training_curves(folder / "training.png", history)
    return evaluation


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write evaluation.json, per_class.csv, confusion.csv and confusion.png into `folder`, made where missing.

    Also best_and_worst.csv: the classes of `extremes`, numbered, with each one's commonest error, and the means.
    With coarse categories also per_group.csv, and confusion_groups.csv and .png: the matrix ordered by group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", evaluation.to_dict())
    with open(folder / "per_class.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        names = ("low_95", "high_95", "precision", "confused_with", "confused_videos")
        table.writerow(["label", "videos", "correct", "accuracy", *names])
        for row in evaluation.per_class:
            interval = dataclasses.astuple(row.accuracy) if row.accuracy else ("", "", "")
            precision = "" if row.precision is None else row.precision
            confused = (row.confused_with or "", row.confused_videos)
            table.writerow([row.label, row.videos, row.correct, *interval, precision, *confused])
    _write_matrix(folder / "confusion.csv", evaluation.confusion, evaluation.classes)
    save_confusion_matrix(folder / "confusion.png", evaluation.confusion, evaluation.classes)
    _write_extremes(folder / "best_and_worst.csv", extremes(evaluation))
    if evaluation.grouping is not None:
        _write_groups(evaluation, evaluation.grouping, folder)


def _write_matrix(path: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["true \\ predicted", *classes])
        for label, counts in zip(classes, matrix.tolist(), strict=True):
            table.writerow([label, *counts])


def _write_extremes(path: Path, found: Extremes | None) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["list", "place", "label", "accuracy", "videos", "confused_with", "confused_videos"])
        if found is None:
            return
        for name, rows, mean in (("best", found.best, found.best_mean), ("worst", found.worst, found.worst_mean)):
            for place, row in enumerate(rows, start=1):
                accuracy = row.accuracy.value if row.accuracy else ""
                table.writerow(
                    [name, place, row.label, accuracy, row.videos, row.confused_with or "", row.confused_videos]
                )
            table.writerow([name, "mean", "", mean, sum(row.videos for row in rows), "", ""])


def _write_groups(evaluation: Evaluation, grouping: Grouping, folder: Path) -> None:
    with open(folder / "per_group.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["group", "classes", "videos", "correct", "accuracy", "low_95", "high_95", "in_group"])
        for row in evaluation.per_group:
            interval = dataclasses.astuple(row.accuracy) if row.accuracy else ("", "", "")
            within = row.in_group.value if row.in_group else ""
            table.writerow([row.name, row.classes, row.videos, row.correct, *interval, within])
    order = grouping.order(evaluation.classes)
    classes, matrix = [evaluation.classes[k] for k in order], evaluation.confusion[np.ix_(order, order)]
    _write_matrix(folder / "confusion_groups.csv", matrix, classes)
    save_confusion_matrix(folder / "confusion_groups.png", matrix, classes, grouping.spans(classes))
