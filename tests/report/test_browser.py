"""The page in a real browser: what it draws, and that its tables, matrix, gallery and choices work, by mouse and keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawn_runs import drawn_scores, write_drawn_run
from video_files import make_video

from har_pipeline.core.records import VideoRecord
from har_pipeline.evaluation.fusion_table import fuse, write_fusion
from har_pipeline.evaluation.members import load_members
from har_pipeline.report.data import ReportSources, collect_results
from har_pipeline.report.page import write_report

pytestmark = pytest.mark.needs_browser
Open = Callable[..., Any]

HOSTILE = (
    "<img src=x onerror=\"window.hacked='img'\">",
    "</script><script>window.hacked='script'</script>",
    "' onmouseover='window.hacked=1' \"{{ 7 * 7 }}",
    "datum.x || (window.hacked = 'expression')",
    "boxing",
    "walking \u202egpj",
    "var(--wrong)",
)
CLASSES = ("boxing", "clapping", "jogging", "running", "walking", "waving")
VIDEOS = [f"person{n // 6:02d}_{CLASSES[n % 6]}" for n in range(48)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on the same 48 videos and the fusion of both."""
    folder = tmp_path_factory.mktemp("runs")
    found = [
        write_drawn_run(folder / name, drawn_scores(CLASSES, VIDEOS, strength=strength, fold=0))
        for name, strength in (("rgb", 2.0), ("flow", 1.2))
    ]
    members = load_members(found)
    table, scores = fuse(members)
    write_fusion(folder / "both", table, scores, members)
    return [*found, folder / "both"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> ReportSources:
    path = make_video(tmp_path_factory.mktemp("videos") / "v.avi", 40)
    return ReportSources(
        records={name: VideoRecord(video_id=name, label=CLASSES[n % 6], path=path) for n, name in enumerate(VIDEOS)}
    )


@pytest.fixture(scope="module")
def page_file(runs: list[Path], sources: ReportSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(collect_results(runs, sources=sources, at_most=6), out, single_file=True)


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_part_is_wider_than_the_page(page_file: Path, open_page: Open, width: int, scheme: str) -> None:
    page = open_page(page_file, width=width, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.wait_for_function("document.querySelectorAll('.chart:not([data-drawn])').length <= 2", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('.card, .chart:not(.matrix .chart), .gallery li, .cards li, h1, h2, p')]"
    assert page.evaluate(f"{wide}.filter(one => one.getBoundingClientRect().right > innerWidth + 1).length") == 0
    assert page.evaluate("[...document.querySelectorAll('.chart[data-drawn] svg')].every(one => one.clientHeight > 50)")


def test_a_long_word_does_not_push_the_other_columns_away(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file, width=1600)
    width = page.evaluate(
        """() => {
            const cell = [...document.querySelectorAll('table td')].find(one => one.clientWidth > 0);
            cell.className = 'long';
            cell.textContent = 'x'.repeat(120);
            return cell.clientWidth;
        }"""
    )
    assert width < 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page_file: Path, open_page: Open, scheme: str) -> None:
    """Of the contrast that WCAG 2 asks of small text, 4.5 to 1."""
    page = open_page(page_file, scheme=scheme)
    contrast = """() => {
      const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
      const light = (hex) => {
        const full = hex.length === 4 ? "#" + [...hex.slice(1)].map((c) => c + c).join("") : hex;
        const parts = [1, 3, 5].map((at) => parseInt(full.slice(at, at + 2), 16) / 255);
        const [r, g, b] = parts.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const pairs = ["--sheet", "--page"].flatMap((back) => ["--ink", "--muted", "--accent"].map((text) => [text, back]));
      pairs.push(["--ink", "--mark"], ["--onfill", "--accent"], ["--onfill", "--right"], ["--onfill", "--wrong"]);
      return pairs.map(([text, back]) => {
        const [one, two] = [light(value(text)), light(value(back))].sort((a, b) => b - a);
        return [text, back, (one + 0.05) / (two + 0.05)];
      });
    }"""
    assert [pair for pair in page.evaluate(contrast) if pair[2] < 4.5] == []


def test_charts_follow_the_colours_of_the_page(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    bar = page.locator("[data-chart^=classes] svg .mark-rect path").first
    light = bar.evaluate("one => getComputedStyle(one).fill")
    page.emulate_media(color_scheme="dark")
    dark = bar.evaluate("one => getComputedStyle(one).fill")
    page.emulate_media(media="print")
    assert (light, dark) == ("rgb(31, 95, 168)", "rgb(106, 169, 238)")
    assert bar.evaluate("one => getComputedStyle(one).fill") == light


def test_a_table_sorts_by_mouse_and_keyboard(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    box = page.locator("details.run[open] [data-table]", has=page.get_by_text("Test videos", exact=True)).last

    def column(number: int) -> list[str]:
        return [text.strip() for text in box.locator(f"tbody td:nth-child({number})").all_inner_texts()]

    def values() -> list[float]:
        return [float(text.split()[0]) for text in column(4)]

    head = box.locator("th").nth(3)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    box.locator("th").first.get_by_role("button").press("Space")
    assert head.get_attribute("aria-sort") is None
    assert column(1) == sorted(column(1))


def test_a_table_is_searched(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    field = page.get_by_label("Search test videos").locator("visible=true")
    field.fill("BOXING person03")
    box = page.locator("details.run[open] [data-table]", has=field)
    shown = box.locator("tbody tr:visible")
    assert shown.count() == 1
    assert "person03_boxing" in shown.inner_text()
    assert box.locator("output").inner_text() == "1 of 48 rows"
    field.fill("")
    assert shown.count() == 48


def test_a_clip_plays(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    button = page.locator("details.run[open] .play").first
    button.focus()
    button.press("Enter")
    video = page.locator("details.run[open] video")
    page.wait_for_function("one => one.currentTime > 0.1", arg=video.element_handle())
    assert page.evaluate("document.activeElement.tagName") == "VIDEO"


def test_the_gallery_shows_mistakes_alone(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    shown = page.locator("details.run[open] .gallery li:visible")
    every = shown.count()
    page.locator("details.run[open] [data-only=mistakes]").click()
    assert 0 < shown.count() < every
    assert page.locator("details.run[open] .gallery .is-right:visible").count() == 0
    page.locator("details.run[open] [data-only=all]").click()
    assert shown.count() == every


def test_the_matrix_has_every_mistake_and_is_zoomed(page_file: Path, runs: list[Path], open_page: Open) -> None:
    page = open_page(page_file)
    report = collect_results(runs, at_most=0)
    best = max(report.results, key=lambda one: one.top1)
    matrix = page.locator("details.run[open] .matrix")
    cells = matrix.locator("svg .mark-rect path")
    assert cells.count() == int((best.confusion > 0).sum())
    mistakes = matrix.locator('svg .mark-rect path[fill="var(--wrong)"]')
    assert mistakes.count() == int((best.confusion > 0).sum() - (best.confusion.diagonal() > 0).sum())
    texts = matrix.locator("svg .role-mark.mark-text text").all_text_contents()
    assert sorted(map(int, texts)) == sorted(int(n) for n in best.confusion.ravel() if n)
    width = matrix.locator("svg").bounding_box()["width"]
    matrix.get_by_role("button", name="Larger").click()
    page.wait_for_function(
        "before => document.querySelector('details.run[open] .matrix svg').clientWidth > before", arg=width
    )
    matrix.get_by_role("button", name="Per cent").click()
    page.wait_for_function("document.querySelector('details.run[open] [data-shown=shares]').ariaPressed === 'true'")
    shares = best.confusion / best.confusion.sum(axis=1, keepdims=True)
    page.wait_for_function(
        "wanted => [...document.querySelectorAll('details.run[open] .matrix .role-mark.mark-text text')]"
        ".some(one => one.textContent == wanted)",
        arg=f"{100 * shares.max():.0f}",
    )


def test_another_pair_is_chosen_and_a_closed_run_opened(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    choice = page.locator("[data-choice]")
    assert choice.locator(".choice:visible").count() == 1
    choice.locator("select").select_option(index=2)
    assert choice.locator(".choice").nth(2).is_visible()
    page.wait_for_function("document.querySelectorAll('.choice')[2].querySelector('.chart').dataset.drawn")
    closed = page.locator("details.run:not([open])").first
    name = closed.locator("h2").inner_text()
    page.locator("nav").get_by_role("link", name=name, exact=True).click()
    opened = page.locator("details.run[open]", has=page.locator("h2", has_text=name)).first
    opened.locator(".matrix svg").wait_for()
    assert opened.locator("[data-chart^=curves] svg").count() == 3


def test_the_keyboard_reaches_the_results_first(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    unnamed = (
        "[...document.querySelectorAll('button, input, select, summary, [tabindex=\"0\"]')].filter(one => "
        "!(one.ariaLabel || one.textContent.trim() || one.labels?.length)).length"
    )
    assert page.evaluate(unnamed) == 0


def test_a_page_in_a_folder_has_its_pictures_beside_it(
    runs: list[Path], sources: ReportSources, tmp_path: Path, open_page: Open
) -> None:
    index = write_report(collect_results(runs[:1], sources=sources, at_most=4), tmp_path / "report")
    assert {file.suffix for file in (tmp_path / "report" / "assets").iterdir()} == {".jpeg", ".mp4"}
    page = open_page(index)
    image = page.locator(".gallery img").first
    image.scroll_into_view_if_needed()
    page.wait_for_function("one => one.naturalWidth > 100", arg=image.element_handle())
    page.locator(".play").first.click()
    page.wait_for_function("document.querySelector('video').currentTime > 0.1")


def test_labels_names_and_notes_that_hold_html_are_text(tmp_path: Path, open_page: Open) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    notes = {"notes": ["<b>note</b> </script>"], "epochs": 2, "seconds": 1.0}
    runs = [
        write_drawn_run(
            folder / name,
            drawn_scores(HOSTILE, [f"v{n}" for n in range(28)], strength=strength),
            entries={"summary": notes, "command": "har train '<script>alert(1)</script>'", "device": "<i>cpu</i>"},
        )
        for name, strength in (("<b>one", 1.5), ("var(--wrong)", 1.0))
    ]
    report = collect_results(runs, title="</title><script>window.hacked='title'</script>", at_most=4)
    page = open_page(write_report(report, tmp_path / "out.html", single_file=True))
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.wait_for_function("document.querySelectorAll('.chart:not([data-drawn])').length === 0")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main b:not(.sum b), main i:not(.dot), main script").count() == 0
    assert page.locator("script").count() == 3
    labels = page.locator(".matrix svg .role-axis-label text").all_text_contents()
    assert any(text.startswith("<img src=x") for text in labels)
    assert "49" not in labels
    page.locator(".matrix svg .role-mark.mark-text text").first.hover()
    page.locator("#vg-tooltip-element.visible").wait_for()
    assert page.locator("#vg-tooltip-element img").count() == 0


def test_101_classes_and_3783_videos_are_small_and_drawn(tmp_path: Path, open_page: Open) -> None:
    classes = [f"ActionNumber{n:03d}" for n in range(101)]
    scores = drawn_scores(classes, [f"v{n:04d}" for n in range(3783)], strength=3.5)
    run = write_drawn_run(tmp_path / "run", scores, epochs=200)
    out = write_report(collect_results([run]), tmp_path / "out.html", single_file=True)
    assert out.stat().st_size < 4_000_000
    page = open_page(out, width=1600)
    assert page.locator(".matrix svg .role-axis-label text").count() == 202
    assert page.evaluate("document.documentElement.scrollWidth") <= 1600
    fits = "one => one.scrollWidth <= one.clientWidth"
    assert page.locator(".plot-scroll").evaluate(fits)  # as a whole in a wide window
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
