"""docs/three_videos.ipynb runs from its first cell to the report, and holds no outputs."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import nbclient
import nbformat
import numpy as np
import pytest
from paths import ROOT

import har_pipeline

PATH = ROOT / "docs" / "three_videos.ipynb"
INTERVAL = r"\d+\.\d % \(\d+\.\d to \d+\.\d\)"

# Cell -> what it prints, as a regular expression, and its displays: type and count.
EXPECTED: dict[str, tuple[str, dict[str, int]]] = {
    "imports": ("", {}),
    "render": (r"18 sequences in 3 files\n", {}),
    "filmstrips": ("", {"image/jpeg": 3}),
    "manifest": (r"video_id,path,label,subject,start_frame,end_frame\nperson1_0_walking,person1.mp4,walking,.*", {}),
    "check": (r".*18.*", {}),
    "extract": (r".*efficientnet_lite0-rgb-\w+.*18.*", {}),
    "sequence": ("", {"image/png": 1}),
    "projection": ("", {"image/png": 1}),
    "train": (r".*run/split0.*run/split1.*run/split2.*", {}),
    "evaluate": (rf"video accuracy {INTERVAL}\nconfusion matrix.*\n(.*\[+ *\d+ +\d+ +\d+\]+\n){{3}}.*", {}),
    "gallery": (r"(person\d_\d_\w+ (right|wrong) \[.*\]\n){3}", {"text/html": 1}),
    "report": (r".*written: report.html\n.*", {}),
    "link": (r"\d\.\d MB\n", {"text/html": 1}),
}


def read_notebook() -> Any:
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_notebook_holds_no_outputs() -> None:
    notebook = read_notebook()
    for cell in notebook.cells:
        assert not cell.get("attachments")
        if cell.cell_type == "code":
            assert cell.outputs == [], "clear the outputs before committing it"
            assert cell.execution_count is None
    assert [cell.metadata.tags[0] for cell in notebook.cells if cell.cell_type == "code"] == list(EXPECTED)
    assert PATH.stat().st_size < 20_000


def test_the_notebook_uses_public_names_only() -> None:
    for cell in read_notebook().cells:
        if cell.cell_type == "code":
            for name in re.findall(r"\bhar\.(\w+)", cell.source):
                assert name in har_pipeline.__all__, name


@pytest.mark.slow
# Of the programs that run notebooks, not of ours; the kernel is a process of its own.
@pytest.mark.filterwarnings("default")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its bash cells find the command of this environment, and it writes nothing into the user's folders.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Whatever asks the network fails at once.
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    work = tmp_path / "work"
    work.mkdir()
    notebook = read_notebook()
    for cell in notebook.cells:  # what is shown needs no good head
        cell.source = cell.source.replace("har train ", "har train --epochs 5 ")
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            check_outputs(cell.metadata.tags[0], cell.outputs)
    page = (work / "report.html").read_text(encoding="utf-8")
    assert "person1" in page
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S+", "", page)


def check_outputs(name: str, outputs: list[Any]) -> None:
    printed, displays = EXPECTED[name]
    text = "".join(one.text for one in outputs if one.output_type == "stream" and one.name == "stdout")
    assert re.fullmatch(printed, text, re.DOTALL), f"{name}: {text}"
    counts: dict[str, int] = {}
    for one in outputs:
        if one.output_type == "display_data":
            kind = next(kind for kind in ("image/png", "image/jpeg", "text/html") if kind in one.data)
            counts[kind] = counts.get(kind, 0) + 1
            if kind.startswith("image"):
                data = np.frombuffer(base64.b64decode(one.data[kind]), np.uint8)
                picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
                assert picture is not None
                height, width = picture.shape[:2]
                assert (height >= 100, width >= 500) == (True, True), f"{name}: {width}x{height} px"
        assert one.output_type != "error"
    assert counts == displays, name
