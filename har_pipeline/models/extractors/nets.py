"""The list of nets, collected from the `NET` or `NETS` of this package's modules, and a description of each.

A new net is a new module here, or a new entry in the `NETS` of one. Its name is the first argument there, as a literal: the
command line reads it without importing the module.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from har_pipeline.core.records import ClipSpec
from har_pipeline.models.extractors.base import Net
from har_pipeline.models.net_names import check_net_name


@cache
def all_nets() -> dict[str, Net]:
    """Return name -> net: modules of one net first, then families, the smaller ones first, modules by name."""
    families: list[tuple[Net, ...]] = []
    for found in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = import_module(f"{__package__}.{found.name}")
        families.append(module.NETS if hasattr(module, "NETS") else (module.NET,) if hasattr(module, "NET") else ())
    return {net.name: net for family in sorted(families, key=len) for net in family}


def find_net(name: str) -> Net:
    """Return the net of that name. Raises: ExtractionError listing the known ones."""
    check_net_name(name)
    return all_nets()[name]


def describe_nets() -> list[dict[str, Any]]:
    """Return one row for each net and set of weights: what `har models` prints and docs/extractors.md shows."""
    rows: list[dict[str, Any]] = []
    for net in all_nets().values():
        for name, weights in net.weights.items():
            read = net.inputs[weights.stream]
            layers = {k: dim for k, dim in net.layers.items() if weights.layers is None or k in weights.layers}
            rows.append(
                {
                    "net": net.name,
                    "stream": weights.stream,
                    "input": f"{read.clips.clip_len}x{read.shape[0]}x{read.shape[1]}",
                    "clips": _describe_clips(read.clips),
                    "resize": read.resize,
                    "layers": layers,
                    "default_layer": net.default_layer,
                    "gmacs_per_clip": net.gmacs,
                    "weights": name,
                    "trained_on": weights.trained_on,
                    "licence": weights.licence,
                    "url": weights.url,
                    "sha256": weights.sha256,
                    "md5": weights.md5,
                    "preprocess": weights.preprocess.describe(),
                    "source": net.source,
                }
            )
    return rows


def _describe_clips(clips: ClipSpec) -> str:
    count = "all" if clips.num_clips is None else str(clips.num_clips)
    frames = "frame" if clips.clip_len == 1 else f"{clips.clip_len} frames"
    steps = f", every {clips.frame_interval}" if clips.frame_interval > 1 else ""
    stride = f", a clip every {clips.clip_stride}" if clips.sampling == "dense" else ""
    return f"{clips.sampling}, {count} x {frames}{steps}{stride}"
