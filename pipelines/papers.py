"""What the papers print, and our own numbers beside it.

papers.csv has a line for each accuracy, gain and count among a paper's results:

    table    its number, `figure 7`, or `text`
    row      of the table; `dataset`
    percent  the number as printed
    of       this: the paper's own system; cited: one that it compares with; class: one class of the system; gain: a difference
    unit     points, classes, times, or s (seconds per video); nothing: %
    note     what the paper marks or says beside it; `sic` where it contradicts itself

Empty cells at the end of a line may be missing.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from har_pipeline import Extractor, Interval, Section

# table, row, of; printed (text), paper (a share, points / 100, or a count), unit, note; ours, and its interval: low, high.
Row = dict[str, Any]
OWN = ("ours", "low", "high")
WHO = {"this": "the paper's system", "cited": "cited", "class": "one class", "gain": "difference"}


def printed(paper: str, dataset: str) -> list[Row]:
    """Return what a paper prints of a data set, in the order of papers.csv."""
    with open(Path(__file__).with_name("papers.csv"), newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, restval=""))
    return [
        {
            **{name: line[name] for name in ("table", "row", "of", "unit", "note")},
            "printed": f"{line['percent']} {line['unit'] or '%'}",
            "paper": float(line["percent"]) / (1 if line["unit"] == "classes" else 100),
        }
        for line in lines
        if (line["paper"], line["dataset"]) == (paper, dataset)
    ]


def found(table: str, row: str, ours: Interval | float, of: str = "this", unit: str = "") -> Row:
    """Return a number of ours: an accuracy in [0, 1] with its interval, points / 100, or a count."""
    value, low, high = (ours.value, ours.low, ours.high) if isinstance(ours, Interval) else (ours, None, None)
    return {"table": table, "row": row, "of": of, "unit": unit, "ours": value, "low": low, "high": high}


def beside(own: Sequence[Row], lines: Sequence[Row]) -> list[Row]:
    """Return each line that is printed with ours, where there is one; then those of ours that are not printed."""
    ours = {(row["table"], row["row"], row["of"]): row for row in own}
    rows = []
    for line in lines:
        mine = ours.pop((line["table"], line["row"], line["of"]), {})
        rows.append({**line, **{name: mine.get(name) for name in OWN}})
    return [*rows, *({"printed": "", "paper": None, "note": "", **row} for row in ours.values())]


def shown(row: Row) -> dict[str, str]:
    """Return a row as the report has it."""
    if row["ours"] is None:
        ours = ""
    elif row["low"] is not None:
        ours = Interval(row["ours"], row["low"], row["high"]).describe()
    elif row["unit"] == "classes":
        ours = f"{row['ours']} classes"
    else:
        ours = f"{100 * row['ours']:+.1f} points" if row["unit"] else f"{100 * row['ours']:.1f} %"
    return {"": row["row"], "of": WHO[row["of"]], "paper": row["printed"], "ours (95 %)": ours, "note": row["note"]}


def sections(
    rows: Sequence[Row], order: Sequence[str], pictures: Mapping[str, Sequence[Path]], texts: Mapping[str, str]
) -> list[Section]:
    """Return the report's section of each table in `order`, then of the others; pictures that do not exist are left out."""
    made = []
    for table in dict.fromkeys([*order, *(row["table"] for row in rows)]):
        cells = [shown(row) for row in rows if row["table"] == table]
        drawn = [path for path in pictures.get(table, ()) if path.exists()]
        if cells or drawn:
            title = f"Table {table}" if table.isdigit() else f"{table[:1].upper()}{table[1:]}"
            made.append(Section(title=title, text=texts.get(table, ""), rows=cells, pictures=drawn))
    return made


def lead(docstring: str | None) -> str:
    """Return what stands under a report's title: a pipeline's first line, and where to read on."""
    what = str(docstring).splitlines()[0]
    return f"{what} What the paper leaves open, and what is done there: docs/papers.md."


def video_counts(videos: int, paper: int, what: str = "videos") -> list[str]:
    """Return in what a copy of a data set differs from the paper's, in a line, or none."""
    return [] if videos == paper else [f"{videos:,} {what}; the paper has {paper:,}"]


def trained_on(net: Extractor, asked: str | None) -> str:
    """Return the name of a net's weights, what they learned from, and their hash; `random:<seed>` if they are drawn.

    asked: the name, a file, or None for the net's own.
    """
    name = asked or net.input.weights
    if net.weights.startswith("random"):
        return net.weights
    known = net.net.weights.get(name)
    return f"{name} ({known.trained_on}), {net.weights}" if known else f"{name}, {net.weights}"
