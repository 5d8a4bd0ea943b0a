"""`har train`: a head on stored features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.cli import options
from har_pipeline.cli.options import given_options, with_options
from har_pipeline.cli.output import note, print_outcomes, reporter
from har_pipeline.cli.progress import training_table
from har_pipeline.cli.split_options import chosen_splits
from har_pipeline.core.signals import goes_on_when_repeated
from har_pipeline.datasets.splits import SplitChoice
from har_pipeline.models.config import SCIKIT_HEADS
from har_pipeline.training.options import TrainConfig


@with_options
def train(
    *,
    ctx: typer.Context,
    manifest: options.Manifest,
    store: options.StoreOrPack,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")] = Path("run"),
    features: Annotated[
        list[str] | None,
        typer.Option(help="Feature set, or a prefix of its name. Repeat for each feature set of --mid-fusion."),
    ] = None,
    split: SplitChoice,
    repeats: options.Repeats = 1,
    config: TrainConfig,
    tensorboard: Annotated[bool, typer.Option(help="Also write TensorBoard event files to the run folder.")] = False,
    allow_missing: options.AllowMissing = False,
    overwrite: options.Overwrite = False,
    root: options.Root = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a head on stored features and score its test videos. Takes seconds to minutes.

    Defaults follow Orozco 2020: an LSTM, RMSProp, 50 epochs, batches of 25; but for its sigmoid outputs: --output sigmoid.
    For Lakhal 2018: --head res_lstm. The papers feed plain features: --no-standardise. Probes of a frozen net, as V-JEPA
    evaluates: --head attentive on what `har extract --tokens` stored, --head mean_pool for the linear one. Finished runs
    are kept, so an interrupted --split all or --repeats continues when run again.
    """
    from har_pipeline.datasets.manifests import read_manifest

    options.check_folder(out)
    if len(features or ()) > 1 and config.mid_fusion is None:
        raise typer.BadParameter("several --features need --mid-fusion input or hidden")
    if len(features or ()) < 2 and config.mid_fusion is not None:
        raise typer.BadParameter("--mid-fusion needs several feature sets, each with its own --features")
    if unread := given_options(ctx, [name for name in config.to_dict() if not config.reads(name)]):
        note(f"NOTE: the head {config.head} with these options does not read {', '.join(unread)}")
    if repeats > 1 and config.head in SCIKIT_HEADS:
        note(f"NOTE: {config.head} has a single optimum, whatever the seed: its repeats are nearly identical")
    split = split.with_validation(config.patience is not None or config.schedule == "plateau")
    records = read_manifest(manifest, root=root, check_files=False)
    from har_pipeline.features.pack import open_features, packing_advice

    opened = open_features(store)
    names = [opened.resolve(prefix) for prefix in features or [""]]
    chosen = chosen_splits(ctx, manifest, records, split)

    from har_pipeline.training.jobs import plan_jobs, run_jobs

    jobs = plan_jobs(chosen, out, seed=config.seed, repeats=repeats, folds=split.every)
    if len(jobs) > 1:
        goes_on_when_repeated()
    with training_table(jobs, config.epochs, reporter(config.head, as_json)) as (on_epoch, on_done):
        outcomes = run_jobs(
            opened,
            names,
            records,
            jobs,
            config,
            overwrite=overwrite,
            allow_missing=allow_missing,
            tensorboard=tensorboard,
            origin=options.run_origin(ctx, manifest, root),
            on_epoch=on_epoch,
            on_done=on_done,
            on_threads=lambda threads: note(threads.describe()),
        )
    if advice := packing_advice(opened, len(records)):
        note(advice)  # for the next training: an error of this one would be lost behind it
    print_outcomes(outcomes, out, as_json)
