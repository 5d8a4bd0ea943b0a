"""The handcrafted extractors: their names, the descriptors that each computes, and how their features are written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from har_pipeline.core.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalExtractor:
    """An extractor that finds places in a video and describes each; it has no weights."""

    name: str
    source: str
    # What it finds, one and several, for messages.
    finds: str
    plural: str
    # Descriptor -> its number of values, in the order of a row.
    blocks: Mapping[str, int]
    # The descriptors of a row by default.
    default_layer: str
    # How it goes about it. Part of the feature spec: never reworded unless the numbers change.
    method: str


HANDCRAFTED = {
    one.name: one
    for one in (
        LocalExtractor(
            name="harris3d_hof",
            source="Laptev 2005, space-time interest points; Laptev et al. 2008, HOG and HOF",
            finds="interest point",
            plural="interest points",
            blocks={"hog": 72, "hof": 90},
            default_layer="hof",
            method="Harris-3D,sigma2 4..128,tau2 2 4,k 0.0005,threshold 1e-10;HOG 3x3x2x4,HOF 3x3x2x5 of DIS flow",
        ),
        LocalExtractor(
            name="idt",
            source="Wang and Schmid 2013, improved trajectories, without their human detector",
            finds="trajectory",
            plural="trajectories",
            blocks={"trajectory": 30, "hog": 96, "hof": 108, "mbh": 192},
            default_layer="trajectory+hog+hof+mbh",
            method="15 frames,grid 5 px,volume 32 px,2x2x3,DIS flow;camera motion by homography",
        ),
    )
}


def layer_blocks(name: str, layer: str) -> dict[str, int]:
    """Return the descriptors that a layer such as `hog+hof` joins, with their numbers of values, in the order of a row.

    Raises: UsageError if the extractor has no such descriptor, or one is named twice.
    """
    blocks, parts = HANDCRAFTED[name].blocks, layer.split("+")
    if not set(parts) <= set(blocks) or len(set(parts)) < len(parts):
        raise UsageError(f"{name} has no layer {layer!r}; it has: {', '.join(blocks)}, or several joined by +")
    return {block: size for block, size in blocks.items() if block in parts}
