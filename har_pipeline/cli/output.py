"""Printing: JSON, tables and results on stdout, notes on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from har_pipeline.core.text import printable

if TYPE_CHECKING:
    from har_pipeline.training.jobs import Outcome


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, default=str))


def say(text: str) -> None:
    """Print a line of a result on stdout. Control characters of labels and names are shown, here and in all that follows."""
    typer.echo(printable(text))


def note(text: str) -> None:
    """Print a line for people on stderr, out of the way of machine output."""
    typer.echo(printable(text), err=True)


def print_table(header: list[str], rows: list[list[Any]]) -> None:
    """Print an aligned table on stdout."""
    cells = [["" if cell is None else printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for number, row in enumerate(cells):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            typer.echo("  ".join("-" * width for width in widths))


def print_rows(rows: list[dict[str, Any]], as_json: bool, *, empty: str = "") -> None:
    """Print rows of the same keys as JSON or as a table; `empty` in the place of a table without rows."""
    if as_json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        say(empty)


def describe(outcome: Outcome) -> str:
    """Return one line on a finished run."""
    summary = outcome.summary
    seconds, train = f"{summary.seconds:.1f} s", f"{summary.num_train} train, {summary.num_val} val"
    if summary.test_accuracy is None:
        return f"no test part: accuracy is not measured ({train}), {seconds}"
    return f"test video accuracy {summary.test_accuracy:.1%} on {summary.num_test} videos ({train}), {seconds}"


def print_outcomes(outcomes: Sequence[Outcome], out: Path, model: str, as_json: bool) -> None:
    """Print the results of the finished runs of a job, and their notes."""
    from har_pipeline.evaluation.plan import merge_notes

    for text in merge_notes({str(one.run.folder.relative_to(out)): one.summary.notes for one in outcomes}):
        note(f"NOTE: {text}")
    if as_json:
        print_json([outcome.summary.to_dict() for outcome in outcomes])
        return
    for outcome in outcomes:
        say(f"{outcome.run.folder}: {model}, {describe(outcome)}")
    tested = any(outcome.summary.test_accuracy is not None for outcome in outcomes)
    say(f"next: har evaluate {out}" if tested else f"next: har predict VIDEO --run {out}")


def print_failures(notes: dict[str, tuple[str, ...]], failed: dict[str, str], failed_before: dict[str, str]) -> None:
    """Print what was odd about videos and why others failed, by video id."""
    for video_id, texts in notes.items():
        note(f"note: {video_id}: {'; '.join(texts)}")
    for video_id, reason in failed.items():
        note(f"failed: {video_id}: {reason}")
    for video_id, reason in failed_before.items():
        note(f"failed in an earlier run: {video_id}: {reason} (try again with --retry-failed)")
