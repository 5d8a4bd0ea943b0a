"""Labels and file names that would steer a terminal, a page, a spreadsheet or a picture are text everywhere."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from paths import python_path
from video_files import make_video

from har_pipeline.datasets.manifests import read_manifest
from har_pipeline.report.sections import Section, write_page

# The last one is longer than a picture is wide.
LABELS = (
    '=HYPERLINK("http://x","y")',
    "$x^{2$ 50% & $5",
    "[bold]red[/] <script>alert(1)</script>",
    "\x9b31m 开门 \u202egpj",
    "-" + ("long " * 60).rstrip(),
)
STARTS_A_SEQUENCE = ("\x1b", "\x9b", "\u202e", "\udcff", "\r")


def har(*arguments: object, cwd: Path, code: int = 0, env: Mapping[str, str] = {}) -> tuple[str, str]:
    """Return stdout and stderr of a command whose exit code is `code`; nothing in them steers a terminal."""
    command = [
        sys.executable,
        "-c",
        "from har_pipeline.cli import main; main()",
        *map(os.fsencode, map(str, arguments)),
    ]
    done = subprocess.run(command, cwd=cwd, capture_output=True, check=False, env={**python_path(), **env})
    stdout, stderr = (output.decode("utf-8", "surrogateescape") for output in (done.stdout, done.stderr))
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{stdout}\n{stderr}"
    assert "Traceback" not in stderr, stderr
    for character in STARTS_A_SEQUENCE:
        assert character not in stdout + stderr, (arguments, character)
    return stdout, stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of five such labels and file names, with features and two runs."""
    folder = tmp_path_factory.mktemp("text")
    rows = []
    for k, label in enumerate(LABELS):
        for n in range(3):
            name = f"$a_{n}$ [b] <i>\x9b{k}\u202e.avi"
            make_video(folder / "videos" / name, 6, seed=50 * k + n)
            rows.append([f"videos/{name}", f"v{k}-{n}", label, "train" if n else "test"])
    with (folder / "m.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "video_id", "label", "split"], *rows])
    har("extract", "m.csv", "store.zarr", "--num-clips", 2, "--device", "cpu", cwd=folder)
    for run, head in (("run", "mean_pool"), ("other", "svm")):
        har(
            *("train", "m.csv", "store.zarr", "--protocol", "column", "--val-fraction", 0),
            *("--head", head, "--device", "cpu", "-o", run),
            cwd=folder,
        )
    return folder


@pytest.mark.slow
@pytest.mark.exhaustive
def test_results_show_labels_as_text(work: Path) -> None:
    har("manifest", "check", "m.csv", cwd=work)
    har("splits", "show", "m.csv", "--protocol", "column", cwd=work)
    shown, _ = har("evaluate", "run", cwd=work)
    assert "\\x9b31m 开门 \\u202egpj" in shown
    assert "[bold]red[/] <script>" in shown
    har("compare", "run", "other", "-o", "compared", cwd=work)
    har("fuse", "run", "other", "-o", "fused", cwd=work)
    for picture in ("run/confusion.png", "compared/difference.png", "compared/class_gains.png"):
        assert (work / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_terminal_that_lacks_a_character_gets_its_escape(work: Path) -> None:
    shown, _ = har("evaluate", "run", cwd=work, env={"PYTHONIOENCODING": "latin-1"})
    assert "\\u5f00" in shown


@pytest.mark.slow
@pytest.mark.exhaustive
def test_tables_for_people_hold_no_formulas_and_tables_for_machines_the_labels(work: Path) -> None:
    har("evaluate", "run", cwd=work)
    with (work / "run/scores.csv").open(encoding="utf-8", newline="") as file:
        assert set(LABELS) < set(next(csv.reader(file)))
    assert {record.label for record in read_manifest(work / "m.csv")} == set(LABELS)
    for name in ("confusion.csv", "per_class.csv", "best_and_worst.csv"):
        with (work / "run" / name).open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert [cell for cell in cells if cell[:1] in ("=", "+", "@") or cell.startswith("-l")] == []
    assert "'" + LABELS[0] in cells


@pytest.mark.slow
@pytest.mark.exhaustive
def test_predictions_show_labels_and_names_as_text(work: Path) -> None:
    odd = work / "odd\x1b[31m\n$x$\udcff.avi"
    odd.write_bytes((work / "videos" / "$a_0$ [b] <i>\x9b0\u202e.avi").read_bytes())
    shown, _ = har("predict", odd, "--run", "run", "--top", 5, "--picture", "top.png", cwd=work)
    assert shown.splitlines()[0].endswith(r"odd\x1b[31m\n$x$\udcff.avi")
    assert len(shown.splitlines()) == 6
    answer = json.loads(har("predict", odd, "--run", "run", "--top", 5, "--json", cwd=work)[0])
    assert {row["label"] for row in answer[0]["top"]} == set(LABELS)
    _, line = har("predict", work / "no\x1b[2J\n.avi", "--run", "run", cwd=work, code=1)
    assert r"no\x1b[2J\n.avi: the file does not exist" in line
    _, line = har("manifest", "check", work / "no\x1b[2J\n\udcff.csv", cwd=work, code=1)
    assert line.startswith("error: ")
    assert len(line.splitlines()) == 1


def test_a_page_shows_text(tmp_path: Path) -> None:
    odd = "<img src=x onerror=alert(1)> \"'&{{ 7 * 7 }} \x1b\udcff"
    section = Section(title=odd, text=odd, rows=[{odd: odd}], facts={odd: odd})
    write_page(tmp_path / "page.html", odd, odd, [section], warnings=[odd])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "49" not in page
    # A section's title is three times there: it names its table as well.
    assert page.count(r"&lt;img src=x onerror=alert(1)&gt; &#34;&#39;&amp;{{ 7 * 7 }} \x1b\udcff") == 12
