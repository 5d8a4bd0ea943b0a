"""`har frames`: the small frames that raw-video networks train on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli import options
from har_pipeline.cli.extract import pool_of
from har_pipeline.cli.options import parse_shard, with_options
from har_pipeline.cli.output import note, print_failures, print_json
from har_pipeline.cli.progress import video_bar
from har_pipeline.core.signals import goes_on_when_repeated
from har_pipeline.features.options import EngineOptions, RawOptions

if TYPE_CHECKING:
    from har_pipeline.core.records import VideoRecord


@with_options
def frames(
    *,
    manifest: options.Manifest,
    store: options.Store,
    how: RawOptions,
    where: EngineOptions,
    shard: options.Shard = "1/1",
    lengths: Annotated[
        Path | None, typer.Option(help="Also plot the videos' lengths by class to this file, such as lengths.png.")
    ] = None,
    root: options.Root = None,
    as_json: options.AsJson = False,
) -> None:
    """Prepare the frames of a manifest's videos for raw-video networks. Run again to continue after an interruption.

    Depth is cropped to the movement, scaled and mapped to brightness; RGB is scaled as a whole.

    Example: har frames manifest.csv store.zarr --stream depth --size 64

    A video that cannot be read is reported with its reason and recorded in the store; the others continue, and the exit
    code is 1. Several processes or machines may write to one store at the same time; --engine ray and --shard are as of
    `har extract`.
    """
    if lengths is not None and lengths.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise typer.BadParameter(f"--lengths {lengths}: give a file that ends in .png, .pdf or .svg")
    how = dataclasses.replace(how, shard=parse_shard(shard))

    from har_pipeline.datasets.manifests import read_manifest

    records = read_manifest(manifest, root=root, check_files=False)

    from har_pipeline.features.frames import column_of, store_raw_frames
    from har_pipeline.features.store import FeatureStore

    column_of(records, how.stream)  # a job that cannot be done leaves no store
    opened = FeatureStore(store, create=True)
    goes_on_when_repeated()
    with pool_of(where, ["cpu"]) as pool, video_bar() as update:
        summary = store_raw_frames(
            records, opened, how, lambda state: update("frames", state.finished, state.total), pool=pool
        )
    print_failures(summary.notes, summary.failed, summary.failed_before)
    if lengths is not None:
        _save_lengths(lengths, records, opened.num_clips(summary.feature_set))
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        failures = len(summary.failed) + len(summary.failed_before)
        typer.echo(
            f"{summary.feature_set}: {summary.done} videos done, {summary.already} already there, {failures} failed, of "
            f"{summary.total}; {summary.frames} frames in {summary.seconds:.1f} s"
        )
    if summary.failed or summary.failed_before:
        raise typer.Exit(1)


def _save_lengths(path: Path, records: list[VideoRecord], frames_of: dict[str, int]) -> None:
    """Plot the lengths of those videos that are in the store."""
    from har_pipeline.evaluation.plots import save_length_histogram
    from har_pipeline.models.convlstm.windows import BIN_EDGES

    label_of = {record.video_id: record.label or "no label" for record in records}
    by_class: dict[str, list[int]] = {label: [] for label in sorted({*label_of.values()})}
    for video_id, label in label_of.items():
        if video_id in frames_of:
            by_class[label].append(frames_of[video_id])
    save_length_histogram(path, by_class, BIN_EDGES)
    note(f"{path}: frames per video, by class")
