"""Makes the pictures of docs/gallery.md: runs the commands that the page shows, then keeps small copies of what they drew.

python docs/gallery.py [FOLDER]: the folder to work in, a temporary one by default. Needs Chromium for the report.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image

from har_pipeline import VideoRecord, preview

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "pictures"
MAX_BYTES, MAX_WIDTH = 150_000, 1000
# Picture of the page -> what a command left: a picture, a video (shown as a filmstrip) or a page, of which the top is shown
# or, after a blank, the first element of a CSS selector.
SOURCES = {
    "gallery-video.png": "data/handwaving/person03_handwaving_d1_uncomp.avi",
    "gallery-confusion.png": "run/confusion.png",
    "gallery-training.png": "run/split0/training.png",
    "gallery-features.png": "features.png",
    "gallery-pca.png": "pca.png",
    "gallery-tsne.png": "tsne.png",
    "gallery-predictions.png": "predictions.png",
    "gallery-gains.png": "comparison/class_gains.png",
    "gallery-sweep.png": "sweep/sweep.png",
    "gallery-report.png": "report/index.html",
    "gallery-mistakes.png": "report/index.html .gallery",
    "gallery-flow.png": "flow.mp4",
    "gallery-trajectories.png": "trajectories.png",
    "gallery-points.png": "points.png",
}


def commands() -> Iterator[list[str]]:
    """Yield the commands of the page in their order, as words."""
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.splitlines():
            yield shlex.split(line)


def shown(path: Path, selector: str) -> Image.Image:
    """Return a picture of what a command left; selector: of a page."""
    if path.suffix == ".html":
        return screenshot(path, selector)
    if path.suffix == ".png":
        return Image.open(path).convert("RGB")
    record = VideoRecord(video_id="video", label="any", path=path)
    return Image.open(BytesIO(preview(record, clip=False).strip)).convert("RGB")


def screenshot(path: Path, selector: str) -> Image.Image:
    """Return the top of a page, or of an element of it, 1,000 px wide."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        browser = playwright.chromium.launch(
            executable_path=own if Path(own).exists() else shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": MAX_WIDTH, "height": 1100})
        page.goto(path.resolve().as_uri())
        if selector:
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            page.locator(selector).first.evaluate("one => one.scrollIntoView()")
        page.wait_for_timeout(3000)  # charts are drawn, and clips loaded, as they come into view
        data = page.screenshot()
        browser.close()
    return Image.open(BytesIO(data)).convert("RGB")


def write_small(picture: Image.Image, path: Path) -> None:
    """Write a PNG of at most `MAX_WIDTH` px and `MAX_BYTES` bytes, with as many colours as that allows."""
    if picture.width > MAX_WIDTH:
        picture = picture.resize(
            (MAX_WIDTH, round(picture.height * MAX_WIDTH / picture.width)), Image.Resampling.LANCZOS
        )
    for colours in (256, 128, 64, 32, 16):
        data = BytesIO()
        picture.quantize(colours).save(data, "PNG", optimize=True)
        if len(data.getvalue()) <= MAX_BYTES:
            break
    path.write_bytes(data.getvalue())
    print(f"{path.name}: {colours} colours, {len(data.getvalue()) // 1000} kB")


def main(work: Path) -> None:
    """Run the commands in a folder and write the pictures."""
    work.mkdir(parents=True, exist_ok=True)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for words in commands():
        print(shlex.join(words), flush=True)
        subprocess.run(words, cwd=work, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": programs})
    for name, source in SOURCES.items():
        path, _, selector = source.partition(" ")
        write_small(shown(work / path, selector), PICTURES / name)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
