"""What stands in a store where videos do, has no zarr.json, and so is none."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from har_pipeline.core.files import LEASE_DAYS
from har_pipeline.core.objects import ObjectPath, remove_abandoned
from har_pipeline.features.places import META, entries, is_there
from har_pipeline.features.set_names import SET_NAME
from har_pipeline.features.store import REDUCTION, FeatureStore, writing_to

# What a node has beside its own zarr.json: chunks, of a fit arrays with theirs; and what `ObjectPath.now` is asked by.
_PUT = re.compile(r"(?:[^/]+/)?(?:zarr\.json|c(?:[./]\d+)+)(?:\.[0-9a-f]{16})?")


def leftovers(store: FeatureStore, feature_sets: Sequence[str] | None = None) -> list[str]:
    """Return the paths in the store of what is left, sorted.

    In a folder: any folder in a feature set without zarr.json. In object storage: what writers put who died before their
    commit, of features and fits, if nothing of it was put for `LEASE_DAYS`. feature_sets: of these only; None: of all, in
    object storage of those that are gone, too.
    """
    root = store.path
    if isinstance(root, ObjectPath):
        limit = time.time() - LEASE_DAYS * 86400
        return [node for node, files in _uncommitted(root, feature_sets).items() if max(files.values()) < limit]
    videos = {name: set(store.video_ids(name)) for name in feature_sets or store.feature_sets()}
    others = [f"{name}/{one}" for name, known in videos.items() for one in entries(root / name) - known]
    folders = [node for node in others if "/." not in node and (root / node).is_dir()]
    return sorted(node for node in folders if not is_there(root / node / META))  # it may have come meanwhile


def remove_leftovers(store: FeatureStore, feature_sets: Sequence[str] | None = None) -> list[str]:
    """Delete what `leftovers` returns of a store in object storage, and return it, but for what may be written now.

    It takes some minutes, see `objects.remove_abandoned`. In a folder nothing is deleted: it may be somebody's, and a video
    of that name replaces it.
    """
    root = store.path
    if not isinstance(root, ObjectPath):
        return []
    found, left = _uncommitted(root, feature_sets), leftovers(store, feature_sets)
    with writing_to(root):
        nodes = {node: sorted(found[node]) for node in left if node in found}
        return remove_abandoned(root, nodes, META, LEASE_DAYS * 86400)


def _uncommitted(root: ObjectPath, feature_sets: Sequence[str] | None) -> dict[str, dict[str, float]]:
    """Return node -> its files and when they were put, of the nodes in object storage without a commit, sorted."""
    whole, found = set[str](), dict[str, dict[str, float]]()
    for path, written in root.times():
        if path.count("/") < 2:
            continue
        group, name, file = path.split("/", 2)
        node, owner = f"{group}/{name}", name if group == REDUCTION else group
        if file == META:
            whole.add(node)
            found.pop(node, None)  # of a million videos only those without a commit are kept
        elif node not in whole and SET_NAME.fullmatch(owner) and (feature_sets is None or owner in feature_sets):
            found.setdefault(node, {})[file] = written
    return {node: files for node, files in sorted(found.items()) if all(map(_PUT.fullmatch, files))}
