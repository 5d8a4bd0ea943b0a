"""Evaluation of a folder of results: a run, the folds of a protocol, repeats, or fused scores.

The result is a tree: repeats hold runs or folds, folds hold runs, and the leaves hold the measures of their videos.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from har_pipeline.core.errors import HarError, RunError
from har_pipeline.core.files import write_json
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.categories import Grouping, GroupResult
from har_pipeline.evaluation.members import FUSION_JSON
from har_pipeline.evaluation.metrics import Measures, Mistake, measure_scores, sorted_mistakes, write_measures
from har_pipeline.evaluation.plan import (
    PLAN_JSON,
    fold_folders,
    merge_notes,
    no_run_error,
    planned_runs,
    repeat_folders,
    require_one_job,
    unfinished,
    unfinished_folds,
    unfinished_runs,
)
from har_pipeline.evaluation.plots import save_training_curves
from har_pipeline.evaluation.run_folder import RUN_JSON, SCORES, RunRecord, read_run, recover_run
from har_pipeline.evaluation.scores import concat_scores, read_scores, select_part
from har_pipeline.evaluation.statistics import Interval, mean_and_sd, mean_interval

# What a folder of somebody else's, or on a disk for reading, says.
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The evaluation of a run, or the mean over folds or repeats. Accuracies are in [0, 1]."""

    kind: Literal["run", "folds", "repeats"]
    measures: Measures | None  # on all videos together; None for repeats, and for folds that share videos
    mean_top1: float  # video accuracy: mean over the members, or of the run
    mean_class: float  # mean class accuracy: the same
    # Accuracy on all videos, for repeats its mean, with Wilson's 95 % interval for the number of different videos.
    # None if folds share videos, or repeats differ in their number of videos.
    top1: Interval | None
    per_group: tuple[GroupResult, ...]  # of all videos together, or the mean over the members (see `mean_groups`)
    notes: tuple[str, ...]  # what a reader must know, such as missing folds
    members: Mapping[int, Evaluation] = field(default_factory=dict)  # folds by index, repeats by seed
    sd_top1: float | None = None  # sample standard deviation over the members; None with fewer than two
    sd_class: float | None = None
    pooled_top1: float | None = None  # of repeats of folds: mean accuracy on all videos of a repeat
    pooled_sd: float | None = None

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The videos that were classified wrong, the most confident mistakes first; one in several members each time."""
        if self.measures is not None:
            return self.measures.mistakes
        return sorted_mistakes(one for member in self.members.values() for one in member.mistakes)

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as a plain nested dict, ready for JSON."""
        if self.kind == "run" and self.measures is not None:
            return self.measures.to_dict()
        means: dict[str, Any] = {"mean_top1": self.mean_top1, "sd_top1": self.sd_top1, "mean_class": self.mean_class}
        if self.kind == "folds":
            means["pooled"] = self.measures.to_dict() if self.measures else None
        else:
            means |= {"sd_class": self.sd_class, "pooled_top1": self.pooled_top1, "pooled_sd": self.pooled_sd}
            means["top1"] = dataclasses.asdict(self.top1) if self.top1 else None
        return {
            self.kind: {str(number): member.to_dict() for number, member in self.members.items()},
            **means,
            "per_group": [dataclasses.asdict(group) for group in self.per_group],
            "notes": list(self.notes),
        }


def evaluate(
    path: Path | str,
    *,
    part: str = "test",
    grouping: Grouping | None = None,
    out: Path | str | None = None,
    write: bool = True,
) -> Evaluation:
    """Evaluate the stored scores of a run, of the folds or repeats of a job, or of a fusion, and write the results there.

    out: the folder to write into instead, with subfolders as in `path`, which then stays as it is and may be read-only.
    write: False writes nothing at all.

    A run gets the files of `write_measures` (of the validation part in its folder `val`), and training.png if it has
    several epochs; a folder of folds those of the pooled videos, and folds.json; a folder of repeats repeats.json.
    Folds are pooled if they have the same classes and test no video twice.
    Raises: RunError if there is no run, a run is incomplete or damaged, runs are not of one job, no repeat is finished,
    there are no scores of that part, `out` holds something else, or nothing can be written there.
    """
    path = Path(path)
    recover_run(path)
    to = _Target(path, (path if out is None else Path(out)) if write else None, part)
    to.check()
    try:
        if (path / RUN_JSON).exists():
            return _evaluate_run(read_run(path), to, grouping)[0]
        if (path / FUSION_JSON).exists():
            return _evaluate_scores(select_part(read_scores(path / SCORES), part), to.folder(path), grouping)
        if repeats := repeat_folders(path):
            return _evaluate_repeats(path, repeats, to, grouping)
        if fold_folders(path):
            return _evaluate_folds(path, to, grouping)
    except OSError as error:
        if isinstance(error, HarError) or error.errno not in NOT_WRITABLE:
            raise
        raise RunError(f"{error.filename}: {error.strerror}; name another folder for the results with --out") from error
    raise no_run_error(path)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the results of a part of what is in `path` are written: the same tree in `out`; None: nowhere."""

    path: Path
    out: Path | None
    part: str

    def folder(self, of: Path) -> Path | None:
        """Return where the results of the run or job `of`, in `path` or `path` itself, go; None: nowhere."""
        if self.out is None:
            return None
        found = self.out / of.relative_to(self.path)
        return found if self.part == "test" else found / self.part

    def check(self) -> None:
        if self.out is None or self.out.resolve() == self.path.resolve():
            return
        if self.out.exists() and not self.out.is_dir():
            raise RunError(f"{self.out} is a file: name a folder for the results")
        if any((self.out / name).exists() for name in (RUN_JSON, SCORES, PLAN_JSON)):
            raise RunError(f"{self.out} holds another run or fusion: choose another folder for the results")


def mean_groups(tables: Sequence[Sequence[GroupResult]]) -> tuple[GroupResult, ...]:
    """Return each group's mean over several evaluations that have videos of it, all with the same weight.

    videos, correct: means, rounded; the intervals are those of a single evaluation with that many videos, since repeats on
    the same videos add no certainty.
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


def _evaluate_run(run: RunRecord, to: _Target, grouping: Grouping | None) -> tuple[Evaluation, Scores]:
    notes = list(run.notes)
    if missing := run.info.get("summary", {}).get("missing", []):
        notes.append(f"{len(missing)} videos had no features and were left out: {', '.join(missing[:5])}")
    run.require_part(to.part)
    scores = select_part(run.scores(), to.part)
    measures = measure_scores(scores, notes=notes, grouping=grouping)
    if folder := to.folder(run.path):
        write_measures(measures, folder)
        history = run.history()
        if len(history["epoch"]) > 1:
            save_training_curves(folder / "training.png", history)
    return _of_run(measures), scores


def _evaluate_folds(path: Path, to: _Target, grouping: Grouping | None) -> Evaluation:
    runs = {number: read_run(fold) for number, fold in fold_folders(path).items()}
    require_one_job(list(runs.values()))
    found = {number: _evaluate_run(run, to, grouping) for number, run in runs.items()}
    folds, scores = {i: one for i, (one, _) in found.items()}, [own for _, own in found.values()]
    ids = [video_id for own in scores for video_id in own.video_ids]
    notes = [*unfinished_folds(path), *merge_notes({f"split{i}": fold.notes for i, fold in folds.items()})]
    pooled = None
    if len(ids) == len(set(ids)) and len({own.classes for own in scores}) == 1:
        pooled = measure_scores(concat_scores(scores), notes=notes, grouping=grouping)
        if folder := to.folder(path):
            write_measures(pooled, folder)
    return _written(_of_members("folds", folds, pooled, notes), to.folder(path))


def _evaluate_repeats(path: Path, found: Mapping[int, Path], to: _Target, grouping: Grouping | None) -> Evaluation:
    # A repeat that lacks folds has another mean than the others.
    whole = {seed: own for seed, own in found.items() if not (planned_runs(own) and unfinished_runs(own))}
    if not whole:
        raise RunError(f"{path}: no repeat is finished; {unfinished(path)[0]}")
    folds = {own.name: [fold.name for fold in fold_folders(own).values()] for own in whole.values()}
    first = next(iter(folds))
    for name, own_folds in folds.items():
        if own_folds != folds[first]:
            raise RunError(f"{path}: {first} has the folds {folds[first]}, {name} {own_folds}; finish the job first")
    members = [fold for own in whole.values() for fold in (fold_folders(own).values() or [own])]
    require_one_job([read_run(member) for member in members])
    repeats = {
        seed: _evaluate_folds(own, to, grouping) if folds[own.name] else _evaluate_run(read_run(own), to, grouping)[0]
        for seed, own in whole.items()
    }
    said = {text for own in whole.values() for text in unfinished_folds(own)}
    more = dict.fromkeys(text for one in repeats.values() for text in one.notes if text not in said)
    left_out = [f"{own.name} is left out: it lacks folds" for seed, own in found.items() if seed not in whole]
    return _written(_of_members("repeats", repeats, None, [*unfinished(path), *left_out, *more]), to.folder(path))


def _evaluate_scores(scores: Scores, folder: Path | None, grouping: Grouping | None) -> Evaluation:
    """Evaluate scores without a run; repeats go to `seed<k>`, and folds that share videos to `split<i>`."""
    if len(set(scores.seed)) > 1:
        members = _evaluate_each(scores, scores.seed, folder, "seed", grouping)
        return _written(_of_members("repeats", members), folder)
    if len(set(scores.fold)) > 1 and len(set(scores.video_ids)) < len(scores.video_ids):
        members = _evaluate_each(scores, scores.fold, folder, "split", grouping)
        return _written(_of_members("folds", members), folder)
    measures = measure_scores(scores, grouping=grouping)
    if folder:
        write_measures(measures, folder)
    return _of_run(measures)


def _evaluate_each(
    scores: Scores, numbers: Sequence[int], folder: Path | None, name: str, grouping: Grouping | None
) -> dict[int, Evaluation]:
    def rows(wanted: int) -> Scores:
        return scores.select([row for row, number in enumerate(numbers) if number == wanted])

    return {n: _evaluate_scores(rows(n), folder and folder / f"{name}{n}", grouping) for n in sorted(set(numbers))}


def _of_run(measures: Measures) -> Evaluation:
    return Evaluation(
        kind="run",
        measures=measures,
        mean_top1=measures.top1.value,
        mean_class=measures.mean_class.value,
        top1=measures.top1,
        per_group=measures.per_group,
        notes=measures.notes,
    )


def _of_members(
    kind: Literal["folds", "repeats"],
    members: Mapping[int, Evaluation],
    pooled: Measures | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    every = list(members.values())
    mean_top1, sd_top1 = mean_and_sd([one.mean_top1 for one in every])
    mean_class, sd_class = mean_and_sd([one.mean_class for one in every])
    top1, pooled_top1, pooled_sd = pooled.top1 if pooled else None, None, None
    measured = [one.measures for one in every if one.measures is not None]
    if kind == "repeats" and len(measured) == len(every):
        values = [one.top1.value for one in measured]
        if len({one.num_videos for one in measured}) == 1:
            top1 = mean_interval(values, measured[0].num_videos)
        if all(one.kind == "folds" for one in every):
            pooled_top1, pooled_sd = mean_and_sd(values)
    return Evaluation(
        kind=kind,
        members=members,
        measures=pooled,
        mean_top1=mean_top1,
        sd_top1=sd_top1,
        mean_class=mean_class,
        sd_class=sd_class,
        pooled_top1=pooled_top1,
        pooled_sd=pooled_sd,
        top1=top1,
        per_group=pooled.per_group if pooled else mean_groups([one.per_group for one in every]),
        notes=tuple(notes),
    )


def _written(evaluation: Evaluation, folder: Path | None) -> Evaluation:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{evaluation.kind}.json", evaluation.to_dict())
    return evaluation
