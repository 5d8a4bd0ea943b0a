"""The axes of a sweep: options and the values that they take; imports no torch, so that the CLI can check them first."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from har_pipeline.core.errors import UsageError
from har_pipeline.core.text import did_you_mean
from har_pipeline.training.options import TrainConfig

Value = int | float | str | bool | None
FEATURES, PCA = "features", "pca"

# Seeds are repeats, the device is no property of a result, and streams of one run are no values of an axis.
NOT_SWEPT = ("seed", "device", "mid_fusion", "fusion_op")


@dataclass(frozen=True, slots=True)
class Axis:
    """An option and the values it takes.

    A single value is fixed, several are swept; if all axes have one, all are swept: a sweep of one point.
    """

    # A field of `TrainConfig`, `features` (names of feature sets), or `pca` (dimensions).
    name: str
    values: tuple[Value, ...]


def parse_axis(name: str, text: str) -> Axis:
    """Return the axis of an option from its comma-separated values, such as `0,0.5`; `none` where an option may be None.

    Raises: UsageError if the option is unknown or cannot be swept, or a value is not of its type.
    """
    hints = get_type_hints(TrainConfig)
    kind = {FEATURES: str, PCA: int}.get(name) or hints.get(name)
    if kind is None or name in NOT_SWEPT:
        possible = [option for option in (*hints, FEATURES, PCA) if option not in NOT_SWEPT]
        raise UsageError(f"{name!r} cannot be swept; {did_you_mean(name, possible)}these can: {', '.join(possible)}")
    return Axis(name, tuple(_parse(name, part.strip(), kind) for part in text.split(",")))


def _parse(name: str, text: str, kind: object) -> Value:
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if text.lower() == "none" and type(None) in kinds:
        return None
    kind = kinds[0]
    if get_origin(kind) is Literal and text in get_args(kind):
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is str and text:
        return text
    if kind in (int, float):
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            pass
    wanted = f"one of {get_args(kind)}" if get_origin(kind) is Literal else getattr(kind, "__name__", str(kind))
    near = did_you_mean(text, get_args(kind)) if get_origin(kind) is Literal else ""
    raise UsageError(f"{name}: {text!r} is not {wanted}{f'; {near.strip()}' * bool(near)}")
