"""The command `har` as a user has it: `har` in this process, which has torch loaded already, `har_process` in its own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from har_pipeline.cli import main


def har(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `har` in a folder, with its streams and its log captured; fails if it does not end with `code`."""
    out, err, given = io.StringIO(), io.StringIO(), [*map(str, arguments)]
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["har", *given]),
        mock.patch.object(logging.root, "handlers", []),
    ):
        try:
            main()
            ended: int | str = 0
        except SystemExit as end:  # as the interpreter takes it: a text goes to stderr and stands for 1
            ended = end.code or 0
    text = err.getvalue()
    if isinstance(ended, str):
        text, ended = f"{text}{ended}\n", 1
    return _checked(subprocess.CompletedProcess(["har", *given], ended, out.getvalue(), text), code)


def har_process(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `har` in a process of its own."""
    call = [sys.executable, "-c", "from har_pipeline.cli import main; main()", *map(str, arguments)]
    return _checked(subprocess.run(call, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ), code)


def _checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == code, f"{done.args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done
