from __future__ import annotations

import csv
from pathlib import Path

from har_pipeline.evaluation.tables import write_csv

ROW = ["=1+1", "+x", "-x", "@x", "\tx", "a=b", "-0.5", "+3e2", -0.5, None, "x"]


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_spreadsheet_finds_no_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["=header"], [ROW])
    shown = ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "a=b", "-0.5", "+3e2", "-0.5", "", "x"]
    assert rows_of(tmp_path / "t.csv") == [["'=header"], shown]


def test_a_table_that_is_read_back_is_exact(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["=header"], [ROW], exact=True)
    assert rows_of(tmp_path / "t.csv") == [["=header"], ["" if cell is None else str(cell) for cell in ROW]]
