"""The scripts in pipelines/ and benchmarks/ as modules."""

from __future__ import annotations

import csv
import html
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from paths import ROOT

PIPELINES, BENCHMARKS = ROOT / "pipelines", ROOT / "benchmarks"


# A script's own folder is on its path.
sys.path.append(str(PIPELINES))


def load(name: str, folder: Path = PIPELINES) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


def lines_of(paper: str, dataset: str) -> list[dict[str, str]]:
    """Return the lines of papers.csv."""
    with open(PIPELINES / "papers.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, restval=""))
    return [line for line in lines if (line["paper"], line["dataset"]) == (paper, dataset)]


def check_report(page: str, paper: str, dataset: str) -> None:
    """Every number that the paper prints stands in the report, in its table, with what the paper marks beside it."""
    shown = []
    for section in page.split("<h2>")[1:]:
        title = section.partition("</h2>")[0]
        for row in re.findall("<tr>(.*?)</tr>", section, flags=re.DOTALL):
            cells = [html.unescape(cell) for cell in re.findall("<td[^>]*>(.*?)</td>", row)]
            shown.append((title, cells))
    for line in lines_of(paper, dataset):
        table = line["table"]
        title = f"Table {table}" if table.isdigit() else table.capitalize()
        number = f"{line['percent']} {line['unit'] or '%'}"
        found = [c for t, c in shown if t == title and c[:1] == [line["row"]] and number in c and c[-1] == line["note"]]
        assert len(found) == 1, line
