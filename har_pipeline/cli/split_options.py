"""The options that choose a split, and what is noted of the splits they make."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from har_pipeline.cli.options import given_options
from har_pipeline.cli.output import note

if TYPE_CHECKING:
    from har_pipeline.core.records import Split, VideoRecord


def read_split(path: Path, records: list[VideoRecord], sha256: str = "") -> Split:
    """Return the split of a file, checked against a manifest's records, as a split of that manifest.

    A note tells if it was written for another one. sha256: the manifest's `manifest_sha256`, "" = not known.
    """
    from har_pipeline.datasets.splits import check_split, read_split_file

    split = read_split_file(path)
    check_split(split, records)
    if sha256 and split.manifest_sha256 and split.manifest_sha256 != sha256:
        note(
            f"NOTE: {path} was written for another manifest, or this one has changed since: its videos are taken, the labels "
            "are read from the manifest given"
        )
    return dataclasses.replace(split, manifest_sha256=sha256 or split.manifest_sha256)


def choose_splits(splits: list[Split], choice: str) -> list[Split]:
    """Return the split of the number `choice`, or all of them for `all`."""
    if choice == "all":
        return splits
    numbers = [split.index for split in splits]
    if not choice.isdigit() or int(choice) not in numbers:
        raise typer.BadParameter(f"--split {choice!r}: {splits[0].protocol} has the splits {numbers}, or give `all`")
    return [split for split in splits if split.index == int(choice)]


def protocol_splits(
    records: list[VideoRecord],
    protocol: str,
    *,
    seed: int,
    val_fraction: float,
    num_folds: int,
    test_fraction: float,
    column: str,
    sha256: str = "",
    ctx: typer.Context | None = None,
) -> list[Split]:
    """Return all splits of a protocol; a note names the options of the command `ctx` that it does not read."""
    from har_pipeline.datasets.splits import make_splits, names_validation

    splits = make_splits(
        records,
        protocol,
        seed=seed,
        val_fraction=val_fraction,
        num_folds=num_folds,
        test_fraction=test_fraction,
        column=column,
        manifest_sha256=sha256,
    )
    readers = {"num_folds": "group_kfold", "test_fraction": "holdout", "column": "column"}
    unread = [name for name, reader in readers.items() if protocol != reader]
    if protocol == "column" and names_validation(records, column):
        unread.append("val_fraction")
    if given := given_options(ctx, unread):
        note(f"NOTE: not read by the protocol {protocol}, and so without effect: {', '.join(given)}")
    return splits


def chosen_splits(
    records: list[VideoRecord],
    split_file: Path | None,
    protocol: str,
    choice: str,
    *,
    seed: int,
    val_fraction: float,
    num_folds: int = 5,
    test_fraction: float = 0.3,
    column: str = "split",
    sha256: str = "",
    ctx: typer.Context | None = None,
) -> list[Split]:
    """Return the split of `split_file`, or of a protocol those that `choose_splits` takes; notes tell what is odd of them.

    sha256: of the manifest. ctx: of the command, for a note on its options that have no effect.
    """
    from har_pipeline.datasets.splits import names_validation, odd_validation_share, unread_column, unused_videos

    if split_file is not None:
        chosen = [read_split(split_file, records, sha256)]
        unread = ("protocol", "split", "num_folds", "test_fraction", "column", "val_fraction")
        if given := given_options(ctx, unread):
            note(f"NOTE: --split-file names the videos of each part; without effect: {', '.join(given)}")
        texts = unused_videos(chosen, records)
    else:
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
        chosen = choose_splits(splits, choice)
        texts = unused_videos(chosen, records)
        if protocol != "column" or not names_validation(records, column):
            texts += odd_validation_share(chosen, val_fraction)
        if protocol != "column":
            texts += unread_column(splits, records)
        if protocol == "holdout" and not any(record.subject or record.group for record in records):
            texts.append(
                "the manifest has no subject or group: videos of one person or scene may stand on both sides, and the "
                "accuracy flatters; fill in those columns (data_manifests/README.md)"
            )
    for text in texts:
        note(f"NOTE: {text}")
    return chosen
