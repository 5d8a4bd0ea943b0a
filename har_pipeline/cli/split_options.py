"""The splits that a command's options choose, with notes on what is odd."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from har_pipeline.cli.options import given_options, option_error
from har_pipeline.cli.output import note
from har_pipeline.core.errors import HarError
from har_pipeline.datasets.splits import SplitChoice

if TYPE_CHECKING:
    from har_pipeline.core.records import Split, VideoRecord


def chosen_splits(ctx: typer.Context, manifest: Path, records: list[VideoRecord], choice: SplitChoice) -> list[Split]:
    """Return the chosen splits; notes on stderr name what is odd about them, and given options that have no effect."""
    from har_pipeline.datasets.manifests import manifest_sha256
    from har_pipeline.datasets.splits import choose_splits

    try:
        chosen, notes = choose_splits(records, choice, manifest_sha256(manifest))
    except HarError:
        raise
    except ValueError as error:
        raise option_error(error, ["split"]) from error
    note_unread(ctx, records, choice)
    for text in notes:
        note(f"NOTE: {text}")
    return chosen


def note_unread(ctx: typer.Context, records: list[VideoRecord], choice: SplitChoice) -> None:
    """Print a note if options were given that the choice of splits does not read."""
    if given := given_options(ctx, choice.unread(records)):
        reader = (
            f"the protocol {choice.protocol_of(records)} does not read"
            if choice.split_file is None
            else "--split-file replaces"
        )
        note(f"NOTE: {reader} {', '.join(given)}")
