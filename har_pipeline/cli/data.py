"""`har synth`, `har manifest` and `har splits`: data sets, their manifests and their protocols."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from har_pipeline.cli import options
from har_pipeline.cli.options import Shown, with_options
from har_pipeline.cli.output import note, print_json, print_rows
from har_pipeline.cli.progress import video_bar
from har_pipeline.cli.split_options import note_unread
from har_pipeline.datasets.protocols import PROTOCOLS
from har_pipeline.datasets.splits import SplitChoice

manifest_app = typer.Typer(no_args_is_help=True, help="Build manifests from data set folders, and check them.")
splits_app = typer.Typer(no_args_is_help=True, help="Show and write the splits of a protocol.")
LISTED_AT_MOST = 10
Layout = Literal["folder", "kth", "ucf11", "ucf101", "hmdb51", "ntu", "ut_interaction", "utd_mhad"]


class Scenario(StrEnum):
    """Scenarios of the synthetic data set; Typer takes no list of a Literal."""

    d1 = "d1"
    d2 = "d2"
    d3 = "d3"
    d4 = "d4"


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; existing files of the same names are replaced.")],
    subjects: Annotated[int, typer.Option(help="People; each does 6 actions in 4 scenarios.", min=1, max=25)] = 6,
    depth: Annotated[bool, typer.Option(help="Also write 16-bit depth frames, named as in NTU RGB+D.")] = False,
    flow: Annotated[bool, typer.Option(help="Also write the exact optical flow.")] = False,
    scenario: Annotated[
        list[Scenario] | None,
        typer.Option(help="Render only this scenario. Repeat for several. Default: all."),
    ] = None,
    decided_early: Annotated[
        bool, typer.Option(help="Render videos of 180 to 240 frames that show the action in their first third only.")
    ] = False,
    seed: options.Seed = 0,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Render the synthetic data set: people doing KTH's six actions, as video files with a manifest."""
    from har_pipeline.synthetic.dataset import write_dataset

    with video_bar() as update:
        manifest = write_dataset(
            out,
            num_subjects=subjects,
            seed=seed,
            depth=depth,
            flow=flow,
            decided_early=decided_early,
            scenarios=[choice.value for choice in scenario] if scenario else None,
            workers=workers,
            on_progress=lambda done, total: update("render", done, total),
        )
    videos = subjects * 6 * (len(set(scenario)) if scenario else 4)
    if as_json:
        print_json({"manifest": str(manifest), "videos": videos, "seed": seed})
    else:
        follow = f", or har frames {manifest} store.zarr --fps 25" if depth else ""
        typer.echo(f"{videos} videos; next: har extract {manifest} store.zarr{follow}")


@manifest_app.command()
def build(
    dataset: Annotated[Layout, typer.Argument(help="Layout of the folder; folder = one subfolder per class.")],
    root: Annotated[Path, typer.Argument(help="The data set's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Manifest to write.")],
    sequences: Annotated[Path | None, typer.Option(help="KTH's 00sequences.txt, for one row per sequence.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Folder with the official split files of UCF-101 or HMDB-51.")
    ] = None,
    split_index: Annotated[
        int,
        typer.Option(
            help="Official split for the column `split`; all three are in x_split1 to x_split3.", min=1, max=3
        ),
    ] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Write a manifest from the folder and file names of a data set. Files and folders that do not fit are listed."""
    from har_pipeline.datasets.builders import build_manifest, left_out
    from har_pipeline.datasets.manifests import write_manifest

    records = build_manifest(dataset, root, sequences=sequences, splits=splits, split_index=split_index)
    write_manifest(out, records, root=root)
    labels = {record.label for record in records}
    others = left_out(root, records, known=(out, sequences, splits))
    for path in others[:LISTED_AT_MOST]:
        what = "nothing in it is taken by" if path.is_dir() else "its name does not follow"
        note(f"left out: {path}: {what} {dataset}'s rule")
    if len(others) > LISTED_AT_MOST:
        note(f"left out: {len(others) - LISTED_AT_MOST} more")
    if as_json:
        summary = {"manifest": str(out), "videos": len(records), "classes": sorted(labels)}
        print_json({**summary, "left_out": [str(path) for path in others]})
    else:
        step = "extract" if any(record.path for record in records) else "frames"
        typer.echo(f"{out}: {len(records)} rows, {len(labels)} classes; next: har {step} {out} store.zarr")


@manifest_app.command()
def check(
    manifest: options.Manifest,
    root: options.Root = None,
    as_json: options.AsJson = False,
) -> None:
    """Check the columns, ids, frame ranges and files of a manifest. Errors name their rows; the exit code is then 1."""
    from har_pipeline.datasets.manifests import check_manifest

    summary = check_manifest(manifest, root=root)
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        for key, value in dataclasses.asdict(summary).items():
            typer.echo(f"{key}: {value}")


OfProtocol = Annotated[SplitChoice, Shown(without=("split", "split_file"))]
LISTED = "\n\n".join(f"{name}: {protocol.help}" for name, protocol in PROTOCOLS.items())


@splits_app.command("show", help=f"Show the videos, subjects and groups in each part of each split.\n\n{LISTED}")
@with_options
def show_splits(
    *,
    ctx: typer.Context,
    manifest: options.Manifest,
    choice: OfProtocol,
    root: options.Root = None,
    as_json: options.AsJson = False,
) -> None:
    """Show the videos, subjects and groups in each part of each split."""
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.datasets.splits import describe_splits, protocol_splits, unused_videos

    records = read_manifest(manifest, root=root, check_files=False)
    splits = protocol_splits(records, choice)
    note_unread(ctx, records, choice)
    for text in unused_videos(splits, records):
        note(f"NOTE: {text}")
    print_rows(describe_splits(splits, records), as_json)


@splits_app.command("write")
@with_options
def write_splits(
    *,
    ctx: typer.Context,
    manifest: options.Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files, PROTOCOL-NUMBER.json.")],
    choice: OfProtocol,
    root: options.Root = None,
) -> None:
    """Write the splits of a protocol as JSON files, for --split-file."""
    from har_pipeline.datasets.manifests import manifest_sha256, read_manifest
    from har_pipeline.datasets.splits import protocol_splits, write_split_file

    records = read_manifest(manifest, root=root, check_files=False)
    splits = protocol_splits(records, choice, manifest_sha256(manifest))
    note_unread(ctx, records, choice)
    out.mkdir(parents=True, exist_ok=True)
    for split in splits:
        path = out / f"{split.protocol}-{split.index}.json"
        write_split_file(path, split)
        note(f"{path}: {len(split.train)} train, {len(split.val)} val, {len(split.test)} test")
