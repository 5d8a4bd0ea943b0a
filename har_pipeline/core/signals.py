"""Ctrl-C and the termination signal: they end a command at once, with one line, its exit code and no child left.

Imports little, so that a command can be interrupted while it still imports the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

# Exit codes of a program that ends because of SIGINT and SIGTERM.
INTERRUPTED, TERMINATED = 130, 143
# What is cleaned up after Ctrl-C has this long: code in C notices nothing before it returns.
GRACE_S = 3.0
_WORDS = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, as an exception of its own: after Python's passed through `eval`, a program ends by the signal instead."""


class _State:
    """What is known of signals; there is one, as they come to the process as a whole. A dataclass would import much."""

    def __init__(self) -> None:
        self.handled = False  # by `signals_as_lines`
        self.kept_back = False
        self.waiting: int | None = None  # a signal that came meanwhile
        self.interrupted = False
        self.said = False  # the line of the end
        self.goes_on = False


_state = _State()


def goes_on_when_repeated() -> None:
    """Let the line of an interruption say that the same command, run again, goes on with what is done so far."""
    _state.goes_on = True


@contextlib.contextmanager
def signals_as_lines() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the program with one line on stderr, and exit codes 130 and 143.

    SIGINT counts even where it was ignored at the start, as in a script's background. Nested contexts are one.
    """
    if _state.handled:
        yield
        return
    _state.handled, _state.said, _state.goes_on = True, False, False
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with _blocked():  # a thread inherits what is blocked
        threading.Thread(target=_end_by_force, args=(reader,), daemon=True).start()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, _on_signal)
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        # Typer has made its 130 of an interruption, and code in C some other error.
        if _state.interrupted or isinstance(error, KeyboardInterrupt) or code == INTERRUPTED:
            code = INTERRUPTED
        if code not in _WORDS:
            raise
        print(_line(code), file=sys.stderr, flush=True)
        _state.said = True
        raise SystemExit(code) from None
    finally:
        _state.handled = False
        if not _state.interrupted:  # else what comes now is ignored until the end
            signal.set_wakeup_fd(wakeup)
            os.close(writer)
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def interrupts_kept_back() -> Iterator[None]:
    """Start child processes in this context, and neither Ctrl-C nor SIGTERM does anything to them: their parent ends them.

    Else each would print a traceback of its own, even while it imports. A signal that comes meanwhile is handled when the
    context ends: a child that has read only half of what it needs would print one too.
    """
    if sys.platform == "win32" or _state.kept_back:
        yield
        return
    try:
        with _blocked():
            # Another thread may take the signal, and then it comes to this one all the same.
            _state.kept_back = True
            try:
                yield
            finally:
                _state.kept_back = False
    finally:
        number, _state.waiting = _state.waiting, None
        if number is not None:
            _on_signal(number, None)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _state.kept_back:
        _state.waiting = number
        return
    if number == signal.SIGTERM:
        sys.exit(TERMINATED)
    _state.interrupted = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the second one would interrupt the cleaning up after the first
    # Whatever breaks now in other threads and destructors is no news.
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None
    raise Interrupted


def _line(code: int) -> str:
    return _WORDS[code] + "; run the same command again to go on" * _state.goes_on


def _end_by_force(reader: int) -> None:
    """Wait for Ctrl-C, and end the program and its children if it is still there `GRACE_S` later. Runs in a thread."""
    with open(reader, "rb", buffering=0) as signals:
        while number := signals.read(1):
            if number[0] == signal.SIGINT:
                break
        else:
            return  # the program went on without us
    time.sleep(GRACE_S)
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    if not _state.said:
        shown_cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a bar hides it
        with contextlib.suppress(OSError):
            os.write(2, f"{shown_cursor}{_line(INTERRUPTED)}\n".encode())  # the main thread may hold `sys.stderr`
    os._exit(INTERRUPTED)
