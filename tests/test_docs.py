"""What the documents say is what was measured."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re

import pytest
from paths import ROOT

from har_pipeline.models.convlstm.networks import NETWORKS, build_network

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = {
    path.name: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "benchmarks/results").glob("*.json")
}


def test_every_results_file_says_how_it_was_made() -> None:
    assert RESULTS
    for name, content in RESULTS.items():
        assert content["command"], name
        assert re.fullmatch(r"[0-9a-f]{7,40}", content["commit"]), name
        assert content["machine"], name


def test_generated_pages_are_what_the_code_and_the_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python docs/generate.py`"


def test_every_command_and_option_has_a_help_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("cli_page")
    found = list(page.commands())
    assert len(found) > 15
    for command in found:
        assert command.help, command.name
        for parameter in command.parameters:
            assert parameter.help, f"{command.name} {parameter.name}"


def test_results_tables_hold_no_other_accuracy() -> None:
    """A table row with a percentage of ours names a results file; the paper's column is the paper's."""
    section = README.split("## Results", 1)[1].split("\n## ", 1)[0]
    for line in section.splitlines():
        if line.startswith("| ") and "%" in line and "*not run on real data*" not in line:
            assert line.rstrip(" |").rsplit("|", 1)[1].strip() in RESULTS, line


def test_set_up_is_two_commands() -> None:
    assert [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("make ")] == [
        "make demo",
        "make test",
    ]


def test_parameter_counts_are_those_of_the_networks() -> None:
    page = (ROOT / "docs" / "raw-video.md").read_text(encoding="utf-8")
    for name in NETWORKS:
        count = f"{sum(values.numel() for values in build_network(name, 60).parameters()):,}"
        assert f"{name.removeprefix('convlstm-')} {count}" in README
        assert f"| `{name}` | {count} |" in page


def test_links_to_files_lead_somewhere() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
        assert [link for link in links if not (path.parent / link).exists()] == [], path.name
