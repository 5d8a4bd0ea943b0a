"""The names of the nets, and what is known of them, without importing their modules, which would load torch.

The names are read from the source of the modules, the rest from nets.json beside them, which `docs/generate.py` writes.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import UsageError
from har_pipeline.core.text import unknown
from har_pipeline.video.local.spec import HANDCRAFTED

_MODULES = Path(__file__).parent / "extractors"
NETS_JSON = _MODULES / "nets.json"


# Prefix of the names of nets that another library has, as in `timm:resnet18` -> the library.
FAMILIES = {"timm": "timm", "hf": "transformers"}


def in_family(name: str) -> tuple[str, str] | None:
    """Return the prefix of a name and the rest: `timm:resnet18`, or `timm-resnet18` as a feature spec has it; None: our net.

    What follows `hf:` is a folder or a name on the hub, what follows `hf-` the kind of the model, whose folder is its weights.
    """
    prefix, mark, rest = name.partition(":") if ":" in name else name.partition("-")
    return (prefix, rest) if mark and rest and prefix in FAMILIES else None


def net_rows() -> list[dict[str, Any]]:
    """Return what `extractors.describe_nets` returns; slowly where a net was added since nets.json was written."""
    rows: list[dict[str, Any]] = json.loads(NETS_JSON.read_text(encoding="utf-8"))
    if {row["net"] for row in rows} == set(net_names()):
        return rows
    from har_pipeline.models.extractors import describe_nets

    return describe_nets()


@cache
def net_names() -> tuple[str, ...]:
    """Return the names of all nets, sorted."""
    return tuple(sorted(net_modules()))


@cache
def net_modules() -> dict[str, str]:
    """Return net -> module: the first argument, or `name`, of each call in the modules' `NET` and `NETS`."""
    sources = ((path.stem, path.read_text(encoding="utf-8")) for path in _MODULES.glob("*.py"))
    return {name: module for module, source in sources for name in _names_in(ast.parse(source))}


def _names_in(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in ("NET", "NETS"):
            value: Any = node.value  # type: ignore[attr-defined]
            for call in getattr(value, "elts", [value]):
                named = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
                yield ast.literal_eval((*call.args, *named)[0])


def check_net_name(name: str) -> None:
    """Raise UsageError listing the nets, if there is none of that name."""
    if in_family(name) is None and name not in net_names():
        raise UsageError(f"{unknown('net', name, net_names())}, timm:NAME, hf:NAME_OR_FOLDER")


def check_extractor_name(name: str) -> None:
    """Raise UsageError listing the nets and the handcrafted extractors, if there is none of that name."""
    names = (*net_names(), *HANDCRAFTED)
    if in_family(name) is None and name not in names:
        raise UsageError(f"{unknown('extractor', name, names)}, timm:NAME, hf:NAME_OR_FOLDER")
