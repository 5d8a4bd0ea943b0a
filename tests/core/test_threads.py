"""Idle threads sleep, unless the environment says how they wait; it must be settled before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from har_pipeline.core.threads import SPINS, let_idle_threads_sleep

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_the_environments_own_choice_stays(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spins: str | None
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    let_idle_threads_sleep()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_a_command_settles_it_before_torch_is_loaded() -> None:
    code = """
import os, sys
import har_pipeline.cli as cli
assert "torch" not in sys.modules
def seen():
    print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
cli.app = seen
cli.main()
"""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [SPINS, "False"]
