"""`har synth`, `har manifest` and `har splits`: data sets, their manifests and their protocols."""

from __future__ import annotations

import dataclasses
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.cli.options import AsJson, Column, NumFolds, Protocol, Root, Seed, TestFraction, Workers
from har_pipeline.cli.output import note, print_json, print_table
from har_pipeline.cli.split_options import protocol_splits

manifest_app = typer.Typer(no_args_is_help=True, help="Build manifests from data set folders, and check them.")
splits_app = typer.Typer(no_args_is_help=True, help="Show and write the splits of a protocol.")


LISTED_AT_MOST = 10


class Dataset(StrEnum):
    """Folder layouts that a manifest can be built from."""

    folder = "folder"
    kth = "kth"
    ucf11 = "ucf11"
    ucf101 = "ucf101"
    hmdb51 = "hmdb51"
    ntu = "ntu"
    ut_interaction = "ut_interaction"
    utd_mhad = "utd_mhad"


class Scenario(StrEnum):
    """Scenarios of the embedded data set."""

    d1 = "d1"
    d2 = "d2"
    d3 = "d3"
    d4 = "d4"


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write to; files of the same names are replaced.")],
    subjects: Annotated[int, typer.Option(help="People; each does 6 actions in 4 scenarios.", min=1, max=25)] = 6,
    depth: Annotated[bool, typer.Option(help="Also 16-bit depth frames in NTU RGB+D's layout.")] = False,
    flow: Annotated[bool, typer.Option(help="Also the exact optical flow.")] = False,
    scenario: Annotated[
        list[Scenario] | None, typer.Option(help="Only this scenario, for a smaller set; give it once for each.")
    ] = None,
    decided_early: Annotated[
        bool,
        typer.Option(help="Another set: 180 to 240 frames, of which only the first third shows the action."),
    ] = False,
    seed: Seed = 0,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Render the embedded data set: people doing KTH's six actions, as video files with a manifest."""
    from rich.console import Console
    from rich.progress import Progress

    from har_pipeline.synthetic.dataset import write_dataset

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("render", total=None)
        manifest = write_dataset(
            out,
            num_subjects=subjects,
            seed=seed,
            depth=depth,
            flow=flow,
            decided_early=decided_early,
            scenarios=[choice.value for choice in scenario] if scenario else None,
            workers=workers,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    videos = subjects * 6 * (len(set(scenario)) if scenario else 4)
    if as_json:
        print_json({"manifest": str(manifest), "videos": videos, "seed": seed})
    else:
        follow = f", or har frames {manifest} store.zarr --fps 25" if depth else ""
        typer.echo(f"{videos} videos; next: har extract {manifest} store.zarr{follow}")


@manifest_app.command()
def build(
    dataset: Annotated[Dataset, typer.Argument(help="Layout of the folder; `folder` = one folder per class.")],
    root: Annotated[Path, typer.Argument(help="The data set's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Manifest to write.")],
    sequences: Annotated[Path | None, typer.Option(help="KTH's 00sequences.txt: one row per sequence.")] = None,
    splits: Annotated[Path | None, typer.Option(help="Folder of UCF-101's or HMDB-51's official split files.")] = None,
    split_index: Annotated[
        int,
        typer.Option(help="The official split that the column `split` holds; all stand in x_split1..3.", min=1, max=3),
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Write a manifest from a data set's folder and file names. Files and folders that do not fit are listed."""
    from har_pipeline.datasets.builders import build_manifest, left_out
    from har_pipeline.datasets.manifests import write_manifest

    records = build_manifest(dataset.value, root, sequences=sequences, splits=splits, split_index=split_index)
    write_manifest(out, records, root=root)
    labels = {record.label for record in records}
    others = left_out(root, records, known=(out, sequences, splits))
    for path in others[:LISTED_AT_MOST]:
        what = "nothing in it is taken by" if path.is_dir() else "its name does not follow"
        note(f"left out: {path}: {what} {dataset.value}'s rule")
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
    manifest: Annotated[Path, typer.Argument(help="Manifest CSV.")],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Check a manifest: columns, ids, ranges, files. Exit code 1 with row numbers if anything is wrong."""
    from har_pipeline.datasets.manifests import check_manifest

    summary = check_manifest(manifest, root=root)
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        for key, value in dataclasses.asdict(summary).items():
            typer.echo(f"{key}: {value}")


Manifest = Annotated[Path, typer.Argument(help="Manifest CSV.")]
ValFraction = Annotated[
    float,
    typer.Option(
        help="Share of the training subjects or groups kept for validation (`har train` without --patience: 0).",
        min=0,
        max=0.9,
    ),
]


@splits_app.command("show")
def show_splits(
    ctx: typer.Context,
    manifest: Manifest,
    protocol: Protocol = "holdout",
    val_fraction: ValFraction = 0.2,
    num_folds: NumFolds = 5,
    test_fraction: TestFraction = 0.3,
    column: Column = "split",
    root: Root = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Show how many videos and which subjects or groups each part of each split has.

    Protocols: kth_original, kth_random5, ucf101, hmdb51, xsub, xview, leave_one_group_out, leave_one_subject_out,
    group_kfold, holdout, column.
    """
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.datasets.splits import describe_splits, unused_videos

    records = read_manifest(manifest, root=root, check_files=False)
    splits = protocol_splits(
        records,
        protocol,
        seed=seed,
        val_fraction=val_fraction,
        num_folds=num_folds,
        test_fraction=test_fraction,
        column=column,
        ctx=ctx,
    )
    for text in unused_videos(splits, records):
        note(f"NOTE: {text}")
    rows = describe_splits(splits, records)
    if as_json:
        print_json(rows)
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])


@splits_app.command("write")
def write_splits(
    ctx: typer.Context,
    manifest: Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for <protocol>-<index>.json.")],
    protocol: Protocol = "holdout",
    val_fraction: ValFraction = 0.2,
    num_folds: NumFolds = 5,
    test_fraction: TestFraction = 0.3,
    column: Column = "split",
    root: Root = None,
    seed: Seed = 0,
) -> None:
    """Write the splits of a protocol as JSON files, for `har train --split-file`."""
    from har_pipeline.datasets.manifests import manifest_sha256, read_manifest
    from har_pipeline.datasets.splits import write_split_file

    records = read_manifest(manifest, root=root, check_files=False)
    sha256 = manifest_sha256(manifest)
    splits = protocol_splits(
        records,
        protocol,
        seed=seed,
        val_fraction=val_fraction,
        num_folds=num_folds,
        test_fraction=test_fraction,
        column=column,
        sha256=sha256,
        ctx=ctx,
    )
    for split in splits:
        path = out / f"{split.protocol}-{split.index}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_split_file(path, split)
        note(f"{path}: {len(split.train)} train, {len(split.val)} val, {len(split.test)} test")
