"""Options: fields of a dataclass that carry their help text, bounds and panel, and the checks that follow from these."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The help text, bounds and panel of a field."""

    help: str
    # On the command line, if not the field's own.
    name: str | None = None
    # The heading under which `har COMMAND --help` lists it; None: with the options that have none.
    panel: str | None = None
    # Bounds of a number: `min` and `max` are allowed themselves, `above` and `below` are not.
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def range(self) -> str:
        """The bounds in words, `at least 0 and below 1`; empty without bounds."""
        bounds = (("at least", self.min), ("above", self.above), ("at most", self.max), ("below", self.below))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None and bound != math.inf)

    def allows(self, value: float) -> bool:
        """Return whether a number is within the bounds; NaN is in none."""
        return (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def option(
    default: Any,
    help: str,
    *,
    name: str | None = None,
    panel: str | None = None,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Return a dataclass field that is an option; see `Option`."""
    made = Option(help=help, name=name, panel=panel, min=min, max=max, above=above, below=below)
    return dataclasses.field(default=default, metadata={"option": made})


def seed_option() -> Any:
    """Return the field `seed`."""
    return option(0, "Random seed.", min=0)


def device_option() -> Any:
    """Return the field `device`."""
    return option("auto", "auto, cpu, cuda, cuda:N or mps; auto uses a GPU if there is one.")


@functools.cache
def options_of(kind: Any) -> dict[str, tuple[Option, Any]]:
    """Return each option of a dataclass with its type, by field name; its own fields before inherited ones."""
    hints = get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if "option" in field.metadata]
    fields.sort(key=lambda field: field.name not in kind.__annotations__)
    return {field.name: (field.metadata["option"], hints[field.name]) for field in fields}


def value_type(kind: Any) -> tuple[Any, bool]:
    """Return a type without its None, and whether it had one: (int, True) for `int | None`."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    (inner,) = (part for part in get_args(kind) if part is not type(None))
    return inner, True


def check_options(config: Any, error: type[Exception] = ValueError) -> None:
    """Check every option of a dataclass against its type's choices and its bounds.

    Raises: `error` naming the field. What fields must be to one another is the dataclass's own to check.
    """
    kind: Any = type(config)
    for name, (made, hint) in options_of(kind).items():
        value = getattr(config, name)
        inner, optional = value_type(hint)
        if value is None and optional:
            continue
        if get_origin(inner) is Literal and value not in get_args(inner):
            raise error(f"{name} must be {'None or ' * optional}one of {get_args(inner)}, not {value!r}")
        if inner in (int, float) and (not isinstance(value, numbers.Real) or (inner is int and value % 1 != 0)):
            raise error(f"{name} must be a {'whole ' * (inner is int)}number, not {value}")
        if made.range and not made.allows(value):
            raise error(f"{name} must be {made.range}, not {value}")
