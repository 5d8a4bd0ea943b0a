"""The page of an experiment: tables, facts and pictures of its own, in the style of the page of results; one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from har_pipeline.core.files import write_text
from har_pipeline.report.page import Table, data_address, render_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of a page."""

    title: str
    text: str = ""
    rows: Sequence[Mapping[str, Any]] = ()  # a table, all rows with the same keys
    pictures: Sequence[Path] = ()  # PNG files
    facts: Mapping[str, Any] = field(default_factory=dict)  # name -> value, below


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section], warnings: Sequence[str] = ()) -> None:
    """Write a self-contained HTML page; all text is escaped."""
    shown = [
        {
            "title": one.title,
            "text": one.text,
            "table": _table(one) if one.rows else None,
            "pictures": [(picture.stem, data_address(picture.read_bytes(), "image/png")) for picture in one.pictures],
            "facts": [(name, str(value)) for name, value in one.facts.items()],
        }
        for one in sections
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_template("sections.html", title=title, lead=lead, sections=shown, warnings=warnings))


def _table(section: Section) -> Table:
    columns = [(name, _is_number(section.rows[0][name])) for name in section.rows[0]]
    return Table(
        name=section.title, columns=columns, rows=[[str(value) for value in row.values()] for row in section.rows]
    )


def _is_number(value: object) -> bool:
    text = str(value)
    return text[:1].isdigit() or text[:1] in "+-"
