"""`har manifest`: manifests built from data set folders, and checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from har_pipeline.cli import options
from har_pipeline.cli.output import note, print_json, say

manifest_app = options.App(no_args_is_help=True, help="Build manifests from data set folders, and check them.")
LISTED_AT_MOST = 10
Layout = Literal["folder", "kth", "ucf11", "ucf101", "hmdb51", "ntu", "ut_interaction", "utd_mhad"]


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
    from har_pipeline.datasets.builders import build_manifest, left_out, parts_taken_for_classes
    from har_pipeline.datasets.manifests import write_manifest

    records = build_manifest(dataset, root, sequences=sequences, splits=splits, split_index=split_index)
    write_manifest(out, records, root=root)
    if dataset == "folder" and (parts := sorted({record.split for record in records if record.split})):
        note(
            f"folders named after parts ({', '.join(parts)}) fill the column split, the folders below them are the "
            "classes; --protocol column trains and tests on these parts"
        )
    if dataset == "folder" and (parts := parts_taken_for_classes(root, records)):
        note(
            f"NOTE: the folders {', '.join(parts)} look like parts of a split, but other folders stand beside them, so all of "
            "them are taken for classes; move the others away if that is wrong"
        )
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
        say(f"{out}: {len(records)} rows, {len(labels)} classes; next: har {step} {out} store.zarr")


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
            say(f"{key}: {value}")
