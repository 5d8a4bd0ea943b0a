"""The short form of `benchmarks/faults.py`: kills of short commands, three writers, full disks, failing and hanging reads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from paths import ROOT, python_path


@pytest.mark.slow
def test_nothing_is_lost_wrong_or_silent() -> None:
    command = [sys.executable, "benchmarks/faults.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=python_path(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads(done.stdout)
    assert set(result["all"].values()) == {0}
    kills = {name: counts["tried"] for name, counts in result["faults"].items() if name.startswith("kills of ")}
    assert set(kills.values()) >= {1}
    assert len(kills) == 5
