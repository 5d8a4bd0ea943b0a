"""The errors this package raises on purpose; each is also the builtin that a caller would expect."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class HarError(Exception):
    """Base of every error that names a cause the user can act on. The CLI prints it and exits with code 1."""


class ManifestError(HarError, ValueError):
    """A manifest or split file is malformed, or does not fit the files it names."""


class SplitError(HarError, ValueError):
    """A protocol cannot be applied to these records, or a group stands on both sides of a split."""


class VideoError(HarError, OSError):
    """A video cannot be opened or decoded."""


class StoreError(HarError, OSError):
    """A feature store is missing, damaged, or lacks what was asked of it."""


class FeatureMismatchError(HarError, ValueError):
    """Two feature specifications differ where they have to agree; the message names the fields."""


class WeightsError(HarError, ValueError):
    """Weights are missing, damaged, or do not fit the net."""


class ExtractionError(HarError, RuntimeError):
    """A feature could not be computed (non-finite values, overflow of the stored dtype)."""


class DeviceError(HarError, ValueError):
    """This machine has no such device, or the device does not compute in this precision."""


class RunError(HarError, ValueError):
    """A run folder is missing, incomplete, or does not fit the data it is used on."""


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """End the program with one line on stderr and exit code 1 at a `HarError`, or a path that cannot be used."""
    try:
        yield
    except HarError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
