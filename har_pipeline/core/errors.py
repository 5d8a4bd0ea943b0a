"""The errors this package raises on purpose, each also a builtin that a caller would expect, and how a command ends."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from har_pipeline.core.signals import signals_as_lines
from har_pipeline.core.text import printable

# What `files.partial_path` calls the file or folder `stem` + suffix while it is not complete.
_PARTIAL = re.compile(r"(?<![^/\s'\"])\.([^/]+?)\.partial-[^/\s]+?\.[0-9a-f]{12,32}(?![0-9a-f])(\.[^/\s.:'\"]+)?")


class HarError(Exception):
    """Base of every error whose cause the user can act on. The CLI prints it as one line and exits with code 1."""


class UsageError(HarError, ValueError):
    """What a command was given is wrong whatever its files hold, such as the name of no net. The CLI exits with code 2."""


class ManifestError(HarError, ValueError):
    """A manifest or split file is malformed, or does not fit the files it names."""


class SplitError(HarError, ValueError):
    """A protocol cannot be applied to these records, or a group is on both sides of a split."""


class VideoError(HarError, OSError):
    """A video cannot be opened or decoded."""


class StoreError(HarError, OSError):
    """A feature store is missing, damaged, or lacks what was asked of it."""


class FeatureMismatchError(HarError, ValueError):
    """Two feature specifications differ where they must agree; the message names the fields."""


class WeightsError(HarError, ValueError):
    """Weights are missing, damaged, or do not fit the net."""


class ExtractionError(HarError, RuntimeError):
    """Features could not be computed (non-finite values, overflow of the stored dtype, no worker process)."""


class DeviceError(HarError, ValueError):
    """This machine has no such device, or the device does not compute in this precision."""


class RunError(HarError, ValueError):
    """A run folder is missing, incomplete, or does not fit the data it is used on."""


def first_few(texts: Sequence[str], between: str = ", ") -> str:
    """Return a list for a message: at most five of its texts, then an ellipsis."""
    return between.join([*texts[:5], *["..."] * (len(texts) > 5)])


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """End the program with one line on stderr and exit code 1 at a `HarError` or an error of the operating system.

    At a `UsageError` the code is 2. Only where nobody reads our own output any more, as in `har models | head`, it ends
    without a line. Ctrl-C and SIGTERM end it as `signals_as_lines` says.
    """
    with signals_as_lines():
        stdout = _open_file(1)
        try:
            yield
            print(end="", flush=True)
        except UsageError as error:
            print(_line(str(error)), file=sys.stderr)
            sys.exit(2)
        except HarError as error:
            sys.exit(_line(str(error)))
        except OSError as error:
            _end(error)
        except SystemExit as end:
            # Typer ends silently at any broken pipe, whoever's it is; Rich only at ours, which it has then replaced.
            if isinstance(end.__context__, BrokenPipeError) and _open_file(1) == stdout:
                _end(end.__context__)
            raise
        except MemoryError as error:
            sys.exit(_line(f"not enough memory ({error})" if str(error) else "not enough memory"))


def _open_file(number: int) -> tuple[int, int] | None:
    """Return what tells the open file of a number from others; None if there is none."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _end(error: OSError) -> NoReturn:
    if isinstance(error, BrokenPipeError) and _stdout_is_broken():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        sys.exit(1)
    # Of a renaming that failed the user knows the new name; the old one is a temporary one.
    name = error.filename if error.filename2 is None else error.filename2
    where = "" if name is None else f"{os.fsdecode(name) if isinstance(name, str | bytes) else name}: "
    sys.exit(_line(f"{where}{error.strerror or str(error) or type(error).__name__}"))


def _line(text: str) -> str:
    """Return the line of an error, with the user's names in the place of temporary ones."""
    return printable(f"error: {_PARTIAL.sub(lambda found: found[1] + (found[2] or ''), text)}")


def _stdout_is_broken() -> bool:
    """Whether stdout is a pipe or socket that nobody reads any more; where the system cannot tell, it is taken to be."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    try:
        poll.register(sys.stdout, select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, TypeError):  # absent, closed, or no file
        return False
