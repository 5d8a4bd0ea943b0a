"""What loads no torch; which room imports which is a contract in pyproject.toml, checked by `make imports`."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "modules",
    [
        "har_pipeline.cli",
        "har_pipeline.video.clip_worker, har_pipeline.video.frame_worker",
        "har_pipeline.features.store",
        "har_pipeline.report.page, har_pipeline.report.gallery",
    ],
)
def test_light_modules_load_no_torch(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_loads_no_numpy() -> None:
    code = "import sys, har_pipeline.cli; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
