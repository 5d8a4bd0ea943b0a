"""A headless browser, and a page that opens in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Playwright's Chromium, or the one of the system; without one the tests are skipped, by `make browser-test` they fail."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        path = str(own) if own.exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            absent = pytest.fail if os.environ.get("HAR_BROWSER") == "required" else pytest.skip
            absent("no Chromium: apt install chromium, or python -m playwright install chromium")
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file at a width and a colour scheme; at the end there was no error, warning or request beside the page's own."""
    problems: list[str] = []
    pages = []

    def opened(path: Path, *, width: int = 1200, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda said: problems.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda one: None if one.url.startswith(("file:", "data:")) else problems.append(f"request {one.url}"),
        )
        page.goto(path.resolve().as_uri())
        page.wait_for_function(
            "[...document.querySelectorAll('#overview .chart, details.run[open] .chart')]"
            ".every(one => !one.offsetParent || one.dataset.drawn)"
        )
        return page

    yield opened
    for page in pages:
        page.close()
    assert problems == []
