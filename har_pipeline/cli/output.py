"""Printing: JSON, tables and results on stdout, notes on stderr."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from har_pipeline.core.text import counted, printable

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


def reporter(model: str, as_json: bool) -> Callable[[Outcome], None]:
    """Return the function that prints the result of a finished run; on stderr where JSON goes to stdout."""

    def report(outcome: Outcome) -> None:
        (note if as_json else say)(f"{outcome.run.folder}: {model}, {describe(outcome)}")
        sys.stdout.flush()  # a file gets it now, too

    return report


def print_outcomes(outcomes: Sequence[Outcome], out: Path, as_json: bool) -> None:
    """Print the mean over the finished runs of a job, which `reporter` has printed one by one, and their notes."""
    from har_pipeline.evaluation.plan import merge_notes

    if kept := [one.run.folder for one in outcomes if one.kept]:
        many = len(outcomes) > 1
        what = f"{len(kept)} of {len(outcomes)} runs" if many else str(kept[0])
        note(f"{what}: already trained, kept (--overwrite trains {'them' if many else 'it'} again)")
    for text in merge_notes({str(one.run.folder.relative_to(out)): one.summary.notes for one in outcomes}):
        note(f"NOTE: {text}")
    if as_json:
        print_json([outcome.summary.to_dict() for outcome in outcomes])
        return
    tested = [one for one in outcomes if one.summary.test_accuracy is not None]
    if len(tested) > 1:
        say(_mean(tested))
    run = shlex.quote(str(out))
    say(f"next: har evaluate {run}" if tested else f"next: har predict VIDEO --run {run}")


def _mean(outcomes: Sequence[Outcome]) -> str:
    """Return a line on the mean over several runs."""
    from har_pipeline.evaluation.statistics import mean_and_sd

    mean, sd = mean_and_sd([outcome.summary.measured_accuracy for outcome in outcomes])
    runs = [outcome.run for outcome in outcomes]
    numbers = {"split": {run.split.index for run in runs}, "seed": {run.seed for run in runs}}
    over = ", ".join(counted(len(found), word) for word, found in numbers.items() if len(found) > 1)
    return f"mean over {over}: test video accuracy {mean:.1%}, sd {sd or 0.0:.1%}"


def print_failures(notes: dict[str, tuple[str, ...]], failed: dict[str, str], failed_before: dict[str, str]) -> None:
    """Print what was odd about videos and why others failed, by video id."""
    for video_id, texts in notes.items():
        note(f"note: {video_id}: {'; '.join(texts)}")
    for video_id, reason in failed.items():
        note(f"failed: {video_id}: {reason}")
    for video_id, reason in failed_before.items():
        note(f"failed in an earlier run: {video_id}: {reason} (try again with --retry-failed)")
