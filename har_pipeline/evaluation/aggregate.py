"""The folds of a protocol as one result: each fold's measures, their mean, and all test videos pooled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import write_json
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.categories import Grouping, GroupResult
from har_pipeline.evaluation.evaluate import Evaluation, evaluate_run, evaluate_scores, write_evaluation
from har_pipeline.evaluation.metrics import Interval, wilson_interval
from har_pipeline.evaluation.plan import merge_notes, planned_runs, unfinished_runs
from har_pipeline.evaluation.run_folder import RUN_JSON, SCORES, read_run
from har_pipeline.evaluation.scores import concat_scores, read_scores, select_part

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatsEvaluation:
    """Measures over repeats, in [0, 1]. repeats: seed -> its run, or its folds.

    mean_top1, sd_top1: video accuracy, mean and sample standard deviation over the repeats; of folds the mean over the
    folds counts, and pooled_top1, pooled_sd are those of all their videos together (None where folds share videos).
    mean_class, sd_class: the same of the mean class accuracy. sd is None for a single repeat.
    top1: the mean over repeats of the accuracy on all test videos (of folds: pooled) with Wilson's 95 % interval for their
    number, which repeats do not raise; None where folds share videos or repeats have unlike numbers. per_group: the same,
    of each group. notes: what a reader must know, such as folds that are missing.
    """

    repeats: Mapping[int, Evaluation | FoldsEvaluation]
    mean_top1: float
    sd_top1: float | None
    mean_class: float
    sd_class: float | None
    pooled_top1: float | None
    pooled_sd: float | None
    top1: Interval | None
    per_group: tuple[GroupResult, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as a plain nested dict, ready for JSON."""
        return {
            "repeats": {str(seed): one.to_dict() for seed, one in self.repeats.items()},
            "mean_top1": self.mean_top1,
            "sd_top1": self.sd_top1,
            "mean_class": self.mean_class,
            "sd_class": self.sd_class,
            "pooled_top1": self.pooled_top1,
            "pooled_sd": self.pooled_sd,
            "top1": dataclasses.asdict(self.top1) if self.top1 else None,
            "per_group": [dataclasses.asdict(group) for group in self.per_group],
            "notes": list(self.notes),
        }


def repeat_folders(folder: Path) -> list[Path]:
    """Return the folders `seed<k>` inside a folder that hold a run or folds, by number."""
    found = [path for path in folder.glob("seed*") if path.name[4:].isdigit()]
    found = [path for path in found if (path / RUN_JSON).is_file() or fold_folders(path)]
    return sorted(found, key=lambda path: int(path.name[4:]))


def unfinished(folder: Path) -> list[str]:
    """Return what is known to be missing of a job: repeats or folds; nothing for a single run or a finished job."""
    if planned_runs(folder) is not None:
        return unfinished_runs(folder)
    repeats = repeat_folders(folder)
    return [f"{path.name}: {text}" for path in repeats for text in unfinished_folds(path)] or unfinished_folds(folder)


def whole_of(one: Evaluation | FoldsEvaluation) -> Evaluation | None:
    """Return the measures of a repeat on all its test videos; None of folds that cannot be pooled."""
    return one.pooled if isinstance(one, FoldsEvaluation) else one


def top1_of(one: Evaluation | FoldsEvaluation) -> float:
    """Return the video accuracy of a repeat; of folds their mean."""
    return one.mean_top1 if isinstance(one, FoldsEvaluation) else one.top1.value


def class_accuracy_of(one: Evaluation | FoldsEvaluation) -> float:
    """Return the mean class accuracy of a repeat; of folds their mean."""
    return one.mean_class if isinstance(one, FoldsEvaluation) else one.mean_class.value


def evaluate_repeats(folder: Path, *, part: str = "test", grouping: Grouping | None = None) -> RepeatsEvaluation:
    """Evaluate every finished repeat of a folder, write each one's files into it, and repeats.json into the folder.

    Raises: RunError if there is none, or, where the job's plan is not known, one lacks folds that another has.
    """
    found = repeat_folders(folder)
    # A repeat that lacks folds has another mean than the others.
    folders = [path for path in found if not (planned_runs(path) and unfinished_runs(path))]
    if found and not folders:
        raise RunError(f"{folder}: no repeat is finished; {unfinished(folder)[0]}")
    if not folders:
        raise RunError(f"{folder} holds no repeats (seed0 ...); make them with `har train --repeats 5`")
    folds = {path.name: [fold.name for fold in fold_folders(path)] for path in folders}
    first = folders[0].name
    for name, own in folds.items():
        if own != folds[first]:
            raise RunError(f"{folder}: {first} has the folds {folds[first]}, {name} {own}; finish the job first")
    repeats: dict[int, Evaluation | FoldsEvaluation] = {}
    for path in folders:
        of_one = evaluate_folds if folds[path.name] else evaluate_run
        repeats[int(path.name[4:])] = of_one(path, part=part, grouping=grouping)
    said = {text for path in folders for text in unfinished_folds(path)}
    more = dict.fromkeys(text for one in repeats.values() for text in one.notes if text not in said)
    left_out = [f"{path.name} is left out: it lacks folds" for path in found if path not in folders]
    result = summarise_repeats(repeats, [*unfinished(folder), *left_out, *more])
    write_json(folder / "repeats.json", result.to_dict())
    return result


def summarise_repeats(
    repeats: Mapping[int, Evaluation | FoldsEvaluation], notes: Sequence[str] = ()
) -> RepeatsEvaluation:
    """Return the repeats with their means and deviations; as `RepeatsEvaluation` says."""
    mean_top1, sd_top1 = _mean_and_sd([top1_of(one) for one in repeats.values()])
    mean_class, sd_class = _mean_and_sd([class_accuracy_of(one) for one in repeats.values()])
    pooled = [one.pooled.top1.value for one in repeats.values() if isinstance(one, FoldsEvaluation) and one.pooled]
    pooled_top1, pooled_sd = _mean_and_sd(pooled) if len(pooled) == len(repeats) else (None, None)
    wholes = [whole for one in repeats.values() if (whole := whole_of(one))]
    alike = len(wholes) == len(repeats) and len({whole.num_videos for whole in wholes}) == 1
    return RepeatsEvaluation(
        repeats=repeats,
        mean_top1=mean_top1,
        sd_top1=sd_top1,
        mean_class=mean_class,
        sd_class=sd_class,
        pooled_top1=pooled_top1,
        pooled_sd=pooled_sd,
        top1=mean_interval([whole.top1.value for whole in wholes], wholes[0].num_videos) if alike else None,
        per_group=mean_groups([one.per_group for one in repeats.values()]),
        notes=tuple(notes),
    )


def evaluate_scores_file(
    folder: Path, *, part: str = "test", grouping: Grouping | None = None
) -> Evaluation | FoldsEvaluation | RepeatsEvaluation:
    """Evaluate the scores.csv of a folder that is no run, as `har fuse` writes it, and write the measures beside it.

    Several repeats are evaluated one by one, and of each the folds one by one if they test a video twice (so that they
    cannot be pooled); their files go to `seed<k>` and `split<i>` inside. Raises: RunError as `evaluate_scores` does.
    """
    scores = select_part(read_scores(folder / SCORES), part)
    base = folder if part == "test" else folder / part
    seeds = sorted(set(scores.seed))
    if len(seeds) == 1:
        return _evaluate_folds_of(scores, base, grouping)
    repeats = {
        seed: _evaluate_folds_of(_rows(scores, scores.seed, seed), base / f"seed{seed}", grouping) for seed in seeds
    }
    result = summarise_repeats(repeats)
    write_json(base / "repeats.json", result.to_dict())
    return result


def _evaluate_folds_of(scores: Scores, folder: Path, grouping: Grouping | None) -> Evaluation | FoldsEvaluation:
    if len(set(scores.video_ids)) == len(scores.video_ids):
        pooled = evaluate_scores(scores, grouping=grouping)
        write_evaluation(pooled, folder)
        return pooled
    folds = {}
    for fold in sorted(set(scores.fold)):
        folds[fold] = evaluate_scores(_rows(scores, scores.fold, fold), grouping=grouping)
        write_evaluation(folds[fold], folder / f"split{fold}")
    result = summarise_folds(folds, None)
    write_json(folder / "folds.json", result.to_dict())
    return result


def _rows(scores: Scores, values: Sequence[int], wanted: int) -> Scores:
    return scores.select([row for row, value in enumerate(values) if value == wanted])


def _mean_and_sd(values: list[float]) -> tuple[float, float | None]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
