"""The results of a sweep: one row per run, the mean of each point, the choice on validation videos, and the plot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import safe_open

from har_pipeline.core.errors import RunError, first_few
from har_pipeline.core.files import read_json, write_json
from har_pipeline.evaluation.metrics import confusion_matrix
from har_pipeline.evaluation.plots import Line, save_sweep_curves
from har_pipeline.evaluation.run_folder import WEIGHTS, read_run
from har_pipeline.evaluation.scores import select_part
from har_pipeline.evaluation.statistics import mean_and_sd, mean_class_accuracy
from har_pipeline.evaluation.tables import write_csv
from har_pipeline.training.axes import Value

if TYPE_CHECKING:  # tables are read without torch
    from har_pipeline.training.jobs import Outcome
    from har_pipeline.training.sweep import SweepRuns

TABLE, PLOT, SUMMARY = "sweep.csv", "sweep.png", "sweep.json"

# Options that may be on the plot's axis, most important first, with their names; the others distinguish its lines.
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
    """One run."""

    values: Values  # of the swept options
    split: int
    seed: int
    val_accuracy: float | None  # of the validation videos, in [0, 1]
    accuracy: float  # of the test videos, in [0, 1]
    mean_class_accuracy: float  # of the test videos, in [0, 1]
    num_test: int  # test videos
    parameters: int  # trained numbers of the head
    seconds: float  # duration, on as many threads as the run had
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSummary:
    """Means over the runs of a point: its splits and seeds."""

    values: Values
    runs: int
    accuracy: float
    sd: float | None  # sample standard deviation; None of one run
    mean_class_accuracy: float
    mean_class_sd: float | None
    val_accuracy: float | None  # None if a run has none
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The point with the best validation accuracy of a split."""

    split: int
    values: Values
    val_accuracy: float  # mean over the seeds, in [0, 1]
    accuracy: float  # of the test videos: the same


def cells_of(result: SweepRuns) -> list[Cell]:
    """Return one cell per finished run: points in their order, each by seed and split."""
    return [_cell(point.values, outcome) for point, outcomes in result.runs.items() for outcome in outcomes]


def _cell(values: Values, outcome: Outcome) -> Cell:
    folder, summary = outcome.run.folder, outcome.summary
    scores = select_part(read_run(folder).scores(), "test")
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
        accuracy=summary.measured_accuracy,
        mean_class_accuracy=mean_class_accuracy(confusion).value,
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
    accuracy, sd = mean_and_sd([cell.accuracy for cell in cells])
    mean_class_accuracy, mean_class_sd = mean_and_sd([cell.mean_class_accuracy for cell in cells])
    validation = [cell.val_accuracy for cell in cells if cell.val_accuracy is not None]
    return PointSummary(
        values=values,
        runs=len(cells),
        accuracy=accuracy,
        sd=sd,
        mean_class_accuracy=mean_class_accuracy,
        mean_class_sd=mean_class_sd,
        val_accuracy=float(np.mean(validation)) if len(validation) == len(cells) else None,
        parameters=cells[0].parameters,
        seconds=float(np.mean([cell.seconds for cell in cells])),
    )


def choose(cells: Sequence[Cell]) -> list[Choice]:
    """Return, for each split, the point with the best validation accuracy; the first of equals.

    Empty if a run has no validation videos: test videos never choose. Each split chooses for itself, because another
    split's validation videos may be its test videos. Points that lack a run cannot be chosen.
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
    """Write sweep.csv, sweep.json and sweep.png into a folder; return the means of each point, and the choices.

    measure: of the plot. Raises: RunError if no run was finished.
    """
    cells = cells_of(result)
    if not cells:
        failed = first_few([f"{name}: {why}" for name, why in result.failed.items()], "; ")
        raise RunError(f"no run of the sweep was finished: {failed}")
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in cells[0].values]
    measures = [field.name for field in dataclasses.fields(Cell) if field.name not in ("values", "folder")]
    rows = (
        [
            *(value for _, value in cell.values),
            *(getattr(cell, name) for name in measures),
            cell.folder.relative_to(out).as_posix(),
        ]
        for cell in cells
    )
    write_csv(out / TABLE, [*names, *measures, "folder"], rows)
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


def read_sweep(folder: Path) -> tuple[list[PointSummary], list[Choice]]:
    """Return the means of each point, and the choices, that `write_sweep` wrote.

    Raises: RunError if its sweep.json is missing or malformed.
    """
    path = folder / SUMMARY
    values = read_json(path, RunError, "is it a folder of `har sweep`?")

    def entries(kind: Any, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        names = [field.name for field in dataclasses.fields(kind)]
        return [{**{name: row[name] for name in names}, "values": tuple(row["values"].items())} for row in rows]

    try:
        points = entries(PointSummary, values["points"])
        if not points or not all(one["values"] and isinstance(one["accuracy"], float) for one in points):
            raise ValueError("no points")
        choices = entries(Choice, values["chosen on validation videos"])
        return [PointSummary(**one) for one in points], [Choice(**one) for one in choices]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: malformed ({error}); run the same sweep again") from error


def curves(summaries: Sequence[PointSummary], measure: Measure = "accuracy") -> tuple[str, list[Line]]:
    """Return the option on the plot's axis and a line for each combination of the others."""
    names = [name for name, _ in summaries[0].values]
    x = next((name for name in WORDS if name in names), names[0])
    lines: dict[str, list[tuple[Value, float, float | None]]] = {}
    for one in summaries:
        others = [f"{WORDS.get(name, name)} {value}" for name, value in one.values if name != x]
        by_video = measure == "accuracy"
        mean, sd = (one.accuracy, one.sd) if by_video else (one.mean_class_accuracy, one.mean_class_sd)
        lines.setdefault(", ".join(others), []).append((dict(one.values)[x], mean, sd))
    return x, list(lines.items())
