"""What the documents say is what was measured."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

from har_pipeline.models.config import RECURRENT_HEADS
from har_pipeline.models.convlstm.networks import NETWORKS, build_network
from har_pipeline.training.options import TrainConfig

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


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/generate.py as a module; the modules beside it are found too."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generate")


def test_generated_pages_are_what_the_code_and_the_results_say(generate: ModuleType) -> None:
    for path, text in generate.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python docs/generate.py`"


def shown_commands(text: str) -> dict[str, str]:
    """Return the commands that a page shows: the results file that a command made, or the command itself, -> the command."""
    found = {}
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        made = ""
        for line in block.replace(" \\\n", "").splitlines():
            if comment := re.fullmatch(r"# (\S+\.json): commit [0-9a-f]{7,40}, machine [A-Z]", line):
                made = comment[1]
            elif line:
                found[made or line] = line
                made = ""
    return found


def without_command(page: str) -> list[str]:
    """Return the lines of a page of results with a number of ours beside which no command stands.

    A line that names a results file needs that file's command in its section; any other line one that follows.
    """
    found = []
    for section in page.split("\n## ")[1:]:
        made = shown_commands(section)
        pieces = re.split(r"```sh\n.*?```", section, flags=re.DOTALL)
        for piece in pieces:
            for line in piece.splitlines():
                if "*not run on real data*" in line or not re.search(r"\d", line):
                    continue
                named = re.findall(r"\w+\.json", line)
                if not (set(named) <= made.keys() if named else piece is not pieces[-1]):
                    found.append(line)
    return found


def test_every_number_stands_beside_its_command(generate: ModuleType) -> None:
    page = generate.results_page()
    assert without_command(page) == []
    commands = re.findall(r"```sh\n.*?```", page, re.DOTALL)
    assert len(commands) > 10
    for block in commands:
        assert without_command(page.replace(block, "")), block


def test_every_results_file_that_a_page_reads_has_its_command_there(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()

    def recorded(name: str) -> dict[str, Any]:
        read.add(f"{name}.json")
        return RESULTS[f"{name}.json"]

    for name in ("generate", "feature_results", "raw_results"):
        monkeypatch.setattr(importlib.import_module(name), "results", recorded)
    for title, block in {**generate.SECTIONS, "Extractors": generate.extractors_page}.items():
        read.clear()
        made = shown_commands(block())
        assert read <= made.keys(), title
    read.clear()
    generate.laptop_block()
    assert read <= shown_commands(generate.results_page() + generate.extractors_page()).keys()


def test_each_head_scales_its_features_if_that_was_better_on_held_out_training_videos(generate: ModuleType) -> None:
    measured = importlib.import_module("feature_results").plain_minus_scaled()
    assert {"mean_pool", "svm", "vote", *RECURRENT_HEADS} <= measured.keys()
    scales = {head: TrainConfig(head=head).scales_features for head in measured}
    assert scales == {head: difference < 0 for head, difference in measured.items()}


def test_commands_of_results_name_no_file_of_one_machine(generate: ModuleType) -> None:
    for command in shown_commands(generate.results_page()).values():
        assert not re.search(r"[<>~]|(^|[ =])/", command), command


def test_commands_of_results_have_the_options_that_they_give(generate: ModuleType) -> None:
    page = importlib.import_module("cli_page")
    known = {command.name: " ".join(one.name for one in command.parameters) for command in page.commands()}
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for command in shown_commands(generate.results_page() + generate.extractors_page() + gallery).values():
        words = shlex.split(command.replace("python -m har_pipeline ", "har "))
        if words[0] == "har":
            # Commands of groups have three words, as `har manifest build`.
            options = known.get(" ".join(words[:3])) or known[" ".join(words[:2])]
        else:
            options = (ROOT / words[1]).read_text(encoding="utf-8")
        for word in words:
            assert not word.startswith("-") or re.search(rf"(?<![\w-]){word}(?![\w-])", options), f"{word}: {command}"


def test_the_pictures_of_the_gallery_are_small_and_made_by_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    module = importlib.import_module("gallery")
    shown = re.findall(r"!\[[^]]+\]\(pictures/(gallery-[\w-]+\.png)\)", module.PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(module.SOURCES)
    for name in shown:
        assert (module.PICTURES / name).stat().st_size <= 150_000, name
    assert len(list(module.commands())) > 10


def test_every_command_and_option_has_a_help_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("cli_page")
    found = list(page.commands())
    assert len(found) > 15
    for command in found:
        assert command.help, command.name
        for parameter in command.parameters:
            assert parameter.help, f"{command.name} {parameter.name}"


def test_no_command_lists_more_options_at_once_than_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    for command in importlib.import_module("cli_page").commands():
        options = [parameter.panel for parameter in command.parameters if not parameter.is_argument]
        for panel in set(options):
            assert options.count(panel) <= 25, f"{command.name}: {panel or 'options without a panel'}"


def test_results_tables_hold_no_other_accuracy() -> None:
    """A table row with a percentage of ours names a results file; the paper's column is the paper's."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        if line.startswith("| ") and "%" in line and "*not run on real data*" not in line:
            assert line.rstrip(" |").rsplit("|", 1)[1].strip() in RESULTS, line


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_set_up_is_two_commands() -> None:
    assert [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("make ")] == [
        "make demo",
        "make test",
    ]


def test_parameter_counts_are_those_of_the_networks() -> None:
    page = (ROOT / "docs" / "raw-video.md").read_text(encoding="utf-8")
    for name in NETWORKS:
        count = f"{sum(values.numel() for values in build_network(name, 60).parameters()):,}"
        assert f"| `{name}` | {count} |" in page


def test_links_to_files_lead_somewhere() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
        assert [link for link in links if not (path.parent / link).exists()] == [], path.name
