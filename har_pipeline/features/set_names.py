"""What feature sets are called: by themselves, by their users, and how one of them is chosen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from har_pipeline.core.errors import StoreError
from har_pipeline.core.objects import StorePath
from har_pipeline.core.records import FeatureSpec, check_video_id
from har_pipeline.core.text import did_you_mean
from har_pipeline.features.words import differences

# A set's own name, which ends in the hash of its spec.
SET_NAME = re.compile(r".+-[0-9a-f]{10}")


def spec_hash(values: Mapping[str, Any]) -> str:
    """Return the hash that a set of this spec, of any version, has at the end of its name."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def choose_feature_set(
    path: StorePath,
    prefix: str,
    sets: Sequence[str],
    spec_of: Callable[[str], FeatureSpec],
    names: Mapping[str, str],
    is_empty: Callable[[str], bool],
) -> str:
    """Return the one of `sets` that `prefix` means; see `FeatureStore.resolve`.

    path: told in the error. names: name -> set. is_empty: whether a set has no video, which the error tells.
    """
    if prefix in sets:
        return prefix
    if prefix in names:
        return names[prefix]
    named = {one for name, one in names.items() if name.startswith(prefix)}
    found = [one for one in sets if one.startswith(prefix) or one in named]
    if len(found) > 1:
        found = [one for one in found if spec_of(one).fit is None] or found
    if not sets:
        raise StoreError(f"{path} holds no feature set; make one with `har extract` or `har frames`")
    if len(found) != 1:
        told = differences({one: spec_of(one) for one in found})
        called = {one: repr(name) for name, one in names.items()}
        empty = {one: "no videos" for one in found or sets if is_empty(one)}
        facts = {
            one: ", ".join(filter(None, (called.get(one), told.get(one), empty.get(one)))) for one in found or sets
        }
        there = "; ".join(f"{one} ({fact})" if fact else one for one, fact in facts.items()) or "none"
        if not prefix and found:
            raise StoreError(f"{path} holds {len(found)} feature sets, choose one with --features: {there}")
        what = "no feature set starts" if not found else f"{len(found)} feature sets start"
        name_one = f"; `har features name {path} SET NAME` gives one a name to choose it by" if found else ""
        near = "" if found else did_you_mean(prefix, [*names, *sets])
        raise StoreError(f"{path}: {what} with {prefix!r}; {near}there are: {there}{name_one}")
    return found[0]


def check_set_name(name: str) -> str:
    """Return `name` if a feature set may have it: what may be a video's id, and does not end as a set's own name does.

    Raises: StoreError otherwise.
    """
    try:
        check_video_id(name)
    except ValueError as error:
        raise StoreError(f"the name {str(error).removeprefix('video_id ')}") from error
    if SET_NAME.fullmatch(name):
        raise StoreError(f"the name {name!r} ends as the names that feature sets have by themselves: give another one")
    return name
