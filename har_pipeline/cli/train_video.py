"""`har train-video` and `har lr-range`: networks on raw video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from har_pipeline.cli.options import (
    TRAINING,
    AllowMissing,
    AsJson,
    Augment,
    BatchSize,
    Column,
    Device,
    Features,
    Long,
    Manifest,
    MemoryFrames,
    Model,
    NumFolds,
    PrecisionOption,
    Protocol,
    RawStreamChoice,
    Root,
    Seed,
    SplitFile,
    StateGradientOption,
    Store,
    StreamOption,
    TestFraction,
    ValFraction,
    Width,
    Workers,
    option_error,
)
from har_pipeline.cli.output import note, print_json
from har_pipeline.cli.progress import describe, step_bar, training_bar, video_bar
from har_pipeline.cli.split_options import chosen_splits
from har_pipeline.training.configs import VideoSchedule, VideoTrainConfig

if TYPE_CHECKING:
    from har_pipeline.core.records import Split, VideoRecord
    from har_pipeline.features.pack import PackedStore
    from har_pipeline.features.store import FeatureStore
    from har_pipeline.training.networks.distributed import World

DEFAULTS = VideoTrainConfig()


def train_video(
    ctx: typer.Context,
    manifest: Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")] = Path("run"),
    model: Model = DEFAULTS.model,
    width: Width = DEFAULTS.width,
    stream: StreamOption = RawStreamChoice.depth,
    store: Store = None,
    features: Features = "",
    long_videos: Long = DEFAULTS.long_videos,
    state_gradient: StateGradientOption = DEFAULTS.state_gradient,
    memory_frames: MemoryFrames = DEFAULTS.memory_frames,
    augment: Augment = DEFAULTS.augment,
    allow_missing: AllowMissing = False,
    protocol: Protocol = "xsub",
    split: Annotated[str, typer.Option(help="Number of the split, or `all` for every fold (then OUT/split<i>).")] = "0",
    split_file: SplitFile = None,
    num_folds: NumFolds = 5,
    test_fraction: TestFraction = 0.3,
    column: Column = "split",
    val_fraction: ValFraction = 0.1,
    repeats: Annotated[
        int, typer.Option(help="Train with so many seeds from --seed on (then OUT/seed<k>).", min=1)
    ] = 1,
    schedule: Annotated[
        VideoSchedule,
        typer.Option(
            help="Of the learning rate: published; one-cycle: up for 30 % of the epochs, then down; constant.",
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.schedule,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="75 stateless, 25 stateful; fewer run through the same schedule.", min=1, rich_help_panel=TRAINING
        ),
    ] = DEFAULTS.epochs,
    batch_size: BatchSize = DEFAULTS.batch_size,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of one-cycle (its highest) and constant; by default the highest published one.",
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.learning_rate,
    cycle_epochs: Annotated[
        float, typer.Option(help="Period of the published stateless schedule.", rich_help_panel=TRAINING)
    ] = DEFAULTS.cycle_epochs,
    patience: Annotated[
        int,
        typer.Option(
            help="Epochs without gain before that schedule's last rate is halved.", min=1, rich_help_panel=TRAINING
        ),
    ] = DEFAULTS.patience,
    precision: PrecisionOption = DEFAULTS.precision,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there, or an unfinished one.")] = False,
    root: Root = None,
    seed: Seed = DEFAULTS.seed,
    device: Device = DEFAULTS.device,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Train a network on raw depth or RGB video, end to end, and score its held-out videos. Takes minutes to days.

    Defaults are those of Sanchez-Caballero 2020. Killed, the same command goes on at the epoch it was in. The epoch with
    the best validation accuracy is kept; validation videos come from the training subjects. Small sets:
    --schedule one-cycle --epochs 30 --learning-rate 1e-3 (see har lr-range). Several GPUs: torchrun --nproc-per-node 4 -m
    har_pipeline train-video ...
    """
    from har_pipeline.datasets.manifests import manifest_sha256, read_manifest
    from har_pipeline.evaluation.plan import merge_notes
    from har_pipeline.training.jobs import plan_jobs, run_jobs
    from har_pipeline.training.networks.distributed import joined_world

    with joined_world(device) as (world, own_device):
        config = _config(
            model=model,
            width=width,
            batch_size=batch_size,
            schedule=schedule,
            epochs=epochs,
            learning_rate=learning_rate,
            cycle_epochs=cycle_epochs,
            patience=patience,
            long_videos=long_videos,
            state_gradient=state_gradient,
            memory_frames=memory_frames,
            augment=augment,
            precision=precision,
            seed=seed,
            device=own_device,
        )
        records = read_manifest(manifest, root=root, check_files=False)
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
        path = store or out.absolute().parent / "frames.zarr"
        opened, name = _frames(records, chosen, path, stream.value, features, workers, world)
        with (
            _kept_when_stopped(),
            training_bar(jobs, config.num_epochs, silent=not world.first) as (on_epoch, on_batch, on_done),
        ):
            outcomes = run_jobs(
                opened,
                [name],
                records,
                jobs,
                config,
                overwrite=overwrite,
                allow_missing=allow_missing,
                world=world,
                on_epoch=on_epoch,
                on_batch=on_batch,
                on_done=on_done,
            )
        if not world.first:
            return
    for text in merge_notes({str(one.run.folder.relative_to(out)): one.summary.notes for one in outcomes}):
        note(f"NOTE: {text}")
    if as_json:
        print_json([outcome.summary.to_dict() for outcome in outcomes])
        return
    for outcome in outcomes:
        typer.echo(f"{outcome.run.folder}: {config.model}, {describe(outcome)}")
    typer.echo(f"next: har evaluate {out}")


def lr_range(
    ctx: typer.Context,
    manifest: Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for lr_range.png, .csv and .json.")] = Path(
        "lr_range"
    ),
    model: Model = DEFAULTS.model,
    width: Width = DEFAULTS.width,
    stream: StreamOption = RawStreamChoice.depth,
    store: Store = None,
    features: Features = "",
    long_videos: Long = DEFAULTS.long_videos,
    state_gradient: StateGradientOption = DEFAULTS.state_gradient,
    memory_frames: MemoryFrames = DEFAULTS.memory_frames,
    augment: Augment = DEFAULTS.augment,
    allow_missing: AllowMissing = False,
    protocol: Protocol = "xsub",
    split: Annotated[str, typer.Option(help="Number of the split.")] = "0",
    split_file: SplitFile = None,
    num_folds: NumFolds = 5,
    test_fraction: TestFraction = 0.3,
    column: Column = "split",
    val_fraction: ValFraction = 0.1,
    lowest: Annotated[float, typer.Option(help="Learning rate of the first batch.", min=1e-12)] = 1e-6,
    highest: Annotated[float, typer.Option(help="Learning rate of the last batch.", max=1e3)] = 1e-1,
    steps: Annotated[int, typer.Option(help="Batches.", min=2)] = 200,
    batch_size: BatchSize = DEFAULTS.batch_size,
    precision: PrecisionOption = DEFAULTS.precision,
    root: Root = None,
    seed: Seed = DEFAULTS.seed,
    device: Device = DEFAULTS.device,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Find learning rates that train: the rate grows with every batch, and the picture shows where the loss falls.

    The suggested bounds reach from where a tenth of the loss's fall is done to where nine tenths are. Only training
    videos are used. Source: Smith 2017; Sanchez-Caballero 2020, figure 5.
    """
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.features.frames import frame_shape
    from har_pipeline.features.table import FeatureStreams, load_features
    from har_pipeline.training.data import split_classes
    from har_pipeline.training.networks.distributed import ALONE
    from har_pipeline.training.networks.lr_range import range_test, write_range

    if not 0 < lowest < highest:
        raise typer.BadParameter("--lowest must be above 0 and below --highest")
    config = _config(
        model=model,
        width=width,
        batch_size=batch_size,
        long_videos=long_videos,
        state_gradient=state_gradient,
        memory_frames=memory_frames,
        augment=augment,
        precision=precision,
        seed=seed,
        device=device,
    )
    records = read_manifest(manifest, root=root, check_files=False)
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
        ctx=ctx,
    )
    path = store or out.absolute().parent / "frames.zarr"
    opened, name = _frames(records, chosen, path, stream.value, features, workers, ALONE)
    classes = split_classes(records, chosen[0])
    streams = FeatureStreams(opened, [name])
    table = load_features(
        streams, records, chosen[0].train, classes, allow_missing=allow_missing, spill_dir=path.parent
    )
    rows = table.rows_of(chosen[0].train)
    with step_bar(steps) as on_step:
        result = range_test(
            table,
            frame_shape(opened.spec(name)),
            rows,
            len(classes),
            config,
            lowest=lowest,
            highest=highest,
            steps=steps,
            on_step=on_step,
        )
    write_range(result, out)
    if as_json:
        print_json(result.to_dict())
        return
    if result.low is None:
        typer.echo(
            "the loss did not fall clearly at any rate: try more --steps, or --lowest and --highest further apart"
        )
    else:
        typer.echo(f"suggested learning rates: {result.low:.1e} to {result.high:.1e}")
        if result.high == result.rates[-1]:
            typer.echo("the loss still fell at the highest rate tried: a higher --highest may show more")
    typer.echo(f"written: {out}/lr_range.png, lr_range.csv, lr_range.json ({len(result.rates)} batches)")


@contextmanager
def _kept_when_stopped() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note("stopped: the finished epochs are kept; run the same command again to go on")
        raise typer.Exit(130) from None


def _config(**values: Any) -> VideoTrainConfig:
    try:
        return VideoTrainConfig(**values)
    except ValueError as error:
        raise option_error(error, values) from error


def _frames(
    records: list[VideoRecord],
    splits: list[Split],
    path: Path,
    stream: str,
    features: str,
    workers: int | None,
    world: World,
) -> tuple[FeatureStore | PackedStore, str]:
    """Return the store with the frames of the splits' videos, prepared by the first process where they are missing."""
    from har_pipeline.features.frames import open_frames, prepare_frames

    ids = {video_id for split in splits for part in (split.train, split.val, split.test) for video_id in part}
    wanted = [record for record in records if record.video_id in ids]
    if world.first:
        with video_bar() as update:
            summary = prepare_frames(
                wanted,
                path,
                stream,
                features=features,
                workers=workers,
                on_progress=lambda state: update("frames", state.finished, state.total),
            )
        if summary is not None and summary.done:
            note(f"{path}: frames of {summary.done} videos prepared ({summary.seconds:.1f} s)")
        for video_id, reason in {**summary.failed_before, **summary.failed}.items() if summary else ():
            note(f"failed: {video_id}: {reason}")
    world.share(None)
    return open_frames(path, stream, features)
