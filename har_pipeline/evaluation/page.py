"""The HTML page of an experiment: one file that contains its pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from har_pipeline.core.text import printable

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; } th, td { padding: .25rem .8rem .25rem 0; text-align: left;
border-bottom: 1px solid #8884; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; background: white; border-radius: 4px; } .warning { border-left: 4px solid #c60; padding: .2rem 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; } dt { opacity: .7; }
dd { margin: 0; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ title }}</h1><p>{{ lead }}</p>
{% for text in warnings %}<p class="warning">{{ text }}</p>{% endfor %}
{% for section in sections %}<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.rows %}<table><tr>{% for name in section.rows[0] %}<th class="{{ kind(section.rows[0][name]) }}">{{ name }}</th>
{% endfor %}</tr>{% for row in section.rows %}<tr>{% for value in row.values() %}<td class="{{ kind(value) }}">{{ value }}</td>
{% endfor %}</tr>{% endfor %}</table>{% endif %}
{% for picture in section.pictures %}<p><img alt="{{ picture.stem }}" src="data:image/png;base64,{{ encode(picture) }}"></p>
{% endfor %}{% if section.facts %}<dl>{% for name, value in section.facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl>{% endif %}{% endfor %}
</body></html>
"""


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

    def encode(picture: Path) -> str:
        return base64.b64encode(picture.read_bytes()).decode()

    def plain(value: object) -> object:
        return printable(value) if isinstance(value, str) else value

    def kind(value: object) -> str:
        text = str(value)
        return "number" if text[:1].isdigit() or text[:1] in "+-" else ""

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=plain)
    environment.globals.update(encode=encode, kind=kind)
    html = environment.from_string(_TEMPLATE).render(title=title, lead=lead, sections=sections, warnings=warnings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
