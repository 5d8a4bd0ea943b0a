"""Two runs on the same videos: what the second gains and loses against the first, class by class."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import write_json
from har_pipeline.evaluation.categories import Grouping, group_results
from har_pipeline.evaluation.fusion import Member, join
from har_pipeline.evaluation.metrics import Interval, PairedTest, confusion_matrix, mcnemar, wilson_interval
from har_pipeline.evaluation.plots import save_class_gains, save_confusion_difference


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassGain:
    """A class's (or group's) videos, its rows (one per video, fold and repeat) and its accuracies in [0, 1] by each run."""

    label: str
    videos: int
    rows: int
    first: float
    second: float

    @property
    def gain(self) -> float:
        """Accuracy of the second run less that of the first, in [-1, 1]."""
        return self.second - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The second run against the first, on the rows that both have; repeats count as rows, once in interval and test.

    first_top1, second_top1: video accuracies with Wilson's 95 % interval for the number of videos. test: first against
    second. classes: grouped where a grouping was given, and spans its groups. difference: (K, K) shares of the second
    run's confusion matrix less the first's, rows true classes. per_class leaves out classes without rows.
    """

    runs: tuple[str, str]
    part: str
    num_videos: int
    num_rows: int
    first_top1: Interval
    second_top1: Interval
    test: PairedTest
    classes: tuple[str, ...]
    spans: tuple[tuple[str, int, int], ...]
    difference: np.ndarray
    per_class: tuple[ClassGain, ...]
    per_group: tuple[ClassGain, ...]
    missing: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a plain nested dict, ready for JSON."""
        return {**dataclasses.asdict(self), "difference": self.difference.tolist()}


def compare_members(
    first: Member, second: Member, *, grouping: Grouping | None = None, part: str = "test"
) -> Comparison:
    """Return the comparison of two runs, joined by video id, fold and repeat as for a fusion.

    Raises: RunError as `fusion.join` does, or if no row of the part is common; ManifestError if a class has no group.
    Source: Lakhal 2018, section 4.2 and figure 6.
    """
    joined = join([first, second])
    rows = joined.rows(part)
    if not len(rows):
        raise RunError(f"{first.name} and {second.name} have no {part} video in common")
    order = grouping.order(joined.classes) if grouping else list(range(len(joined.classes)))
    classes = tuple(joined.classes[k] for k in order)
    labels = joined.labels[rows]
    predicted = joined.probabilities[:, rows].argmax(axis=2)
    matrices = [confusion_matrix(labels, own, len(order))[np.ix_(order, order)] for own in predicted]
    totals = matrices[0].sum(axis=1)
    shares = [matrix / np.maximum(totals, 1)[:, None] for matrix in matrices]
    videos = np.unique([joined.keys[row][3] for row in rows], return_inverse=True)[1]
    right = [np.bincount(videos, weights=own == labels).astype(np.int64) for own in predicted]
    count = int(videos.max()) + 1
    # A video's label is the same in all its rows.
    first_rows = np.unique(videos, return_index=True)[1]
    of_class = np.bincount(labels[first_rows], minlength=len(order))[order]
    top1 = [wilson_interval(round(float(own.sum()) / len(rows) * count, 9), count) for own in right]
    return Comparison(
        runs=(first.name, second.name),
        part=part,
        num_videos=count,
        num_rows=len(rows),
        first_top1=top1[0],
        second_top1=top1[1],
        test=mcnemar(right[0], right[1]),
        classes=classes,
        spans=tuple(grouping.spans(classes)) if grouping else (),
        difference=shares[1] - shares[0],
        per_class=tuple(
            ClassGain(
                label=label,
                videos=int(of_class[k]),
                rows=int(totals[k]),
                first=float(shares[0][k, k]),
                second=float(shares[1][k, k]),
            )
            for k, label in enumerate(classes)
            if totals[k]
        ),
        per_group=_group_gains(matrices, of_class, classes, grouping) if grouping else (),
        missing=dict(joined.missing[part]),
        notes=joined.notes,
    )


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, difference.csv, difference.png, class_gains.csv and class_gains.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", comparison.to_dict())
    with open(folder / "difference.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["true \\ predicted", *comparison.classes])
        for label, values in zip(comparison.classes, comparison.difference.tolist(), strict=True):
            table.writerow([label, *values])
    with open(folder / "class_gains.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["kind", "label", "videos", "rows", *comparison.runs, "gain"])
        for kind, gains in (("class", comparison.per_class), ("group", comparison.per_group)):
            for row in gains:
                table.writerow([kind, row.label, row.videos, row.rows, row.first, row.second, row.gain])
    words = f"{comparison.runs[1]} less {comparison.runs[0]}"
    save_confusion_difference(
        folder / "difference.png",
        comparison.difference,
        comparison.classes,
        comparison.spans,
        label=f"share of the true class's videos, {words}",
    )
    save_class_gains(
        folder / "class_gains.png",
        [row.label for row in comparison.per_class],
        [row.gain for row in comparison.per_class],
        label=f"class accuracy, {words} / points",
    )


def _group_gains(
    matrices: list[np.ndarray], videos: np.ndarray, classes: tuple[str, ...], grouping: Grouping
) -> tuple[ClassGain, ...]:
    first, second, counted = (group_results(matrix, classes, grouping) for matrix in (*matrices, np.diag(videos)))
    return tuple(
        ClassGain(
            label=one.name, videos=count.videos, rows=one.videos, first=one.accuracy.value, second=two.accuracy.value
        )
        for one, two, count in zip(first, second, counted, strict=True)
        if one.accuracy is not None and two.accuracy is not None
    )
