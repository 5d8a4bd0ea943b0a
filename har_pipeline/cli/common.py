"""What all commands share: option types, printing, progress bars. Imports nothing heavy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from har_pipeline.core.records import Split, VideoRecord
    from har_pipeline.features.engine import Progress

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")]
Workers = Annotated[int | None, typer.Option(help="Decoding processes; by default a fitting number.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of everything random in this command.", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Protocol = Annotated[str, typer.Option(help="How videos are split; `har splits show --help` lists the protocols.")]
NumFolds = Annotated[int, typer.Option(help="Folds of group_kfold.", min=2)]
TestFraction = Annotated[float, typer.Option(help="Test share of holdout.", min=0.01, max=0.9)]
Column = Annotated[str, typer.Option(help="Manifest column that the protocol `column` reads.")]
Root = Annotated[
    Path | None, typer.Option(help="Folder that the manifest's paths are relative to; its own by default.")
]


class Dtype(StrEnum):
    """Types that features are stored in."""

    float16 = "float16"
    float32 = "float32"


class Precision(StrEnum):
    """Arithmetic of a net."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class DecoderChoice(StrEnum):
    """Decoders."""

    auto = "auto"
    decord = "decord"
    pyav = "pyav"


class StreamChoice(StrEnum):
    """Streams that nets read."""

    rgb = "rgb"
    flow = "flow"


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, default=str))


def note(text: str) -> None:
    """Print a line for people on stderr, out of the way of machine output."""
    typer.echo(text, err=True)


def print_table(header: list[str], rows: list[list[Any]]) -> None:
    """Print an aligned table on stdout."""
    cells = [header, *[["" if c is None else str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for number, row in enumerate(cells):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            typer.echo("  ".join("-" * width for width in widths))


def read_split(path: Path, records: list[VideoRecord], sha256: str = "") -> Split:
    """Return the split of a file, checked against a manifest's records; a note tells if it was written for another one.

    sha256: the manifest's `manifest_sha256`, "" = not compared.
    """
    from har_pipeline.datasets.splits import check_split, read_split_file

    split = read_split_file(path)
    check_split(split, records)
    if sha256 and split.manifest_sha256 and split.manifest_sha256 != sha256:
        note(
            f"NOTE: {path} was written for another manifest, or this one has changed since: its videos are taken, the labels "
            "are read from the manifest given"
        )
    return split


def choose_splits(splits: list[Split], choice: str) -> list[Split]:
    """Return the split of the number `choice`, or all of them for `all`."""
    if choice == "all":
        return splits
    numbers = [split.index for split in splits]
    if not choice.isdigit() or int(choice) not in numbers:
        raise typer.BadParameter(f"--split {choice!r}: {splits[0].protocol} has the splits {numbers}, or give `all`")
    return [split for split in splits if split.index == int(choice)]


def given_options(ctx: typer.Context | None, names: Iterable[str]) -> list[str]:
    """Return those of a command's parameters that were given on the command line, as they were written."""
    given = [name for name in names if ctx and getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in given]


def option_error(error: ValueError, names: Iterable[str]) -> typer.BadParameter:
    """Return the usage error of a refused value, its fields `names` written as options: `--batch-size`, not `batch_size`.

    Words of the language, as in `the published schedule`, stay: a field is followed by what it must be or belongs to.
    """
    fields = re.compile(rf"(?<![\w-])({'|'.join(names)})(?=( and \w+)? (?:must|belongs?|takes|keeps)\b|=)")
    return typer.BadParameter(fields.sub(lambda found: f"--{found[1].replace('_', '-')}", str(error)))


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


@contextmanager
def video_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show on stderr how many videos of their total each stage of a job has done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)


@contextmanager
def extraction_bar() -> Iterator[Callable[[Progress], None]]:
    """Show an extraction's progress on stderr: videos/s, time left, failures and the stage that binds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("extract"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.2f} videos/s, {task.fields[failed]} failed, bound by {task.fields[bound]}"),
    )
    with Bar(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("extract", total=None, rate=0.0, failed=0, bound="-")

        def update(progress: Progress) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            bar.update(
                task,
                total=progress.total,
                completed=progress.already + progress.done + progress.failed,
                rate=progress.done / elapsed if elapsed else 0.0,
                failed=progress.failed,
                bound=progress.bound_by,
            )

        yield update
