"""`har train-video` and `har lr-range`: networks on raw video."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli import options
from har_pipeline.cli.options import Shown, with_options
from har_pipeline.cli.output import note, print_json, print_outcomes, reporter
from har_pipeline.cli.progress import step_bar, training_bar, video_bar
from har_pipeline.cli.split_options import chosen_splits
from har_pipeline.core.objects import StorePath
from har_pipeline.core.options import option
from har_pipeline.core.records import RawStream
from har_pipeline.core.signals import goes_on_when_repeated
from har_pipeline.datasets.splits import SplitChoice
from har_pipeline.training.options import VideoTrainConfig

if TYPE_CHECKING:
    from har_pipeline.core.records import Split, VideoRecord
    from har_pipeline.features.pack import PackedStore
    from har_pipeline.features.store import FeatureStore
    from har_pipeline.models.config import NetworkName
    from har_pipeline.training.networks.distributed import World


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSource:
    """Where the networks' frames come from."""

    stream: RawStream | None = option(
        None,
        "Files to read: depth = depth_path in the manifest, rgb = path. Default: depth; rgb for convnet3d.",
        panel="Videos",
    )
    store: StorePath | None = option(
        None,
        "Store or pack of raw frames; missing frames are prepared into a store. Default: frames.zarr beside OUT.",
        panel="Videos",
    )
    features: str | None = option(None, "Raw-frame set, or a prefix of its name, if there are several.", panel="Videos")
    allow_missing: bool = option(False, "Leave out videos that have no features, or no frames.", panel="Videos")
    workers: int | None = option(None, "Worker processes. Default: from the CPU count.", min=1)

    def of(self, model: NetworkName) -> tuple[RawStream, bool]:
        """Return the stream that a network reads, and whether it reads windows of people.

        Raises: typer.BadParameter if it does not read the stream that was asked for.
        """
        windows = model == "convnet3d"
        if windows and self.stream == "depth":
            raise typer.BadParameter("convnet3d reads rgb: omit --stream depth")
        return self.stream or ("rgb" if windows else "depth"), windows

    def path(self, out: Path, model: NetworkName) -> StorePath:
        """Return the store's path. Raises: StoreError if something else is there, or a store without the set asked for."""
        from har_pipeline.features.frames import choose_frames
        from har_pipeline.features.pack import open_features

        path = self.store or out.absolute().parent / "frames.zarr"
        if path.exists():
            stream, windows = self.of(model)
            choose_frames(open_features(path), stream, self.features or "", windows=windows)
        return path

    def prepare(
        self, records: list[VideoRecord], splits: list[Split], path: StorePath, model: NetworkName, world: World
    ) -> tuple[FeatureStore | PackedStore, str]:
        """Return the store with the frames of the splits' videos and their set; the first process prepares missing ones."""
        from har_pipeline.features.frames import open_frames, prepare_frames

        stream, windows = self.of(model)
        if world.first:
            ids = {video_id for split in splits for part in (split.train, split.val, split.test) for video_id in part}
            with video_bar() as update:
                summary = prepare_frames(
                    [record for record in records if record.video_id in ids],
                    path,
                    stream,
                    features=self.features or "",
                    windows=windows,
                    workers=self.workers,
                    on_progress=lambda state: update("frames", state.finished, state.total),
                )
            if summary is not None and summary.done:
                note(f"{path}: frames of {summary.done} videos prepared ({summary.seconds:.1f} s)")
            for video_id, reason in {**summary.failed_before, **summary.failed}.items() if summary else ():
                note(f"failed: {video_id}: {reason}")
        world.share(None)
        return open_frames(path, stream, self.features or "", windows=windows)


def reads_validation(model: NetworkName) -> bool:
    """Return whether training of a network reads validation videos; the 3D-ConvNet makes features for a head of `har train`."""
    return model != "convnet3d"


@with_options
def train_video(
    *,
    ctx: typer.Context,
    manifest: options.Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")] = Path("run"),
    split: SplitChoice,
    repeats: options.Repeats = 1,
    config: VideoTrainConfig,
    frames: FrameSource,
    overwrite: options.Overwrite = False,
    root: options.Root = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a network end to end on raw depth or RGB video and score its test videos. Takes minutes to days.

    Defaults follow Sanchez-Caballero 2020, and for --model convnet3d Baccouche 2011, but for --val-fraction and --precision
    (published: 0 and fp32). An interrupted run continues at the epoch it had reached when run again. The epoch with the
    best validation accuracy is kept; validation videos come from the training subjects; without any, the last epoch is
    kept. For small data sets: --schedule one-cycle --epochs 30 --learning-rate 1e-3 (see har lr-range). Several GPUs:
    torchrun --nproc-per-node 4 -m har_pipeline train-video ...
    """
    from har_pipeline.datasets.manifests import read_manifest

    options.check_folder(out)
    records = read_manifest(manifest, root=root, check_files=False)
    chosen = chosen_splits(ctx, manifest, records, split.with_validation(reads_validation(config.model)))
    path = frames.path(out, config.model)

    from har_pipeline.training.jobs import plan_jobs, run_jobs
    from har_pipeline.training.lock import training_lock
    from har_pipeline.training.networks.distributed import joined_world

    with joined_world(config.device) as (world, device):
        config = dataclasses.replace(config, device=device)
        jobs = plan_jobs(chosen, out, seed=config.seed, repeats=repeats, folds=split.every)
        goes_on_when_repeated()
        # Before the frames are prepared, which may take hours.
        with training_lock(out) if world.first else nullcontext():
            opened, name = frames.prepare(records, chosen, path, config.model, world)
            report = reporter(config.model, as_json)
            with training_bar(jobs, config.num_epochs, report, silent=not world.first) as (on_epoch, on_batch, on_done):
                outcomes = run_jobs(
                    opened,
                    [name],
                    records,
                    jobs,
                    config,
                    overwrite=overwrite,
                    allow_missing=frames.allow_missing,
                    locked=True,
                    origin=options.run_origin(ctx, manifest, root),
                    world=world,
                    on_epoch=on_epoch,
                    on_batch=on_batch,
                    on_done=on_done,
                    on_threads=lambda threads: note(threads.describe()),
                )
        if world.first:
            print_outcomes(outcomes, out, as_json)


@with_options
def lr_range(
    *,
    ctx: typer.Context,
    manifest: options.Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for lr_range.png, .csv and .json.")] = Path(
        "lr_range"
    ),
    split: Annotated[SplitChoice, Shown(help={"split": "Split number. Default: 0."})],
    config: Annotated[
        VideoTrainConfig,
        Shown(without=("schedule", "epochs", "learning_rate", "cycle_epochs", "patience", "stop_after")),
    ],
    frames: FrameSource,
    lowest: Annotated[float, typer.Option(help="Learning rate of the first batch.", min=1e-12)] = 1e-6,
    highest: Annotated[float, typer.Option(help="Learning rate of the last batch.", max=1e3)] = 1e-1,
    steps: Annotated[int, typer.Option(help="Number of batches.", min=2)] = 200,
    root: options.Root = None,
    as_json: options.AsJson = False,
) -> None:
    """Find learning rates that train: the rate grows with every batch, and the plot shows where the loss falls.

    The suggested range begins where a tenth of the loss's fall is done and ends where nine tenths are. Only training
    videos are used. Source: Smith 2017; Sanchez-Caballero 2020, figure 5.
    """
    from har_pipeline.datasets.manifests import read_manifest

    if not 0 < lowest < highest:
        raise typer.BadParameter("--lowest must be above 0 and below --highest")
    options.check_folder(out)
    records = read_manifest(manifest, root=root, check_files=False)
    split = dataclasses.replace(split.with_validation(reads_validation(config.model)), split=split.split or "0")
    chosen = chosen_splits(ctx, manifest, records, split)
    path = frames.path(out, config.model)

    from har_pipeline.features.frames import frame_shape
    from har_pipeline.features.table import FeatureStreams, load_features
    from har_pipeline.models.device import pick_device
    from har_pipeline.training.data import split_classes
    from har_pipeline.training.lock import training_lock
    from har_pipeline.training.networks.distributed import ALONE
    from har_pipeline.training.networks.lr_range import range_test, write_range
    from har_pipeline.training.threads import training_threads

    with training_lock(out), training_threads(pick_device(config.device)) as threads:
        if threads is not None:
            note(threads.describe())
        opened, name = frames.prepare(records, chosen, path, config.model, ALONE)
        classes = split_classes(records, chosen[0])
        table = load_features(
            FeatureStreams(opened, [name]),
            records,
            chosen[0].train,
            classes,
            allow_missing=frames.allow_missing,
            spill_dir=out.absolute().parent,
        )
        with step_bar(steps) as on_step:
            result = range_test(
                table,
                frame_shape(opened.spec(name)),
                table.rows_of(chosen[0].train),
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
        typer.echo("the loss did not fall clearly at any rate: try more --steps, or a wider --lowest to --highest")
    else:
        typer.echo(f"suggested learning rates: {result.low:.1e} to {result.high:.1e}")
        if result.high == result.rates[-1]:
            typer.echo("the loss was still falling at the highest rate: a higher --highest may show more")
    typer.echo(f"written: {out}/lr_range.png, lr_range.csv, lr_range.json ({len(result.rates)} batches)")
