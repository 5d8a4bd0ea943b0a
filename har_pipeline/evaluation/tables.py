"""CSV files of results."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, exact: bool = False) -> None:
    """Write a header and rows; None becomes an empty cell.

    exact: write texts as they are, for a file that is read back. Otherwise a text that a spreadsheet would take for a formula
    gets a `'` before it, which spreadsheets read as: this is text.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for row in (header, *rows):
            writer.writerow(row if exact else [_no_formula(cell) if isinstance(cell, str) else cell for cell in row])


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not is_number(text) else text


def is_number(text: str) -> bool:
    """Whether a cell is a number, as Python reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_matrix(path: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Write a (K, K) matrix, rows true classes, columns predicted ones."""
    rows = ([label, *values] for label, values in zip(classes, matrix.tolist(), strict=True))
    write_csv(path, ["true \\ predicted", *classes], rows)
