"""`har train`: stage two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from har_pipeline.cli.options import (
    AsJson,
    Column,
    Device,
    NumFolds,
    Protocol,
    Root,
    Seed,
    TestFraction,
    given_options,
    option_error,
)
from har_pipeline.cli.output import note, print_json
from har_pipeline.cli.progress import describe, training_table
from har_pipeline.cli.split_options import chosen_splits
from har_pipeline.models.config import SCIKIT_HEADS, Fusion, FusionOp, HeadName, Output, Vote
from har_pipeline.training.configs import ClassWeights, HeadPrecision, Optimizer, Schedule, TrainConfig

DEFAULTS = TrainConfig()
HEAD_HELP = (
    "lstm, gru, bilstm; res_lstm: residual stack as wide as its input (Lakhal); stacked_lstm: the same without skips; "
    "attention: over the LSTM's states; mean_pool (= linear): mean over time + logistic regression; svm: mean + linear "
    "SVM; vote: a dense layer per clip."
)
TRAINING, HEAD = "Training", "Head"


def train(
    ctx: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="Manifest CSV.")],
    store: Annotated[Path, typer.Argument(help="Feature store that `har extract` wrote, or a pack of it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")] = Path("run"),
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature set, or the start of its name; needed if there are several. Once for each stream of --mid-fusion."
        ),
    ] = None,
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
            help="Share of the training subjects kept for validation; 0.2 with --patience or plateau, else 0.",
            min=0,
            max=0.9,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Train with so many seeds from --seed on (then OUT/seed<k>).", min=1)
    ] = 1,
    head: Annotated[HeadName, typer.Option(help=HEAD_HELP, rich_help_panel=HEAD)] = DEFAULTS.head,
    units: Annotated[int, typer.Option(help="Recurrent units (Orozco's n_u).", min=1, rich_help_panel=HEAD)] = (
        DEFAULTS.units
    ),
    num_layers: Annotated[
        int | None,
        typer.Option(
            help="Recurrent layers; by default 2 of res_lstm and stacked_lstm, else 1.", min=1, rich_help_panel=HEAD
        ),
    ] = DEFAULTS.num_layers,
    input_projection: Annotated[
        int | None,
        typer.Option(help="A dense layer to so many values before the recurrent ones.", min=1, rich_help_panel=HEAD),
    ] = DEFAULTS.input_projection,
    mid_fusion: Annotated[
        Fusion | None,
        typer.Option(
            help="Join streams: input = their features clip by clip (Lakhal), hidden = the states of an encoder each.",
            rich_help_panel=HEAD,
        ),
    ] = DEFAULTS.mid_fusion,
    fusion_op: Annotated[FusionOp, typer.Option(help="How --mid-fusion joins.", rich_help_panel=HEAD)] = (
        DEFAULTS.fusion_op
    ),
    output: Annotated[
        Output, typer.Option(help="softmax, or sigmoid as Orozco prints.", rich_help_panel=HEAD)
    ] = DEFAULTS.output,
    vote: Annotated[
        Vote, typer.Option(help="Of the vote head: mean of the clips' answers, or majority.", rich_help_panel=HEAD)
    ] = DEFAULTS.vote,
    standardise: Annotated[
        bool, typer.Option(help="Scale features by their training mean and deviation.", rich_help_panel=HEAD)
    ] = DEFAULTS.standardise,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=TRAINING)] = DEFAULTS.epochs,
    batch_size: Annotated[int, typer.Option(min=1, rich_help_panel=TRAINING)] = DEFAULTS.batch_size,
    optimizer: Annotated[Optimizer, typer.Option(rich_help_panel=TRAINING)] = DEFAULTS.optimizer,
    learning_rate: Annotated[
        float, typer.Option(help="Step size, above 0.", rich_help_panel=TRAINING)
    ] = DEFAULTS.learning_rate,
    schedule: Annotated[
        Schedule,
        typer.Option(
            help="Of the step size: constant; cosine to 0; step: times --schedule-factor every --schedule-epochs; plateau: "
            "after as many epochs without a lower validation loss.",
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.schedule,
    schedule_epochs: Annotated[
        int, typer.Option(help="Of step and plateau.", min=1, rich_help_panel=TRAINING)
    ] = DEFAULTS.schedule_epochs,
    schedule_factor: Annotated[
        float, typer.Option(help="Of step and plateau.", rich_help_panel=TRAINING)
    ] = DEFAULTS.schedule_factor,
    dropout: Annotated[
        float, typer.Option(help="On the hidden states.", min=0, max=0.99, rich_help_panel=TRAINING)
    ] = DEFAULTS.dropout,
    input_dropout: Annotated[
        float, typer.Option(help="On the features.", min=0, max=0.99, rich_help_panel=TRAINING)
    ] = DEFAULTS.input_dropout,
    weight_decay: Annotated[
        float, typer.Option(help="Decoupled from the gradient.", min=0, rich_help_panel=TRAINING)
    ] = DEFAULTS.weight_decay,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of the target spread over all classes.", min=0, rich_help_panel=TRAINING)
    ] = DEFAULTS.label_smoothing,
    clip_norm: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient.", rich_help_panel=TRAINING)
    ] = DEFAULTS.clip_norm,
    class_weights: Annotated[
        ClassWeights, typer.Option(help="balanced: rare classes count more.", rich_help_panel=TRAINING)
    ] = DEFAULTS.class_weights,
    temporal_jitter: Annotated[
        float,
        typer.Option(
            help="Share of each training video's clips left out at random in each epoch.",
            min=0,
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.temporal_jitter,
    num_steps: Annotated[
        int | None,
        typer.Option(
            help="Take so many of each video's stored clips, evenly (Lakhal's T); all by default.",
            min=1,
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.num_steps,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many epochs without a lower validation loss; keep the best.",
            min=1,
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.patience,
    average_last: Annotated[
        float,
        typer.Option(
            help="Take the mean of the weights over this last share of the epochs, as 0.5.",
            min=0,
            max=1,
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.average_last,
    logistic_c: Annotated[
        float, typer.Option(help="Inverse L2 penalty of mean_pool, linear and svm.", rich_help_panel=TRAINING)
    ] = DEFAULTS.logistic_c,
    max_iterations: Annotated[
        int, typer.Option(help="Of the solver of mean_pool, linear and svm.", min=1, rich_help_panel=TRAINING)
    ] = DEFAULTS.max_iterations,
    precision: Annotated[
        HeadPrecision, typer.Option(help="bf16: mixed precision in training.", rich_help_panel=TRAINING)
    ] = DEFAULTS.precision,
    tensorboard: Annotated[bool, typer.Option(help="Also write TensorBoard event files into the run folder.")] = False,
    allow_missing: Annotated[bool, typer.Option(help="Leave out videos that have no features.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there.")] = False,
    root: Root = None,
    seed: Seed = DEFAULTS.seed,
    device: Device = DEFAULTS.device,
    as_json: AsJson = False,
) -> None:
    """Train a head on stored features and score its held-out videos. Takes seconds to minutes.

    Defaults are those of Orozco 2020: an LSTM, RMSProp, 50 epochs, batches of 25. Runs that are finished are kept, so that
    an interrupted job of --split all or --repeats goes on. Lakhal 2018: --head res_lstm --no-standardise.
    """
    from har_pipeline.datasets.manifests import manifest_sha256, read_manifest
    from har_pipeline.evaluation.plan import merge_notes
    from har_pipeline.features.pack import open_features
    from har_pipeline.training.jobs import plan_jobs, run_jobs

    config = _config(
        head=head,
        units=units,
        num_layers=num_layers,
        input_projection=input_projection,
        mid_fusion=mid_fusion,
        fusion_op=fusion_op,
        output=output,
        vote=vote,
        standardise=standardise,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        schedule_epochs=schedule_epochs,
        schedule_factor=schedule_factor,
        dropout=dropout,
        input_dropout=input_dropout,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        clip_norm=clip_norm,
        class_weights=class_weights,
        temporal_jitter=temporal_jitter,
        num_steps=num_steps,
        patience=patience,
        average_last=average_last,
        logistic_c=logistic_c,
        max_iterations=max_iterations,
        precision=precision,
        seed=seed,
        device=device,
    )
    if unread := _unread(ctx, config):
        note(
            f"NOTE: not read by the head {config.head} beside the other options, and so without effect: {', '.join(unread)}"
        )
    if repeats > 1 and config.head in SCIKIT_HEADS:
        note(f"NOTE: {config.head} has one optimum, whatever the seed: its repeats are all but the same")
    records = read_manifest(manifest, root=root, check_files=False)
    if val_fraction is None:
        val_fraction = 0.2 if patience is not None or schedule == "plateau" else 0.0
    sha256 = manifest_sha256(manifest)
    chosen = chosen_splits(
        records,
        split_file,
        protocol,
        split,
        seed=seed,
        val_fraction=val_fraction,
        num_folds=num_folds,
        test_fraction=test_fraction,
        column=column,
        sha256=sha256,
        ctx=ctx,
    )
    jobs = plan_jobs(chosen, out, seed=seed, repeats=repeats, folds=split == "all" and split_file is None)
    with training_table(jobs, epochs) as (on_epoch, on_done):
        outcomes = run_jobs(
            open_features(store),
            features or [""],
            records,
            jobs,
            config,
            overwrite=overwrite,
            allow_missing=allow_missing,
            tensorboard=tensorboard,
            on_epoch=on_epoch,
            on_done=on_done,
        )
    for text in merge_notes({str(one.run.folder.relative_to(out)): one.summary.notes for one in outcomes}):
        note(f"NOTE: {text}")
    if as_json:
        print_json([outcome.summary.to_dict() for outcome in outcomes])
        return
    for outcome in outcomes:
        typer.echo(f"{outcome.run.folder}: {config.head}, {describe(outcome)}")
    typer.echo(f"next: har evaluate {out}")


def _unread(ctx: typer.Context, config: TrainConfig) -> list[str]:
    """Return the options given on the command line that change nothing in a training, as they were written."""
    names = [option for option in config.to_dict() if not config.reads(option)]
    return given_options(ctx, names)


def _config(**values: Any) -> TrainConfig:
    try:
        return TrainConfig(**values)
    except ValueError as error:
        raise option_error(error, values) from error
