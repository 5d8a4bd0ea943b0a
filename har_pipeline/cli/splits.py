"""`har splits`: the splits of a protocol, shown and written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.cli import options
from har_pipeline.cli.options import Shown, with_options
from har_pipeline.cli.output import note, print_rows, say
from har_pipeline.cli.split_options import note_unread
from har_pipeline.core.errors import SplitError, first_few
from har_pipeline.core.files import holds_other
from har_pipeline.datasets.protocols import PROTOCOLS
from har_pipeline.datasets.splits import SplitChoice

splits_app = options.App(no_args_is_help=True, help="Show and write the splits of a protocol.")
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
    from har_pipeline.datasets.splits import (
        describe_protocol,
        describe_splits,
        protocol_splits,
        unlabelled_videos,
        unused_videos,
    )

    records = read_manifest(manifest, root=root, check_files=False)
    splits = protocol_splits(records, choice)
    note_unread(ctx, records, choice)
    for text in (*unused_videos(splits, records), *unlabelled_videos(records)):
        note(f"NOTE: {text}")
    (note if as_json else say)(describe_protocol(splits, records, by_default=choice.protocol is None))
    print_rows(describe_splits(splits, records), as_json)


@splits_app.command("write")
@with_options
def write_splits(
    *,
    ctx: typer.Context,
    manifest: options.Manifest,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files, PROTOCOL-NUMBER.json.")],
    choice: OfProtocol,
    overwrite: Annotated[bool, typer.Option(help="Replace files that hold other splits.")] = False,
    root: options.Root = None,
) -> None:
    """Write the splits of a protocol as JSON files, for --split-file. Files that exist and differ stay, but for --overwrite."""
    from har_pipeline.datasets.manifests import manifest_sha256, read_manifest
    from har_pipeline.datasets.splits import protocol_splits, split_text, unlabelled_videos, write_split_file

    records = read_manifest(manifest, root=root, check_files=False)
    splits = protocol_splits(records, choice, manifest_sha256(manifest))
    note_unread(ctx, records, choice)
    options.check_folder(out)
    files = {out / f"{split.protocol}-{split.index}.json": split for split in splits}
    if not overwrite and (
        other := [path.name for path, split in files.items() if holds_other(path, split_text(split))]
    ):
        raise SplitError(
            f"{out}: {first_few(other)} {'exist and differ' if len(other) > 1 else 'exists and differs'} from what would be "
            "written: replace with --overwrite, or name another folder with -o"
        )
    for text in unlabelled_videos(records):
        note(f"NOTE: {text}")
    out.mkdir(parents=True, exist_ok=True)
    for path, split in files.items():
        write_split_file(path, split)
        note(f"{path}: {len(split.train)} train, {len(split.val)} val, {len(split.test)} test")
