"""How Ctrl-C ends a program that does not listen, that starts processes, or that is told twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from paths import python_path

DEAF = """
import subprocess, sys, time
from har_pipeline.core.signals import signals_as_lines
with signals_as_lines():
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(600)"])
    said = False
    while True:
        try:
            if not said:  # in here, as the signal may come as soon as it is said
                said = True
                print(child.pid, flush=True)
            time.sleep(600)
        except BaseException:
            pass
"""
KEPT_BACK = """
import os, signal, threading, time
from har_pipeline.core.signals import interrupts_kept_back, signals_as_lines
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()  # one that may take the signal
with signals_as_lines():
    with interrupts_kept_back():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        print("done", flush=True)
    print("never")
"""
EVALUATED = """
import os, signal, time
from har_pipeline.core.signals import goes_on_when_repeated, signals_as_lines
def busy():
    print("busy", flush=True)
    time.sleep(600)
with signals_as_lines():
    goes_on_when_repeated()
    eval("busy()")
"""
SCRIPT = """
import time
from har_pipeline import errors_as_lines
with errors_as_lines():
    print("busy", flush=True)
    time.sleep(600)
"""
FAILING = """
import time
from har_pipeline.core.signals import signals_as_lines
with signals_as_lines():
    try:
        print("busy", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        raise SystemError("code in C made this of it")
"""


def start(code: str, *, ignored: bool = False) -> subprocess.Popen[str]:
    """Start a program. ignored: with SIGINT ignored, as a script starts what it leaves in the background."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=python_path(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
    )


def test_a_program_that_does_not_listen_is_ended_with_its_children() -> None:
    process = start(DEAF)
    assert process.stdout
    child = psutil.Process(int(process.stdout.readline()))
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert time.monotonic() - started > 2  # and long before it would have ended by itself, see the time limit above
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_signal_that_comes_while_processes_start_is_handled_after_that() -> None:
    process = start(KEPT_BACK)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out, errors) == (130, "done\n", "interrupted\n")


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(
    ("code", "line"),
    [
        (EVALUATED, "interrupted; run the same command again to go on\n"),
        (FAILING, "interrupted\n"),
        (SCRIPT, "interrupted\n"),
    ],
)
def test_ctrl_c_is_one_line_and_130(code: str, line: str, ignored: bool, times: int) -> None:
    process = start(code, ignored=ignored)
    assert process.stdout
    assert process.stdout.readline() == "busy\n"
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, line)
