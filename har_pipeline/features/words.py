"""Feature sets in words: in what those of one store differ, which their names do not tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from har_pipeline.core.records import ClipSpec, EncodingSpec, FeatureSpec, ReductionSpec, TrainedOn

# A set's own name begins with these.
_IN_THE_NAME = ("extractor", "stream")
# Where one of the others differs too, it says more.
_FOLLOWS = {"feature_dim": ("layer", "reduction", "encoding", "tokens"), "preprocess": ("weights",)}
_HASH_DIGITS = len("sha256:") + 10


def differences(specs: Mapping[str, FeatureSpec]) -> dict[str, str]:
    """Return name -> what is different of this set among these: `uniform, 10 clips of 64 frames`; empty if nothing is."""
    fields = [field.name for field in dataclasses.fields(FeatureSpec) if field.name not in (*_IN_THE_NAME, "clips")]
    differing = [field for field in fields if len({getattr(spec, field) for spec in specs.values()}) > 1]
    told = [field for field in differing if not set(_FOLLOWS.get(field, ())) & set(differing)]
    clips = _differing_clips({name: spec.clips for name, spec in specs.items()})
    return {
        name: ", ".join(filter(None, (clips[name], *(_words(field, getattr(spec, field)) for field in told))))
        for name, spec in specs.items()
    }


def among_their_nets(specs: Mapping[str, FeatureSpec]) -> dict[str, str]:
    """Return name -> what is different of this set among those whose own names differ in the hash only."""
    kinds = {name: (spec.extractor, spec.stream, spec.fit.title if spec.fit else "") for name, spec in specs.items()}
    found: dict[str, str] = {}
    for kind in dict.fromkeys(kinds.values()):
        found |= differences({name: spec for name, spec in specs.items() if kinds[name] == kind})
    return found


def _differing_clips(clips: Mapping[str, ClipSpec]) -> dict[str, str]:
    """Return name -> its clips in words, with the fields that their description leaves out where it tells too little."""
    kinds, said = set(clips.values()), {one.describe() for one in clips.values()}
    if len(kinds) < 2:
        return dict.fromkeys(clips, "")
    fields = [field.name for field in dataclasses.fields(ClipSpec)] if len(said) < len(kinds) else []
    more = [name for name in fields if len({getattr(one, name) for one in kinds}) > 1]
    told = [name for name in more if name in ("padding", "clip_stride", "frame_interval")]
    return {
        key: ", ".join(
            [one.describe()] * (len(said) > 1) + [f"{name.replace('_', ' ')} {getattr(one, name)}" for name in told]
        )
        for key, one in clips.items()
    }


def _words(field: str, value: Any) -> str:
    """Return the value of a spec's field in words."""
    if isinstance(value, ReductionSpec | EncodingSpec):
        return f"{value.title} of {value.source}, fitted on {value.protocol} split {value.split}"
    if isinstance(value, TrainedOn):
        return f"net trained on {value.protocol} split {value.split}"
    if value is None or value == "":
        return {"fps": "own frame rate"}.get(field, "")
    texts = {
        "layer": "layer {}",
        "weights": f"weights {{:.{_HASH_DIGITS}}}",
        "feature_dim": "{:,} values",
        "fps": "{:g} frames/s",
        "resize_method": "resized by {}",
        "decoder": "decoded by {}",
        "precision": "computed in {}",
        "dtype": "stored in {}",
        "tokens": "{:,} tokens a clip" if value else "one row a clip",
    }
    return texts.get(field, "{}").format(value)
