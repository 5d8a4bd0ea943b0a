"""The public names: light to import, all there, and enough for the experiments, the benchmarks and docs/python.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT, python_path
from video_files import make_video

import har_pipeline

SCRIPTS = sorted([*(ROOT / "pipelines").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import har_pipeline, sys; sys.exit(bool({'torch', 'numpy', 'zarr'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=python_path(), check=False).returncode == 0


def test_importing_the_package_takes_less_than_50_ms_of_cpu() -> None:
    code = "import time; start = time.process_time(); import har_pipeline; print(time.process_time() - start)"
    runs = [subprocess.check_output([sys.executable, "-c", code], env=python_path()) for _ in range(3)]
    assert min(float(seconds) for seconds in runs) < 0.05


@pytest.mark.parametrize("name", har_pipeline.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(har_pipeline, name) is not None


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_use_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.module.startswith("har_pipeline."), node.module
        elif isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("har_pipeline.")]


@pytest.mark.slow
def test_the_page_on_python_runs(tmp_path: Path) -> None:
    """As it stands, but for I3D's weights, which would have to be downloaded: another net reads the videos; and for epochs."""
    for label, seed in (("wave", 0), ("jump", 50)):
        for number in range(5):
            make_video(tmp_path / "VIDEOS" / label / f"{number}.avi", 12, seed=seed + number % 2)
    make_video(tmp_path / "new_video.mp4", 12, seed=50)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    script, *others = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert script.count('build_extractor("i3d")') == 1
    script = script.replace('build_extractor("i3d")', 'build_extractor("convnet3d", weights="random")')
    script = script.replace('["i3d"]', '["convnet3d"]')
    code = "\n".join([script, *others])
    for given, fewer in (('TrainConfig(head="lstm")', 'TrainConfig(head="lstm", epochs=3)'), ("epochs=20", "epochs=2")):
        assert code.count(given) == 1
        code = code.replace(given, fewer)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=python_path(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "10 videos, failed: {}" in done.stdout
    assert "new_video.mp4 (('" in done.stdout
