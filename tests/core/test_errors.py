"""Every error that the user can act on ends in one line; a reader that has gone away ends in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import python_path

from har_pipeline.core.errors import StoreError, UsageError, errors_as_lines
from har_pipeline.core.files import new_file, write_text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StoreError("s.zarr is damaged"), "error: s.zarr is damaged"),
        (FileNotFoundError(2, "No such file or directory", "m.csv"), "error: m.csv: No such file or directory"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (BrokenPipeError(32, "Broken pipe"), "error: Broken pipe"),
        (ConnectionResetError(), "error: ConnectionResetError"),
        (
            FileNotFoundError(2, "No such file or directory", "a\x1b[2Jb\nc"),
            r"error: a\x1b[2Jb\nc: No such file or directory",
        ),
        (StoreError("2 are wrong:\n  one\n  \x9btwo"), "error: 2 are wrong:\n  one\n  \\x9btwo"),
        (
            FileNotFoundError(2, "No such file or directory", b"\xff.csv"),
            r"error: \udcff.csv: No such file or directory",
        ),
    ],
)
def test_errors_become_lines(error: Exception, line: str) -> None:
    with pytest.raises(SystemExit) as end, errors_as_lines():
        raise error
    assert end.value.code == line


@pytest.mark.parametrize("name", ["m.csv", "no_suffix", "a.tar.gz", "my clip.mp4"])
def test_lines_name_the_users_file_and_no_temporary_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit) as end, errors_as_lines():
        write_text(tmp_path / name, "text")
    assert end.value.code == f"error: {tmp_path / name}: Is a directory"
    with pytest.raises(SystemExit) as end, errors_as_lines():
        write_text(tmp_path / "none" / name, "text")
    assert end.value.code == f"error: {tmp_path / 'none' / name}: No such file or directory"
    with pytest.raises(SystemExit) as end, errors_as_lines(), new_file(tmp_path / name) as partial:
        raise StoreError(f"cannot write {partial}: no space")
    assert end.value.code == f"error: cannot write {tmp_path / name}: no space"


def test_other_exits_stay_as_they_are() -> None:
    with pytest.raises(SystemExit) as end, errors_as_lines():
        sys.exit(2)
    assert end.value.code == 2


MODELS = """
import sys
from har_pipeline.cli import main
from har_pipeline.cli import models
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
    fail = "def fail(): raise BrokenPipeError(32, 'Broken pipe')\nmodels.net_rows = fail\nmain()"
    assert run(MODELS + fail, read=True) == (1, "", "error: Broken pipe\n")


HELP = "import sys; from har_pipeline.cli import main; sys.argv = ['har', 'train', '--help']; main()"


@pytest.mark.parametrize(
    "code", [HELP, MODELS + "main()", PRINT.replace("LINES", "99999"), PRINT.replace("LINES", "9")]
)
def test_a_reader_that_goes_away_is_no_error(code: str) -> None:
    assert run(code, read=False) == (1, "", "")


def test_where_the_system_cannot_tell_a_broken_pipe_ends_in_silence() -> None:
    """Not every Python has `select.poll`."""
    assert run("import select; del select.poll\n" + PRINT.replace("LINES", "99999"), read=False) == (1, "", "")


def test_ctrl_c_ends_with_a_line() -> None:
    fail = "def fail(): raise KeyboardInterrupt\nmodels.net_rows = fail\nmain()"
    assert run(MODELS + fail, read=True) == (130, "", "interrupted\n")


def test_a_usage_error_is_a_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, errors_as_lines():
        raise UsageError("unknown net 'a\x1bb'")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: unknown net 'a\\x1bb'\n"
