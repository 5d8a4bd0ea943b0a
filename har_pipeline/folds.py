"""The folds of a protocol as one result: each fold's measures, their mean, and all test videos pooled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.categories import Grouping, GroupResult
from har_pipeline.core.errors import RunError
from har_pipeline.evaluate import Evaluation, evaluate_run, evaluate_scores, write_evaluation
from har_pipeline.job_plan import merge_notes, planned_runs, unfinished_runs
from har_pipeline.metrics import Interval, wilson_interval
from har_pipeline.run_folder import RUN_JSON, read_run, write_json
from har_pipeline.scores import concat_scores, select_part

# Protocols whose folds test every video once, so that a video without a test tells of a fold that is not there.
PARTITIONS = ("leave_one_group_out", "leave_one_subject_out", "group_kfold")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldsEvaluation:
    """Measures over folds, in [0, 1]. pooled: over all videos together, None where a video is tested in several folds.

    sd_top1: sample standard deviation, None of a single fold. per_group: of the pooled videos, or else the folds' means.
    notes: what a reader must know, such as folds that are missing.
    """

    folds: Mapping[int, Evaluation]
    mean_top1: float
    sd_top1: float | None
    mean_class: float
    pooled: Evaluation | None
    per_group: tuple[GroupResult, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as a plain nested dict, ready for JSON."""
        return {
            "folds": {str(i): evaluation.to_dict() for i, evaluation in self.folds.items()},
            "mean_top1": self.mean_top1,
            "sd_top1": self.sd_top1,
            "mean_class": self.mean_class,
            "pooled": self.pooled.to_dict() if self.pooled else None,
            "per_group": [dataclasses.asdict(group) for group in self.per_group],
            "notes": list(self.notes),
        }


def mean_groups(tables: Sequence[Sequence[GroupResult]]) -> tuple[GroupResult, ...]:
    """Return each group's mean over several evaluations, each weighing the same; those without its videos do not count.

    videos, correct: means, rounded; the intervals are those of one evaluation with so many videos, as repeats on the same
    videos make them no more certain.
    """
    by_name: dict[str, list[GroupResult]] = {}
    for group in (group for table in tables for group in table):
        by_name.setdefault(group.name, []).append(group)
    means = []
    for name, groups in by_name.items():
        accuracies = [group.accuracy.value for group in groups if group.accuracy]
        within = [group.in_group.value for group in groups if group.in_group]
        videos = round(float(np.mean([group.videos for group in groups if group.videos]))) if accuracies else 0
        means.append(
            GroupResult(
                name=name,
                classes=groups[0].classes,
                videos=videos,
                correct=round(float(np.mean(accuracies)) * videos) if videos else 0,
                accuracy=mean_interval(accuracies, videos) if videos else None,
                in_group=mean_interval(within, videos) if videos else None,
            )
        )
    return tuple(means)


def mean_interval(shares: Sequence[float], videos: int) -> Interval:
    """Return the mean of shares of the same number of videos, with Wilson's interval for that number."""
    # Rounded, because a mean times a count may end a hair above the count.
    return wilson_interval(round(float(np.mean(shares)) * videos, 9), videos)


def summarise_folds(
    folds: Mapping[int, Evaluation], pooled: Evaluation | None, notes: Sequence[str] = ()
) -> FoldsEvaluation:
    """Return the folds with their mean and deviation; as `FoldsEvaluation` says."""
    top1 = np.array([evaluation.top1.value for evaluation in folds.values()])
    return FoldsEvaluation(
        folds=folds,
        mean_top1=float(top1.mean()),
        sd_top1=float(top1.std(ddof=1)) if len(top1) > 1 else None,
        mean_class=float(np.mean([evaluation.mean_class.value for evaluation in folds.values()])),
        pooled=pooled,
        per_group=pooled.per_group if pooled else mean_groups([evaluation.per_group for evaluation in folds.values()]),
        notes=tuple(notes),
    )


def fold_folders(folder: Path) -> list[Path]:
    """Return the run folders `split<i>` inside a folder, by number."""
    found = [path for path in folder.glob("split*") if (path / RUN_JSON).is_file() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def unfinished_folds(folder: Path) -> list[str]:
    """Return a sentence if folds are missing beside those of a folder, nothing if none is known to be.

    The job's plan tells; of folds that were trained one by one, where those of the protocol test every video once
    (`PARTITIONS`), videos that none tests.
    """
    if planned_runs(folder) is not None:
        return unfinished_runs(folder)
    runs = [read_run(path) for path in fold_folders(folder)]
    learned, tested = set[str](), set[str]()
    for run in runs:
        tested.update(run.split.test)
        learned.update(run.split.train, run.split.val)
    if not (learned - tested and all(run.split.protocol in PARTITIONS for run in runs)):
        return []
    return [
        f"folds are missing: {len(learned - tested)} of {len(learned | tested)} videos are tested by none of the {len(runs)} "
        "folds"
    ]


def evaluate_folds(folder: Path, *, part: str = "test", grouping: Grouping | None = None) -> FoldsEvaluation:
    """Evaluate every fold of a folder and write each one's files, and the pooled ones and folds.json into the folder.

    Pooling needs folds of the same classes that test each video once, as leave-one-group-out does.
    Raises: RunError if there is no fold.
    """
    folders = fold_folders(folder)
    if not folders:
        raise RunError(f"{folder} holds no folds (split0/run.json ...); make them with `har train --split all`")
    folds = {int(path.name[5:]): evaluate_run(path, part=part, grouping=grouping) for path in folders}
    scores = [select_part(read_run(path).scores(), part) for path in folders]
    ids = [video_id for one in scores for video_id in one.video_ids]
    poolable = len(ids) == len(set(ids)) and len({one.classes for one in scores}) == 1
    own = merge_notes({f"split{number}": evaluation.notes for number, evaluation in folds.items()})
    notes = [*unfinished_folds(folder), *own]
    pooled = evaluate_scores(concat_scores(scores), notes=notes, grouping=grouping) if poolable else None
    result = summarise_folds(folds, pooled, notes)
    if result.pooled is not None:
        write_evaluation(result.pooled, folder)
    write_json(folder / "folds.json", result.to_dict())
    return result
