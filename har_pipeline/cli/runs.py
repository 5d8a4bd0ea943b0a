"""`har evaluate` and `har predict`: what a trained run is worth, and its answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli.common import AsJson, Device, Workers, extraction_bar, note, print_json, print_table
from har_pipeline.errors import RunError

if TYPE_CHECKING:
    from har_pipeline.categories import GroupResult
    from har_pipeline.evaluate import Evaluation
    from har_pipeline.folds import FoldsEvaluation
    from har_pipeline.repeats import RepeatsEvaluation


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="Run folder, a folder of folds or repeats of `har train`, or one of `har fuse`.")
    ],
    part: Annotated[str, typer.Option(help="test, or val.")] = "test",
    groups: Annotated[
        str, typer.Option(help="Also by coarse categories: ucf101, hmdb51, or a CSV file `class,group`.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Report accuracy with 95 % confidence intervals, per class, and write the confusion matrix (PNG and CSV)."""
    from har_pipeline.categories import read_groups
    from har_pipeline.evaluate import Evaluation, evaluate_run
    from har_pipeline.folds import FoldsEvaluation, evaluate_folds, fold_folders
    from har_pipeline.repeats import evaluate_repeats, evaluate_scores_file, repeat_folders

    grouping = read_groups(groups) if groups else None
    result: Evaluation | FoldsEvaluation | RepeatsEvaluation
    if (run / "run.json").exists():
        result = evaluate_run(run, part=part, grouping=grouping)
    elif (run / "fusion.json").exists():
        result = evaluate_scores_file(run, part=part, grouping=grouping)
    elif repeat_folders(run):
        result = evaluate_repeats(run, part=part, grouping=grouping)
    elif fold_folders(run):
        result = evaluate_folds(run, part=part, grouping=grouping)
    else:
        raise RunError(f"{run} is no run folder (no run.json, no split0 or seed0); make one with `har train`")
    if as_json:
        print_json(result.to_dict())
    elif isinstance(result, Evaluation):
        _print_evaluation(result, run)
    elif isinstance(result, FoldsEvaluation):
        _print_folds(result, run)
    else:
        _print_repeats(result, run)


def _print_repeats(repeats: RepeatsEvaluation, run: Path) -> None:
    from har_pipeline.repeats import class_accuracy_of, top1_of

    print_table(
        ["seed", "video accuracy", "mean class accuracy"],
        [[seed, f"{top1_of(one):.1%}", f"{class_accuracy_of(one):.1%}"] for seed, one in repeats.repeats.items()],
    )
    typer.echo(
        f"mean over {len(repeats.repeats)} repeats: video accuracy {repeats.mean_top1:.1%} (sd {repeats.sd_top1:.1%}), "
        f"mean class accuracy {repeats.mean_class:.1%} (sd {repeats.sd_class:.1%})"
    )
    if repeats.pooled_top1 is not None:
        typer.echo(f"all test videos of a repeat pooled: {repeats.pooled_top1:.1%} (sd {repeats.pooled_sd:.1%})")
    typer.echo(f"written: {run}/repeats.json, and the files of each repeat in its folder")


def _print_folds(folds: FoldsEvaluation, run: Path) -> None:
    print_table(
        ["split", "videos", "video accuracy", "mean class accuracy"],
        [[i, e.num_videos, f"{e.top1.value:.1%}", f"{e.mean_class.value:.1%}"] for i, e in folds.folds.items()],
    )
    typer.echo(
        f"mean over {len(folds.folds)} splits: video accuracy {folds.mean_top1:.1%} (sd {folds.sd_top1:.1%}), "
        f"mean class accuracy {folds.mean_class:.1%}"
    )
    if folds.pooled is not None:
        typer.echo("\nall test videos pooled:")
        _print_evaluation(folds.pooled, run)


def _print_groups(results: Sequence[GroupResult]) -> None:
    rows = []
    for result in results:
        accuracy = result.accuracy.describe() if result.accuracy else "no test videos"
        within = f"{result.in_group.value:.1%}" if result.in_group else ""
        rows.append([result.name, result.classes, result.videos, accuracy, within])
    print_table(["group", "classes", "videos", "accuracy", "of the right group"], rows)


def _print_evaluation(evaluation: Evaluation, run: Path) -> None:
    for text in evaluation.notes:
        note(f"NOTE: {text}")
    typer.echo(f"{evaluation.num_videos} {evaluation.part} videos, {len(evaluation.classes)} classes")
    typer.echo(f"video accuracy top-1   {evaluation.top1.describe()}")
    if evaluation.top5 is not None:
        typer.echo(f"video accuracy top-5   {evaluation.top5.describe()}")
    typer.echo(f"mean class accuracy    {evaluation.mean_class.describe()}\n")
    rows = []
    for result in evaluation.per_class:
        accuracy = result.accuracy.describe() if result.accuracy else "no test videos"
        confused = f"{result.confused_with} ({result.confused_videos})" if result.confused_with else ""
        rows.append([result.label, result.videos, accuracy, confused])
    print_table(["class", "videos", "accuracy", "most confused with"], rows)
    if evaluation.per_group:
        typer.echo("")
        _print_groups(evaluation.per_group)
    typer.echo(f"\nwritten: {run}/confusion.png, confusion.csv, per_class.csv, evaluation.json")


def predict(
    videos: Annotated[list[Path], typer.Argument(help="Video files.")],
    run: Annotated[Path, typer.Option(help="Run folder that `har train` wrote.")],
    top: Annotated[int, typer.Option(help="Classes to show.", min=1)] = 3,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="The net's weights file, where the run was trained with one; once for each stream of the run."
        ),
    ] = None,
    mean_cube: Annotated[Path | None, typer.Option(help="c3d's mean cube, where the run was trained with one.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw frames and bars into this PNG.")] = None,
    device: Device = "auto",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Classify videos with a trained run: the best classes of each, with bars."""
    from har_pipeline.predict import predict_videos, save_picture

    with extraction_bar() as update:
        loaded, predictions = predict_videos(
            videos,
            run,
            top=top,
            weights=weights,
            mean_cube=mean_cube,
            device=device,
            workers=workers,
            on_progress=update,
        )
    if loaded.random_weights:
        note("WARNING: the features of this run come from random weights: its answers mean nothing")
    if as_json:
        rows = [
            {"video": str(p.path), "top": [{"label": c, "probability": v} for c, v in p.top], "error": p.error}
            for p in predictions
        ]
        print_json(rows)
    else:
        width = max(len(label) for label in loaded.classes)
        for prediction in predictions:
            if prediction.error is None:
                typer.echo(str(prediction.path))
                for label, probability in prediction.top:
                    typer.echo(f"  {label.ljust(width)}  {probability:6.1%}  {_bar(probability)}")
    if picture is not None:
        save_picture(picture, predictions)
        note(f"written: {picture}")
    for prediction in predictions:
        if prediction.error is not None:
            note(f"failed: {prediction.error}")
    if any(prediction.error for prediction in predictions):
        sys.exit(1)


def _bar(probability: float) -> str:
    return "█" * round(30 * probability)
