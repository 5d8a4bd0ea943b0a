"""Two runs on the same videos: what the second gains and loses against the first, class by class."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.files import write_json
from har_pipeline.evaluation.categories import Grouping, group_results
from har_pipeline.evaluation.members import Member, join
from har_pipeline.evaluation.metrics import confusion_matrix
from har_pipeline.evaluation.plots import save_class_gains, save_confusion_difference
from har_pipeline.evaluation.statistics import Interval, PairedTest, mcnemar, mean_interval
from har_pipeline.evaluation.tables import write_csv, write_matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassGain:
    """The accuracies of both runs on one class or group."""

    label: str
    videos: int
    rows: int  # one per video, fold and repeat
    first: float  # accuracy of the first run, in [0, 1]
    second: float  # of the second

    @property
    def gain(self) -> float:
        """Accuracy of the second run minus that of the first, in [-1, 1]."""
        return self.second - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The second run against the first, on the rows that both have."""

    runs: tuple[str, str]  # names, first and second
    part: str  # `val` or `test`
    num_videos: int  # different videos
    num_rows: int  # videos times repeats, and folds that test a video again
    # Video accuracies over all rows, in [0, 1], with Wilson's 95 % interval for the number of videos.
    first_top1: Interval
    second_top1: Interval
    test: PairedTest  # first against second; each video counts once
    classes: tuple[str, ...]  # sorted by group if there is a grouping
    spans: tuple[tuple[str, int, int], ...]  # (group, first class, end)
    # (K, K) float64, confusion shares of the second run minus those of the first, rows true classes.
    difference: np.ndarray
    per_class: tuple[ClassGain, ...]  # classes that have rows
    per_group: tuple[ClassGain, ...]
    missing: dict[str, tuple[str, ...]]  # run -> videos left out because it lacks them
    notes: tuple[str, ...] = ()  # what a reader must know

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a plain nested dict, ready for JSON."""
        return {**dataclasses.asdict(self), "difference": self.difference.tolist()}


def compare_members(
    first: Member, second: Member, *, grouping: Grouping | None = None, part: str = "test"
) -> Comparison:
    """Return the comparison of two runs, joined by video id, fold and repeat as for a fusion.

    Raises: RunError as `members.join` does; ManifestError if a class has no group.
    Source: Lakhal 2018, section 4.2 and figure 6.
    """
    joined = join([first, second], part)
    rows = joined.rows(part)
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
    top1 = [mean_interval(own == labels, count) for own in predicted]
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
    write_matrix(folder / "difference.csv", comparison.difference, comparison.classes)
    kinds = (("class", comparison.per_class), ("group", comparison.per_group))
    write_csv(
        folder / "class_gains.csv",
        ["kind", "label", "videos", "rows", *comparison.runs, "gain"],
        (
            [kind, row.label, row.videos, row.rows, row.first, row.second, row.gain]
            for kind, gains in kinds
            for row in gains
        ),
    )
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
