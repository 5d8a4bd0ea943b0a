"""`har train`, `har evaluate` and `har predict`: stage two."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from har_pipeline.cli.common import (
    AsJson,
    Column,
    Device,
    NumFolds,
    Protocol,
    Root,
    Seed,
    TestFraction,
    Workers,
    choose_splits,
    extraction_bar,
    note,
    print_json,
    print_table,
    read_split,
)
from har_pipeline.errors import RunError
from har_pipeline.train_config import HeadName, Optimizer, Output, TrainConfig

if TYPE_CHECKING:
    from har_pipeline.categories import GroupResult
    from har_pipeline.evaluate import Evaluation
    from har_pipeline.folds import FoldsEvaluation

DEFAULTS = TrainConfig()


def train(
    manifest: Annotated[Path, typer.Argument(help="Manifest CSV.")],
    store: Annotated[Path, typer.Argument(help="Feature store that `har extract` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")] = Path("run"),
    features: Annotated[
        str, typer.Option(help="Feature set, or the start of its name; needed if there are several.")
    ] = "",
    protocol: Protocol = "holdout",
    split: Annotated[str, typer.Option(help="Number of the split, or `all` for every fold (then OUT/split<i>).")] = "0",
    split_file: Annotated[
        Path | None, typer.Option(help="A split from `har splits write` instead of a protocol.")
    ] = None,
    num_folds: NumFolds = 5,
    test_fraction: TestFraction = 0.3,
    column: Column = "split",
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the training subjects kept for validation; 0.2 with --patience, else 0.", min=0, max=0.9
        ),
    ] = None,
    head: Annotated[
        HeadName, typer.Option(help="lstm, or mean_pool: mean over time + logistic regression.")
    ] = DEFAULTS.head,
    units: Annotated[int, typer.Option(help="LSTM units (the paper's n_u).", min=1)] = DEFAULTS.units,
    epochs: Annotated[int, typer.Option(min=1)] = DEFAULTS.epochs,
    batch_size: Annotated[int, typer.Option(min=1)] = DEFAULTS.batch_size,
    optimizer: Annotated[Optimizer, typer.Option()] = DEFAULTS.optimizer,
    learning_rate: Annotated[float, typer.Option(help="Step size.", min=0)] = DEFAULTS.learning_rate,
    output: Annotated[Output, typer.Option(help="softmax, or sigmoid as the paper prints.")] = DEFAULTS.output,
    dropout: Annotated[float, typer.Option(help="On the last hidden state.", min=0, max=0.99)] = DEFAULTS.dropout,
    input_dropout: Annotated[float, typer.Option(help="On the features.", min=0, max=0.99)] = DEFAULTS.input_dropout,
    weight_decay: Annotated[float, typer.Option(min=0)] = DEFAULTS.weight_decay,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many epochs without a lower validation loss; keep the best.", min=1),
    ] = DEFAULTS.patience,
    standardise: Annotated[bool, typer.Option(help="Scale features by their training mean and deviation.")] = (
        DEFAULTS.standardise
    ),
    logistic_c: Annotated[
        float, typer.Option(help="Inverse L2 penalty of mean_pool's regression.")
    ] = DEFAULTS.logistic_c,
    allow_missing: Annotated[bool, typer.Option(help="Leave out videos that have no features.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there.")] = False,
    root: Root = None,
    seed: Seed = DEFAULTS.seed,
    device: Device = DEFAULTS.device,
    as_json: AsJson = False,
) -> None:
    """Train a head on stored features and score its held-out videos. Takes seconds to minutes.

    Defaults are those of Orozco 2020: an LSTM, RMSProp, 50 epochs, batches of 25. With --split all, folds that are
    finished are kept, so that an interrupted job goes on.
    """
    from har_pipeline.manifests import manifest_sha256, read_manifest
    from har_pipeline.splits import make_splits
    from har_pipeline.store import FeatureStore
    from har_pipeline.train import train_head

    config = _config(
        head=head,
        units=units,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        output=output,
        dropout=dropout,
        input_dropout=input_dropout,
        weight_decay=weight_decay,
        patience=patience,
        standardise=standardise,
        logistic_c=logistic_c,
        seed=seed,
        device=device,
    )
    records = read_manifest(manifest, root=root, check_files=False)
    if val_fraction is None:
        val_fraction = 0.2 if patience is not None else 0.0
    sha256 = manifest_sha256(manifest)
    if split_file is not None:
        chosen = [read_split(split_file, records)]
    else:
        splits = make_splits(
            records,
            protocol,
            seed=seed,
            val_fraction=val_fraction,
            num_folds=num_folds,
            test_fraction=test_fraction,
            column=column,
            manifest_sha256=sha256,
        )
        chosen = choose_splits(splits, split)
    opened = FeatureStore(store)
    feature_set = opened.resolve(features)
    summaries = []
    for one in chosen:
        folder = out / f"split{one.index}" if split == "all" else out
        if split == "all" and not overwrite and (folder / "run.json").exists():
            note(f"{folder}: already trained, kept (--overwrite trains it again)")
            continue
        summary = train_head(
            opened,
            feature_set,
            records,
            one,
            config,
            folder,
            manifest_sha256=sha256,
            overwrite=overwrite,
            allow_missing=allow_missing,
        )
        summaries.append(summary)
        for text in summary.notes:
            note(f"NOTE: {text}")
        if not as_json:
            typer.echo(
                f"{folder}: {config.head}, test video accuracy {summary.test_accuracy:.1%} on {summary.num_test} videos "
                f"({summary.num_train} train, {summary.num_val} val), {summary.seconds:.1f} s"
            )
    if as_json:
        print_json([summary.to_dict() for summary in summaries])
    else:
        typer.echo(f"next: har evaluate {out}")


def _config(**values: Any) -> TrainConfig:
    try:
        return TrainConfig(**values)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="Run folder, the folder that `har train --split all` wrote, or one of `har fuse`.")
    ],
    part: Annotated[str, typer.Option(help="test, or val.")] = "test",
    groups: Annotated[
        str, typer.Option(help="Also by coarse categories: ucf101, hmdb51, or a CSV file `class,group`.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Report accuracy with 95 % confidence intervals, per class, and write the confusion matrix (PNG and CSV)."""
    from har_pipeline.categories import read_groups
    from har_pipeline.evaluate import evaluate_run, evaluate_scores_file
    from har_pipeline.folds import evaluate_folds, fold_folders

    grouping = read_groups(groups) if groups else None
    if (run / "run.json").exists() or (run / "fusion.json").exists():
        of_one = evaluate_run if (run / "run.json").exists() else evaluate_scores_file
        evaluation = of_one(run, part=part, grouping=grouping)
        if as_json:
            print_json(evaluation.to_dict())
        else:
            _print_evaluation(evaluation, run)
        return
    if not fold_folders(run):
        raise RunError(f"{run} is no run folder (no run.json, no split0/run.json); make one with `har train`")
    folds = evaluate_folds(run, part=part, grouping=grouping)
    if as_json:
        print_json(folds.to_dict())
    else:
        _print_folds(folds, run)


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
        str | None, typer.Option(help="The net's weights file, where the run was trained with one.")
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
