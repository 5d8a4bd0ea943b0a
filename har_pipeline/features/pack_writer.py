"""Writing packs: a feature set of a store as one flat array; `packed_store` reads them and tells the layout.

A packed set is made in the pack's `_staging` and renamed, so that a kill leaves the older copy or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.errors import StoreError
from har_pipeline.core.files import publish, remove_debris, staging_name
from har_pipeline.core.records import FeatureRecord, FeatureSpec
from har_pipeline.features.pack_reader import (
    CLIPS,
    FEATURES,
    FORMAT_VERSION,
    PACK_JSON,
    REDUCTION,
    SET_JSON,
    VIDEOS,
    PackedStore,
)
from har_pipeline.features.store import STAGING, FeatureStore

TICK_S = 0.05


OnVideo = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSummary:
    """What packing did: numbers of videos and clips, size of the flat array; written: False if it was there, up to date."""

    feature_set: str
    path: Path
    videos: int
    clips: int
    num_bytes: int
    written: bool


def default_pack_path(store: Path) -> Path:
    """Return the path of a store's pack where none is chosen: `store.pack` beside `store.zarr`."""
    return store.with_name(f"{store.resolve().name.removesuffix('.zarr')}.pack")


def whole_sets(store: FeatureStore) -> list[str]:
    """Return the feature sets that no PCA has reduced, or all where every one is reduced: those packed unless told.

    Raises: StoreError if there is none.
    """
    names = store.feature_sets()
    if not names:
        raise StoreError(f"{store.path} has no feature set to pack; make one with `har extract`")
    return [name for name in names if store.spec(name).reduction is None] or names


def pack_features(
    store: FeatureStore, feature_set: str, path: Path, on_video: OnVideo = lambda stage, done, total: None
) -> PackSummary:
    """Write a feature set of a store into the pack at `path`, in place of an older copy; one video is in memory at a time.

    A copy that is up to date and sound is left as it is. Every video is compared with its checksum on the way.
    Raises: StoreError if `path` is taken by something else or cannot be written, or the set has no clips or a damaged video.
    """
    try:
        _make_pack(path)
        written = not _up_to_date(PackedStore(path), feature_set, store)
        if written:
            _write_set(store, feature_set, path, on_video)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: cannot be written ({error.strerror}); choose another place with -o") from error
    info = PackedStore(path).info(feature_set)
    size = (path / feature_set / FEATURES).stat().st_size
    return PackSummary(
        feature_set=feature_set, path=path, videos=info["videos"], clips=info["clips"], num_bytes=size, written=written
    )


def _make_pack(path: Path) -> None:
    if not (path / PACK_JSON).exists():
        if path.exists() and (not path.is_dir() or any(node.name != STAGING for node in path.iterdir())):
            raise StoreError(f"{path} exists and is no pack: choose another path with -o")
        (path / STAGING).mkdir(parents=True, exist_ok=True)
        staged = path / STAGING / staging_name()
        staged.write_text(json.dumps({"har_pipeline_pack": FORMAT_VERSION}) + "\n", encoding="utf-8")
        staged.replace(path / PACK_JSON)
    remove_debris(path / STAGING)


def _up_to_date(pack: PackedStore, feature_set: str, store: FeatureStore) -> bool:
    try:
        sound = all(damage is None for damage in pack.verify(feature_set))
        return sound and not pack.differences(feature_set, store)
    except StoreError:
        # Absent, or damaged here or in the store: packing mends it or says so.
        return False


def _write_set(store: FeatureStore, feature_set: str, path: Path, on_video: OnVideo) -> None:
    staging, final = path / STAGING, path / feature_set
    staged, replaced = staging / staging_name(), staging / staging_name()
    staged.mkdir(parents=True)
    try:
        _fill_set(staged, store, feature_set, os.path.relpath(store.path.resolve(), path.resolve()), on_video)
        with contextlib.suppress(FileNotFoundError):
            final.rename(replaced)
        publish(staged, final, SET_JSON)
    finally:
        for folder in (staged, replaced):
            shutil.rmtree(folder, ignore_errors=True)


def _fill_set(folder: Path, store: FeatureStore, feature_set: str, store_path: str, on_video: OnVideo) -> None:
    """Write the files of a packed set; set.json, which has the hashes of the others, last."""
    changed = _settled_change(store, feature_set)
    spec, video_ids = store.spec(feature_set), store.video_ids(feature_set)
    videos: list[FeatureRecord] = []
    with open(folder / FEATURES, "wb") as file:
        file.write(_npy_header(0, spec))
        for number, video_id in enumerate(video_ids, start=1):
            video = store.read(feature_set, video_id, check=True)
            if video.features.dtype != spec.dtype or video.features.shape != (len(video.clip_starts), spec.feature_dim):
                raise StoreError(f"{store.path}: {feature_set} of {video_id} does not fit its spec; extract it again")
            file.write(np.ascontiguousarray(video.features).data)
            videos.append(dataclasses.replace(video, features=np.empty((0, spec.feature_dim))))
            on_video("pack", number, len(video_ids))
        num_clips = sum(len(video.clip_starts) for video in videos)
        if not num_clips:
            raise StoreError(f"{store.path}: {feature_set} has no features to pack; run `har extract` first")
        file.seek(0)
        file.write(_npy_header(num_clips, spec))
    np.savez(folder / CLIPS, **_clip_arrays(videos))  # type: ignore[arg-type]
    texts = {**_texts(videos), "failures": store.failures(feature_set)}
    (folder / VIDEOS).write_text(json.dumps(texts), encoding="utf-8")
    reduction = store.reduction_attributes(feature_set)
    if reduction is not None:
        np.savez(folder / REDUCTION, **store.read_reduction(feature_set))  # type: ignore[arg-type]
    small = sorted(node for node in folder.iterdir() if node.name != FEATURES)
    info = {
        "spec": spec.to_dict(),
        "videos": len(video_ids),
        "clips": num_clips,
        "features_start": len(_npy_header(num_clips, spec)),
        "store": store_path,
        "store_changed_ns": changed,
        "packed": datetime.now(UTC).isoformat(timespec="seconds"),
        "har_pipeline": version("har-pipeline"),
        "reduction": reduction,
        "sha256": {node.name: hashlib.sha256(node.read_bytes()).hexdigest() for node in small},
    }
    (folder / SET_JSON).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def _settled_change(store: FeatureStore, feature_set: str) -> int:
    """Return when a set last changed, in ns, such that every later change has another time; 0 if that cannot be had."""
    changed = store.last_change(feature_set)
    # Clock ticks are up to 10 ms long; a file system that keeps whole seconds only cannot tell two changes apart.
    if changed % 10**9 == 0:
        return 0
    age_s = (time.time_ns() - changed) / 10**9
    time.sleep(min(max(0.0, TICK_S - age_s), TICK_S))
    return changed


def _npy_header(rows: int, spec: FeatureSpec) -> bytes:
    """Return the header of an .npy file; numpy pads it so that its length is the same for any number of rows."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(spec.dtype))
    shape = (rows, spec.feature_dim)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def _clip_arrays(videos: Sequence[FeatureRecord]) -> dict[str, np.ndarray]:
    return {
        "offsets": np.cumsum([0, *(len(video.clip_starts) for video in videos)], dtype=np.int64),
        "clip_starts": np.concatenate([video.clip_starts for video in videos]),
        "clip_ends": np.concatenate([video.clip_ends for video in videos]),
        "num_frames": np.array([video.num_frames for video in videos], np.int64),
        "fps": np.array([video.fps for video in videos], np.float64),
        "padded": np.array([video.padded for video in videos], bool),
    }


def _texts(videos: Sequence[FeatureRecord]) -> dict[str, Any]:
    """Return the texts of the videos; a provenance that many of them share stands there once."""
    provenances: dict[str, int] = {}
    keys = [json.dumps(dict(video.provenance), sort_keys=True) for video in videos]
    numbers = [provenances.setdefault(key, len(provenances)) for key in keys]
    return {
        "video_ids": [video.video_id for video in videos],
        "checksums": [video.checksum for video in videos],
        "decode_notes": {video.video_id: list(video.decode_notes) for video in videos if video.decode_notes},
        "provenances": [json.loads(key) for key in provenances],
        "provenance": numbers,
        "files": [dict(video.file) for video in videos],
    }
