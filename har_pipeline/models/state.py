"""What a module's state dict holds against what a file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from har_pipeline.core.errors import first_few


def key_differences(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> str:
    """Return which keys are missing, unexpected, or of another shape, some of each by name; empty if none is.

    wanted, found: key -> shape.
    """
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [
        f"{key}: {tuple(found[key])}, not {tuple(shape)}"
        for key, shape in wanted.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    named = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return "; ".join(f"{len(keys)} {word} ({first_few(keys)})" for word, keys in named if keys)
