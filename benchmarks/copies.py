"""Starts the installed `har` again and again at small cost: each process is a copy of one that has loaded everything.

For what is started in order to be killed: a kill while Python imports its libraries tells nothing. POSIX only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Reads one request a line and answers each with a line: {"start": [arguments], "out": file, "err": file, "limits": {name:
# value}} with the process id of a copy of itself that is `har` with these arguments, in a process group of its own;
# {"wait": id} with its exit status, null while it runs. `getattr` loads the module that a public name comes from.
_SOURCE = """
import atexit, gc, json, os, resource, runpy, sys, threading
import har_pipeline
import zarr
for name in har_pipeline.__all__:
    getattr(har_pipeline, name)
gc.freeze()

for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        child, status = os.waitpid(request["wait"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if child else None), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    os.setpgid(0, 0)
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(request[key], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for key in ("out", "err")]
    for number, file in enumerate(files):
        os.dup2(file, number)
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    sys.argv, code = ["har", *request["start"]], 0
    try:
        runpy.run_module("har_pipeline", run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # All that the interpreter does at its end but to free its objects, for which it would copy the memory of all of them.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


@dataclass
class Copy:
    """One command that was started."""

    copies: Copies
    command: tuple[str, ...]
    pid: int
    out: Path
    err: Path
    _code: int | None = None

    def code(self) -> int | None:
        """Return the exit code, or the negative number of the signal that ended it; None while it runs."""
        if self._code is None:
            self._code = self.copies.ask({"wait": self.pid})
        return self._code

    def wait(self, seconds: float = 300) -> int | None:
        """Wait for the end and return `code`; None if it had to be killed for taking longer."""
        end = time.monotonic() + seconds
        while self.code() is None:
            if time.monotonic() > end:
                self.kill()
                return None
            time.sleep(0.003)
        return self.code()

    def kill(self) -> int:
        """Send SIGKILL to it, not to its children, and return its exit code, which is another if it had ended before."""
        if self.code() is None:
            os.kill(self.pid, signal.SIGKILL)
        while (code := self.code()) is None:
            time.sleep(0.003)
        return code

    def orphans_end(self, seconds: float = 20) -> bool:
        """Whether the processes that it had started end by themselves; those that do not are killed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return False

    def text(self) -> str:
        """Return all that it wrote."""
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")


@dataclass
class Copies:
    """Gives copies of a process that has loaded har_pipeline; what they write goes to files in `folder`."""

    folder: Path
    process: subprocess.Popen[str]
    count: int = field(default=0)

    def ask(self, request: Mapping[str, object]) -> Any:
        """Send a request and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, *arguments: object, limits: Mapping[str, int] | None = None) -> Copy:
        """Start `har` with these arguments. limits: of `resource.setrlimit`, by name."""
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        command = tuple(str(argument) for argument in arguments)
        pid = self.ask({"start": command, "out": str(out), "err": str(err), "limits": limits or {}})
        return Copy(self, command, pid, out, err)


@contextlib.contextmanager
def started_copies(folder: Path) -> Iterator[Copies]:
    """Start the process that is copied, one thread per process."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _SOURCE], env=environment, stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield Copies(folder, process)
        assert process.stdin is not None
        process.stdin.close()
