"""Measures of scores: accuracies with intervals, per class and per group, the confusion matrix, and their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import write_json
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.categories import Grouping, GroupResult, group_results
from har_pipeline.evaluation.plots import save_confusion_matrix
from har_pipeline.evaluation.scores import check_unique
from har_pipeline.evaluation.statistics import Interval, mean_class_accuracy, wilson_interval
from har_pipeline.evaluation.tables import write_csv, write_matrix

TOP = 5
EXTREMES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """The results of one class."""

    label: str
    videos: int  # its videos
    correct: int  # those predicted right
    accuracy: Interval | None  # share of its videos predicted right (recall), in [0, 1]; None without videos
    # Share of the videos predicted as this class that are of it, in [0, 1]; None if it was never predicted.
    precision: float | None
    confused_with: str | None  # the class it was most often mistaken for; None if never
    confused_videos: int  # the number of videos mistaken for that class


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A video whose most probable class is not its own."""

    video_id: str
    label: str
    predicted: str
    probability: float  # of the predicted class
    label_probability: float  # of the label
    fold: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Accuracies on videos that were each tested once, in [0, 1], with 95 % intervals."""

    part: str  # `train`, `val` or `test`
    classes: tuple[str, ...]
    num_videos: int
    folds: tuple[int, ...]  # indices of the folds the videos come from
    top1: Interval  # video accuracy, Wilson interval
    # Share of videos whose class is among the five most probable; None with five classes or fewer.
    top5: Interval | None
    mean_class: Interval  # mean of the classes' accuracies, interval as in `statistics.mean_class_accuracy`
    per_class: tuple[ClassResult, ...]
    confusion: np.ndarray  # (K, K) int64, rows true, columns predicted
    notes: tuple[str, ...] = ()  # what a reader must know, such as random backbone weights
    grouping: Grouping | None = None  # coarse categories, if asked for
    per_group: tuple[GroupResult, ...] = ()
    mistakes: tuple[Mistake, ...] = ()  # all of them, the most confident first

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as a plain nested dict, ready for JSON; the grouping by its name."""
        grouping = self.grouping.name if self.grouping else None
        return {**dataclasses.asdict(self), "confusion": self.confusion.tolist(), "grouping": grouping}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """The classes with the highest and the lowest accuracy, each list from its end."""

    best: tuple[ClassResult, ...]
    worst: tuple[ClassResult, ...]
    best_mean: float  # mean accuracy, in [0, 1]
    worst_mean: float


def measure_scores(scores: Scores, *, notes: Sequence[str] = (), grouping: Grouping | None = None) -> Measures:
    """Return the measures over all rows of `scores`: one part of one run, or the pooled folds of a protocol.

    Raises: RunError if there is no row, several parts or several seeds (repeats are not pooled: measure each), a
    duplicate video, or a label that is not among the classes; ManifestError if a class has no group in the grouping.
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
    return Measures(
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
        mistakes=_mistakes(scores, labels, predicted),
    )


def _mistakes(scores: Scores, labels: np.ndarray, predicted: np.ndarray) -> tuple[Mistake, ...]:
    """Return the videos of which the class numbers `labels` and `predicted`, (V,) int64, differ."""
    found = [
        Mistake(
            video_id=scores.video_ids[row],
            label=scores.labels[row],
            predicted=scores.classes[predicted[row]],
            probability=float(scores.probabilities[row, predicted[row]]),
            label_probability=float(scores.probabilities[row, labels[row]]),
            fold=scores.fold[row],
            seed=scores.seed[row],
        )
        for row in np.flatnonzero(labels != predicted).tolist()
    ]
    return sorted_mistakes(found)


def sorted_mistakes(mistakes: Iterable[Mistake]) -> tuple[Mistake, ...]:
    """Return mistakes with the most confident first, of equals by id and seed."""
    return tuple(sorted(mistakes, key=lambda one: (-one.probability, one.video_id, one.seed, one.fold)))


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


def extremes(measures: Measures, count: int = EXTREMES) -> Extremes | None:
    """Return the `count` classes with the highest and the `count` with the lowest accuracy, of those with videos.

    With less than twice `count` classes the lists are shorter, so that no class is in both; None with fewer than two
    classes. Ties are in alphabetical order. Source: Sanchez-Caballero 2020, table 3.
    """
    tested = [(result, result.accuracy.value) for result in measures.per_class if result.accuracy is not None]
    count = min(count, len(tested) // 2)
    if not count:
        return None
    best = sorted(tested, key=lambda row: (-row[1], row[0].label))[:count]
    rest = [row for row in tested if row not in best]
    worst = sorted(rest, key=lambda row: (row[1], row[0].label))[:count]
    means = [float(np.mean([value for _, value in rows])) for rows in (best, worst)]
    best_rows, worst_rows = (tuple(result for result, _ in rows) for rows in (best, worst))
    return Extremes(best=best_rows, worst=worst_rows, best_mean=means[0], worst_mean=means[1])


def write_measures(measures: Measures, folder: Path) -> None:
    """Write evaluation.json, per_class.csv, confusion.csv and .png, and best_and_worst.csv (`extremes`) into `folder`.

    mistakes.csv has a row for each video that was classified wrong, the most confident mistakes first. With a grouping also
    per_group.csv, and confusion_groups.csv and .png: the matrix ordered by group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", measures.to_dict())
    write_csv(
        folder / "per_class.csv",
        [
            "label",
            "videos",
            "correct",
            "accuracy",
            "low_95",
            "high_95",
            "precision",
            "confused_with",
            "confused_videos",
        ],
        (
            [
                row.label,
                row.videos,
                row.correct,
                *_cells(row.accuracy),
                row.precision,
                row.confused_with,
                row.confused_videos,
            ]
            for row in measures.per_class
        ),
    )
    write_matrix(folder / "confusion.csv", measures.confusion, measures.classes)
    save_confusion_matrix(folder / "confusion.png", measures.confusion, measures.classes)
    write_csv(
        folder / "best_and_worst.csv",
        ["list", "place", "label", "accuracy", "videos", "confused_with", "confused_videos"],
        _extreme_rows(extremes(measures)),
    )
    names = [field.name for field in dataclasses.fields(Mistake)]
    write_csv(folder / "mistakes.csv", names, (dataclasses.astuple(one) for one in measures.mistakes))
    if measures.grouping is not None:
        _write_groups(measures, measures.grouping, folder)


def _cells(interval: Interval | None) -> tuple[float | None, ...]:
    return dataclasses.astuple(interval) if interval else (None, None, None)


def _extreme_rows(found: Extremes | None) -> list[list[Any]]:
    rows: list[list[Any]] = []
    if found is None:
        return rows
    for name, results, mean in (("best", found.best, found.best_mean), ("worst", found.worst, found.worst_mean)):
        for place, row in enumerate(results, start=1):
            accuracy = row.accuracy.value if row.accuracy else None
            rows.append([name, place, row.label, accuracy, row.videos, row.confused_with, row.confused_videos])
        rows.append([name, "mean", "", mean, sum(row.videos for row in results), "", ""])
    return rows


def _write_groups(measures: Measures, grouping: Grouping, folder: Path) -> None:
    write_csv(
        folder / "per_group.csv",
        ["group", "classes", "videos", "correct", "accuracy", "low_95", "high_95", "in_group"],
        (
            [row.name, row.classes, row.videos, row.correct, *_cells(row.accuracy), _cells(row.in_group)[0]]
            for row in measures.per_group
        ),
    )
    order = grouping.order(measures.classes)
    classes, matrix = [measures.classes[k] for k in order], measures.confusion[np.ix_(order, order)]
    write_matrix(folder / "confusion_groups.csv", matrix, classes)
    save_confusion_matrix(folder / "confusion_groups.png", matrix, classes, grouping.spans(classes))


def ranks(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (V,) int64 ranks of the true classes, 0 = most probable; among equals the lower class number is first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return np.argmax(order == labels[:, None], axis=1)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (K, K) int64 counts, rows true classes, columns predicted ones."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)
