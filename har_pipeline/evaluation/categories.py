"""Coarse categories: the group of each class, and accuracies per group."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.spreadsheets import decoded, delimiter_of
from har_pipeline.core.text import did_you_mean
from har_pipeline.evaluation.statistics import Interval, wilson_interval

BUILT_IN = ("ucf101", "hmdb51")
COMPLEX = "complex classes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """Classes and their groups, in the file's order."""

    name: str  # `ucf101`, `hmdb51` or the path of a file
    group_of: Mapping[str, str]  # class -> group
    complex_classes: tuple[str, ...] = ()  # classes that are also reported one by one

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in the file's order."""
        return tuple(dict.fromkeys(self.group_of.values()))

    def order(self, classes: Sequence[str]) -> list[int]:
        """Return the indices of `classes` sorted by group, otherwise in the given order.

        Raises: ManifestError naming the classes that have no group.
        """
        if without := [label for label in classes if label not in self.group_of]:
            raise ManifestError(
                f"groups {self.name}: no group for the classes {', '.join(without[:5])}"
                f"{' ...' if len(without) > 5 else ''}; give a file `class,group` with --groups"
            )
        groups = self.groups
        return sorted(range(len(classes)), key=lambda k: (groups.index(self.group_of[classes[k]]), k))

    def spans(self, classes: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return (group, first, end) of each run of adjacent classes of one group."""
        runs = itertools.groupby(range(len(classes)), key=lambda k: self.group_of[classes[k]])
        numbers = [(group, list(run)) for group, run in runs]
        return [(group, run[0], run[-1] + 1) for group, run in numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """The accuracy on the videos of one group of classes, or of one complex class."""

    name: str  # group or class
    classes: int  # number of classes
    videos: int  # number of videos
    correct: int  # videos whose predicted class is right
    accuracy: Interval | None  # share of them, in [0, 1]; None without videos
    # Share of the videos whose predicted class is of the right group, in [0, 1]; None without videos.
    in_group: Interval | None


def read_groups(source: str | Path) -> Grouping:
    """Return the grouping of `ucf101`, `hmdb51` or a CSV file with the columns class, group and, optionally, complex.

    A non-empty cell `complex` marks a complex class.
    Raises: ManifestError naming the file and line if it is missing or malformed.
    Source: the groups of Soomro 2012 (UCF-101, table 1 and its web page) and Kuehne 2011 (HMDB-51, section 2.1);
    complex classes: Lakhal 2018, table 3.
    """
    name = str(source)
    built_in = files("har_pipeline.evaluation.data") / f"{name}_groups.csv"
    try:
        text = decoded((built_in if name in BUILT_IN else Path(source)).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason})"
        way_out = f"{did_you_mean(name, BUILT_IN)}give a CSV file, or one of {', '.join(BUILT_IN)}"
        raise ManifestError(f"groups {name}: {why}; {way_out}") from error
    lines = text.splitlines()
    delimiter = delimiter_of(lines[0], ("class", "group", "complex")) if lines else ","
    rows = list(csv.reader(lines, delimiter=delimiter))
    if not rows or rows[0] not in (["class", "group"], ["class", "group", "complex"]):
        raise ManifestError(f"groups {name}: the first line must be `class,group` or `class,group,complex`")
    group_of: dict[str, str] = {}
    complex_classes = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(rows[0]) or not row[0].strip() or not row[1].strip():
            raise ManifestError(f"groups {name}, line {number}: expected a class and its group, not {','.join(row)!r}")
        label = row[0].strip()
        if label in group_of:
            raise ManifestError(f"groups {name}, line {number}: duplicate class {label}")
        group_of[label] = row[1].strip()
        if len(row) == 3 and row[2].strip():
            complex_classes.append(label)
    if not group_of:
        raise ManifestError(f"groups {name}: no class")
    return Grouping(name=name, group_of=group_of, complex_classes=tuple(complex_classes))


def group_results(confusion: np.ndarray, classes: Sequence[str], grouping: Grouping) -> list[GroupResult]:
    """Return a result for each group among `classes`, each complex class, and all of these together (`complex classes`).

    confusion: (K, K) counts, rows true classes. Raises: ManifestError if a class has no group.
    Source: Lakhal 2018, table 3.
    """
    grouping.order(classes)
    own = np.array([grouping.group_of[label] for label in classes])
    results = [_result(group, confusion, own == group, own) for group in grouping.groups if (own == group).any()]
    chosen = [label for label in grouping.complex_classes if label in classes]
    names = np.array(classes)
    results += [_result(label, confusion, names == label, own) for label in chosen]
    if chosen:
        results.append(_result(COMPLEX, confusion, np.isin(names, chosen), own))
    return results


def _result(name: str, confusion: np.ndarray, members: np.ndarray, groups: np.ndarray) -> GroupResult:
    videos = int(confusion[members].sum())
    correct = int(np.diag(confusion)[members].sum())
    within = int(confusion[members][groups[members][:, None] == groups[None, :]].sum())
    return GroupResult(
        name=name,
        classes=int(members.sum()),
        videos=videos,
        correct=correct,
        accuracy=wilson_interval(correct, videos) if videos else None,
        in_group=wilson_interval(within, videos) if videos else None,
    )
