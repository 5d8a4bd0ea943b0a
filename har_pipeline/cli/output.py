"""Printing: JSON and tables on stdout, notes on stderr."""

from __future__ import annotations

import json
from typing import Any

import typer


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
