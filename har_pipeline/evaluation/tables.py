"""CSV files of results."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows; None becomes an empty cell."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_matrix(path: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Write a (K, K) matrix, rows true classes, columns predicted ones."""
    rows = ([label, *values] for label, values in zip(classes, matrix.tolist(), strict=True))
    write_csv(path, ["true \\ predicted", *classes], rows)
