"""`har frames`: videos become the small frames that raw-video networks train on."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli.options import AsJson, RawStreamChoice, Root, parse_shard
from har_pipeline.cli.output import note, print_json
from har_pipeline.cli.progress import video_bar

if TYPE_CHECKING:
    from har_pipeline.core.records import VideoRecord
    from har_pipeline.features.frames import RawSummary


class AspectChoice(StrEnum):
    """What becomes of a frame that is not square."""

    stretch = "stretch"
    keep = "keep"


def frames(
    manifest: Annotated[Path, typer.Argument(help="Manifest CSV; make one with `har manifest build`.")],
    store: Annotated[Path, typer.Argument(help="The feature store, a folder such as store.zarr.")],
    stream: Annotated[
        RawStreamChoice, typer.Option(help="depth: the manifest's depth_path; rgb: its path.")
    ] = RawStreamChoice.depth,
    size: Annotated[int, typer.Option(help="Frames become so many px wide and high.", min=8, max=1024)] = 64,
    aspect: Annotated[
        AspectChoice, typer.Option(help="stretch to a square (as published), or keep the aspect, with 0 around.")
    ] = AspectChoice.stretch,
    causal: Annotated[
        bool, typer.Option(help="Crop depth by the frames so far only, as live recognition has to.")
    ] = False,
    fps: Annotated[
        float, typer.Option(help="Frame rate of depth folders and .mat files, which do not say.", min=0.1)
    ] = 30.0,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core if not given.", min=1)] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds that one video may take.", min=0.001)] = 600.0,
    shard: Annotated[
        str, typer.Option(help="k/n: do only the k-th of n parts, for several machines on one store.")
    ] = "1/1",
    retry_failed: Annotated[bool, typer.Option(help="Try videos again that failed before.")] = False,
    replace_changed: Annotated[
        bool, typer.Option(help="Make frames anew that STORE has of another file than the manifest names.")
    ] = False,
    lengths: Annotated[
        Path | None, typer.Option(help="Also save a picture of the videos' lengths by class, such as lengths.png.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Prepare the frames of a manifest's videos for raw-video networks. Run it again to go on after an interruption.

    Depth is cropped to the movement, scaled and mapped to brightness; RGB is scaled as a whole.

    Example: har frames manifest.csv store.zarr --stream depth --size 64

    A video that cannot be read is listed with its reason and remembered in the store; the others go on, and the exit
    code is 1. Several processes or machines may write one store at the same time.
    """
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.features.frames import RawOptions, store_raw_frames
    from har_pipeline.features.store import FeatureStore

    if lengths is not None and lengths.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise typer.BadParameter(f"--lengths {lengths}: give a file that ends in .png, .pdf or .svg")
    options = RawOptions(
        stream=stream.value,
        size=size,
        aspect=aspect.value,
        causal=causal,
        fps=fps,
        workers=workers,
        time_limit_s=time_limit,
        shard=parse_shard(shard),
        retry_failed=retry_failed,
        replace_changed=replace_changed,
    )
    records = read_manifest(manifest, root=root, check_files=False)
    opened = FeatureStore(store, create=True)
    try:
        with video_bar() as update:
            summary = store_raw_frames(
                records,
                opened,
                options,
                lambda state: update("frames", state.finished, state.total),
            )
    except KeyboardInterrupt:
        note("interrupted: what is done is kept; run the same command again to go on")
        raise typer.Exit(130) from None
    _report(summary)
    if lengths is not None:
        _save_lengths(lengths, records, opened.num_clips(summary.feature_set))
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        failures = len(summary.failed) + len(summary.failed_before)
        typer.echo(
            f"{summary.feature_set}: {summary.done} videos done, {summary.already} were there, {failures} failed, of "
            f"{summary.total}; {summary.frames} frames in {summary.seconds:.1f} s"
        )
    if summary.failed or summary.failed_before:
        raise typer.Exit(1)


def _save_lengths(path: Path, records: list[VideoRecord], frames_of: dict[str, int]) -> None:
    """Save the picture of the lengths of those videos that are in the store."""
    from har_pipeline.evaluation.plots import save_length_histogram
    from har_pipeline.models.convlstm.windows import BIN_EDGES

    by_class: dict[str, list[int]] = {label: [] for label in sorted({record.label for record in records})}
    for record in records:
        if record.video_id in frames_of:
            by_class[record.label].append(frames_of[record.video_id])
    save_length_histogram(path, by_class, BIN_EDGES)
    note(f"{path}: frames per video, by class")


def _report(summary: RawSummary) -> None:
    for video_id, notes in summary.notes.items():
        note(f"note: {video_id}: {'; '.join(notes)}")
    for video_id, reason in summary.failed.items():
        note(f"failed: {video_id}: {reason}")
    for video_id, reason in summary.failed_before.items():
        note(f"failed in an earlier run: {video_id}: {reason} (try again with --retry-failed)")
