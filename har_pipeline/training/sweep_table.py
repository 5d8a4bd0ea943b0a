"""What a sweep found: one row per run, the mean of each point, the choice on validation videos, and the plot."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import safe_open

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import write_json
from har_pipeline.evaluation.metrics import confusion_matrix, mean_class_accuracy
from har_pipeline.evaluation.plots import Line, save_sweep_curves
from har_pipeline.evaluation.run_folder import SCORES, WEIGHTS
from har_pipeline.evaluation.scores import read_scores, select_part
from har_pipeline.training.jobs import Outcome
from har_pipeline.training.sweep import SweepRuns, Value

TABLE, PLOT, SUMMARY = "sweep.csv", "sweep.png", "sweep.json"


# Which of several swept options stands on the plot's axis; the others tell its lines apart.
PLACES = ("pca", "num_steps", "units", "num_layers")


WORDS = {
    "pca": "PCA dimension",
    "num_steps": "time steps T",
    "units": "recurrent units",
    "num_layers": "recurrent layers",
}


MEASURES = {"accuracy": "video accuracy", "mean_class_accuracy": "mean class accuracy"}


Measure = Literal["accuracy", "mean_class_accuracy"]


Values = tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run. Accuracies in [0, 1]: accuracy and mean_class_accuracy of the test videos, val_accuracy of the validation ones.

    parameters: trained numbers of the head. seconds: that the run took, on as many threads as it had.
    """

    values: Values
    split: int
    seed: int
    val_accuracy: float | None
    accuracy: float
    mean_class_accuracy: float
    num_test: int
    parameters: int
    seconds: float
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSummary:
    """Means over the runs of a point; sd: sample standard deviations over its runs (splits and seeds), None of one run."""

    values: Values
    runs: int
    accuracy: float
    sd: float | None
    mean_class_accuracy: float
    mean_class_sd: float | None
    val_accuracy: float | None
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The values with the best validation accuracy of a split (mean over the seeds), and their test accuracy there."""

    split: int
    values: Values
    val_accuracy: float
    accuracy: float


def cells_of(result: SweepRuns) -> list[Cell]:
    """Return one cell per finished run: points in their order, in each by seed and split."""
    return [_cell(point.values, outcome) for point, outcomes in result.runs.items() for outcome in outcomes]


def _cell(values: Values, outcome: Outcome) -> Cell:
    folder, summary = outcome.run.folder, outcome.summary
    scores = select_part(read_scores(folder / SCORES), "test")
    number = {label: k for k, label in enumerate(scores.classes)}
    labels = np.array([number[label] for label in scores.labels], np.int64)
    confusion = confusion_matrix(labels, scores.probabilities.argmax(axis=1), len(number))
    with safe_open(folder / WEIGHTS, "numpy") as weights:
        names = [name for name in weights.keys() if not name.startswith("input_")]  # noqa: SIM118 - it is no dict
        shapes = [weights.get_slice(name).get_shape() for name in names]
    return Cell(
        values=values,
        split=outcome.run.split.index,
        seed=outcome.run.seed,
        val_accuracy=summary.val_accuracy,
        accuracy=summary.test_accuracy,
        # One draw: the interval is not read.
        mean_class_accuracy=mean_class_accuracy(confusion, draws=1).value,
        num_test=summary.num_test,
        parameters=sum(math.prod(shape) for shape in shapes),
        seconds=summary.seconds,
        folder=folder,
    )


def summarise(cells: Sequence[Cell]) -> list[PointSummary]:
    """Return the mean of each point's runs, points in the order of the cells."""
    points: dict[Values, list[Cell]] = {}
    for cell in cells:
        points.setdefault(cell.values, []).append(cell)
    return [_summary(values, own) for values, own in points.items()]


def _summary(values: Values, cells: Sequence[Cell]) -> PointSummary:
    def sd(numbers: Sequence[float]) -> float | None:
        return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None

    accuracies, of_classes = [cell.accuracy for cell in cells], [cell.mean_class_accuracy for cell in cells]
    validation = [cell.val_accuracy for cell in cells if cell.val_accuracy is not None]
    return PointSummary(
        values=values,
        runs=len(cells),
        accuracy=float(np.mean(accuracies)),
        sd=sd(accuracies),
        mean_class_accuracy=float(np.mean(of_classes)),
        mean_class_sd=sd(of_classes),
        val_accuracy=float(np.mean(validation)) if len(validation) == len(cells) else None,
        parameters=cells[0].parameters,
        seconds=float(np.mean([cell.seconds for cell in cells])),
    )


def choose(cells: Sequence[Cell]) -> list[Choice]:
    """Return, for each split, the point with the best validation accuracy; the first of equals.

    Empty if a run has no validation videos: the test videos never choose. The choice is made in each split by itself, for
    another split's validation videos may be this one's test videos. Points that lack a run do not stand for choice.
    """
    if any(cell.val_accuracy is None for cell in cells):
        return []
    choices = []
    for split in sorted({cell.split for cell in cells}):
        own = [cell for cell in cells if cell.split == split]
        seeds = {cell.seed for cell in own}
        found = [summary for summary in summarise(own) if summary.runs == len(seeds)]
        if found:
            best = max(found, key=lambda one: one.val_accuracy or 0.0)
            validation = best.val_accuracy or 0.0
            choices.append(Choice(split=split, values=best.values, val_accuracy=validation, accuracy=best.accuracy))
    return choices


def write_sweep(
    out: Path, result: SweepRuns, *, measure: Measure = "accuracy", title: str = ""
) -> tuple[list[PointSummary], list[Choice]]:
    """Write sweep.csv, sweep.json and sweep.png into a folder; returns the means of each point, and what is chosen.

    measure: what the plot shows. Raises: RunError if no run was finished.
    """
    cells = cells_of(result)
    if not cells:
        failed = "; ".join(f"{name}: {why}" for name, why in result.failed.items())
        raise RunError(f"no run of the sweep was finished: {failed}")
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in cells[0].values]
    measures = [field.name for field in dataclasses.fields(Cell) if field.name not in ("values", "folder")]
    with open(out / TABLE, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*names, *measures, "folder"])
        for cell in cells:
            folder = cell.folder.relative_to(out).as_posix()
            row = [*(value for _, value in cell.values), *(getattr(cell, name) for name in measures), folder]
            table.writerow(["" if value is None else value for value in row])
    summaries, choices = summarise(cells), choose(cells)
    x, lines = curves(summaries, measure)
    save_sweep_curves(out / PLOT, lines, x_label=WORDS.get(x, x), y_label=MEASURES[measure], title=title)
    values = {
        "swept": names,
        "points": [{**dataclasses.asdict(one), "values": dict(one.values)} for one in summaries],
        "chosen on validation videos": [{**dataclasses.asdict(one), "values": dict(one.values)} for one in choices],
        "accuracy of the chosen": float(np.mean([one.accuracy for one in choices])) if choices else None,
        "failed": dict(result.failed),
    }
    write_json(out / SUMMARY, values)
    return summaries, choices


def curves(summaries: Sequence[PointSummary], measure: Measure = "accuracy") -> tuple[str, list[Line]]:
    """Return the option on the plot's axis and a line for each combination of the other ones."""
    names = [name for name, _ in summaries[0].values]
    x = next((name for name in PLACES if name in names), names[0])
    lines: dict[str, list[tuple[Value, float, float | None]]] = {}
    for one in summaries:
        others = [f"{WORDS.get(name, name)} {value}" for name, value in one.values if name != x]
        by_video = measure == "accuracy"
        mean, sd = (one.accuracy, one.sd) if by_video else (one.mean_class_accuracy, one.mean_class_sd)
        lines.setdefault(", ".join(others), []).append((dict(one.values)[x], mean, sd))
    return x, list(lines.items())
