"""The command `har` as a user has it.

`har` runs it in this process, which has torch loaded already, `har_process` in one of its own, and `har_starts` in many,
of which each is a copy of one that has loaded everything: for commands that are killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from paths import python_path

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


# Reads one request a line and answers each with a line: {"start": [arguments], "out": file} with the process id of a copy of
# itself that runs the command; {"wait": id, "flags": of waitpid} with what waitpid returns.
_COPIES = """
import json, os, sys
from har_pipeline.cli import main
import har_pipeline.features.extract, har_pipeline.models.extractors, har_pipeline.training.jobs

for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        print(json.dumps(os.waitpid(request["wait"], request["flags"])), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    files = [os.open(os.devnull, os.O_RDONLY), os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)]
    for number, file in enumerate([*files, os.open(os.devnull, os.O_WRONLY)]):
        os.dup2(file, number)
    sys.argv = ["har", *request["start"]]
    main()
    sys.exit()
"""


@dataclass
class Started:
    """A command that runs in a process of its own."""

    pid: int
    out: Path
    _ask: Callable[[object], object]
    _status: int | None = None

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._wait(os.WNOHANG) is None

    def wait(self) -> int:
        """Return its exit code, or the signal that ended it, as a negative number."""
        status = self._wait(0)
        assert status is not None
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> int:
        """Kill it, unless it has ended; as `wait`."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def _wait(self, flags: int) -> int | None:
        if self._status is None:
            pid, status = self._ask({"wait": self.pid, "flags": flags})  # type: ignore[misc]
            self._status = status if pid else None
        return self._status


@contextlib.contextmanager
def har_starts(folder: Path) -> Iterator[Callable[..., Started]]:
    """Give a function that starts `har` with its arguments; what the commands print goes to files in `folder`."""
    count = 0
    with subprocess.Popen(
        [sys.executable, "-c", _COPIES],
        env={**python_path(), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(request: object) -> object:
            print(json.dumps(request), file=requests, flush=True)
            return json.loads(answers.readline())

        def start(*arguments: object) -> Started:
            nonlocal count
            count += 1
            out = folder / f"out{count}.txt"
            pid = ask({"start": [*map(str, arguments)], "out": str(out)})
            assert isinstance(pid, int)
            return Started(pid, out, ask)

        yield start
        requests.close()
