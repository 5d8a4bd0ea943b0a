"""Every error that the user can act on ends in one line; a reader that has gone away ends in silence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from paths import python_path

from har_pipeline.core.errors import StoreError, errors_as_lines


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StoreError("s.zarr is damaged"), "error: s.zarr is damaged"),
        (FileNotFoundError(2, "No such file or directory", "m.csv"), "error: m.csv: No such file or directory"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (BrokenPipeError(32, "Broken pipe"), "error: Broken pipe"),
        (ConnectionResetError(), "error: ConnectionResetError"),
    ],
)
def test_errors_become_lines(error: Exception, line: str) -> None:
    with pytest.raises(SystemExit) as end, errors_as_lines():
        raise error
    assert end.value.code == line


def test_other_exits_stay_as_they_are() -> None:
    with pytest.raises(SystemExit) as end, errors_as_lines():
        sys.exit(2)
    assert end.value.code == 2


MODELS = """
import sys
from har_pipeline.cli import main
from har_pipeline.models import extractors
sys.argv = ["har", "models"]
"""
PRINT = """
from har_pipeline.core.errors import errors_as_lines
with errors_as_lines():
    for i in range(LINES):
        print(i)
"""


def run(code: str, *, read: bool) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of Python code; read False: nobody reads its stdout."""
    ours, theirs = os.pipe()
    if not read:
        os.close(ours)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=subprocess.PIPE, text=True, env=python_path()
    )
    os.close(theirs)
    errors = process.communicate()[1]
    text = ""
    if read:
        with open(ours) as stdout:
            text = stdout.read()
    return process.returncode, text, errors


def test_a_broken_pipe_within_a_command_is_named() -> None:
    fail = "def fail(): raise BrokenPipeError(32, 'Broken pipe')\nextractors.describe_nets = fail\nmain()"
    assert run(MODELS + fail, read=True) == (1, "", "error: Broken pipe\n")


HELP = "import sys; from har_pipeline.cli import main; sys.argv = ['har', 'train', '--help']; main()"


@pytest.mark.parametrize(
    "code", [HELP, MODELS + "main()", PRINT.replace("LINES", "99999"), PRINT.replace("LINES", "9")]
)
def test_a_reader_that_goes_away_is_no_error(code: str) -> None:
    assert run(code, read=False) == (1, "", "")


def test_ctrl_c_ends_with_a_line() -> None:
    fail = "def fail(): raise KeyboardInterrupt\nextractors.describe_nets = fail\nmain()"
    line = "interrupted: finished work is kept; run the same command again to continue\n"
    assert run(MODELS + fail, read=True) == (130, "", line)
