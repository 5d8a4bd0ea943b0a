"""Packs: read-optimised copies of feature sets, one flat array each, taken wherever training takes a feature store.

Layout: `store.pack/<feature_set>/` holds
    features.npy     (sum N, D) in the set's dtype, one video after the other in the order of their ids
    clips.npz        offsets (V + 1,); clip_starts, clip_ends (sum N,); num_frames, fps, padded (V,)
    videos.json      ids, checksums, decode notes and provenance of the videos, and the failures of others
    reduction.npz    what made a reduced feature set (mean, components), where it is one
    set.json         FeatureSpec, hashes of the files above (features.npy has its videos' checksums), where from and when
Each video's bytes are compared with its checksum whenever they are read. The features are a plain .npy, not a Zarr array:
read whole, 154 MB took 13 ms from the page cache against 77 ms in raw chunks of 64 MiB and 276 ms in compressed ones, and
a video is a slice of a memory map.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.errors import StoreError
from har_pipeline.core.records import FeatureRecord, FeatureSpec
from har_pipeline.features.store import STAGING, Damage, FeatureStore, choose_feature_set

PACK_JSON, SET_JSON = "pack.json", "set.json"


FEATURES, CLIPS, VIDEOS, REDUCTION = "features.npy", "clips.npz", "videos.json", "reduction.npz"


INFO_KEYS = {"spec", "videos", "clips", "features_start", "store", "store_changed_ns", "packed", "reduction", "sha256"}


FORMAT_VERSION = 1


_AGAIN = "run `har features pack` again"


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Differences:
    """Ids by which a store differs from what was packed of it: added since, taken out since, with other features now."""

    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.gained or self.lost or self.changed)


@dataclass(frozen=True, slots=True)
class _PackedSet:
    """A packed feature set, opened: `features` is a memory map, `clips` and `videos` what the files of that name hold."""

    features: np.ndarray
    clips: Mapping[str, np.ndarray]
    videos: Mapping[str, Any]
    row_of: Mapping[str, int]


class PackedStore:
    """Packed feature sets on disk, read as a `FeatureStore` is; nothing here writes. Raises: StoreError if `path` is no pack.

    Where the store that a set was packed from is still in its place, the two are compared before the first reading:
    other features of a packed video are an error, videos that came or went since are a warning.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        version = _read_json(self.path / PACK_JSON).get("har_pipeline_pack")
        if version != FORMAT_VERSION:
            raise StoreError(f"{self.path} is a pack of format {version}, not {FORMAT_VERSION}; pack the store again")
        self._infos: dict[str, dict[str, Any]] = {}
        self._opened: dict[str, _PackedSet] = {}
        self._compared: set[str] = set()

    def feature_sets(self) -> list[str]:
        """Return the names of all packed feature sets, sorted."""
        return sorted(node.name for node in self.path.iterdir() if (node / SET_JSON).exists() and node.name != STAGING)

    def resolve(self, prefix: str) -> str:
        """Return the full name of a feature set; see `FeatureStore.resolve`."""
        try:
            return choose_feature_set(self.path, prefix, self.feature_sets(), self.spec)
        except StoreError as error:
            raise StoreError(f"{error} (`har features pack` adds others)") from error

    def info(self, feature_set: str) -> dict[str, Any]:
        """Return what set.json says: spec, numbers of videos and clips, the store and its state, date, version, hashes.

        `store` is relative to the pack's folder. Raises: StoreError if it is missing or damaged.
        """
        if feature_set not in self._infos:
            folder = self.path / feature_set
            if not (folder / SET_JSON).exists():
                raise StoreError(f"{self.path} has no feature set {feature_set!r}; add it with `har features pack`")
            info = _read_json(folder / SET_JSON)
            try:
                sound = info.keys() >= INFO_KEYS and FeatureSpec.from_dict(info["spec"]).name == feature_set
            except (KeyError, TypeError, ValueError):
                sound = False
            if not sound:
                raise StoreError(f"{folder}: {SET_JSON} is damaged; {_AGAIN}")
            self._infos[feature_set] = info
        return self._infos[feature_set]

    def spec(self, feature_set: str) -> FeatureSpec:
        """Return how the features of a set were made."""
        return FeatureSpec.from_dict(self.info(feature_set)["spec"])

    def video_ids(self, feature_set: str) -> list[str]:
        """Return the ids of the packed videos, sorted."""
        return list(self._open(feature_set).videos["video_ids"])

    def checksums(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> checksum of its features, of the packed videos."""
        videos = self._open(feature_set).videos
        return dict(zip(videos["video_ids"], videos["checksums"], strict=True))

    def failures(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> reason of the videos that failed before packing, or that came into the store since."""
        reasons: dict[str, str] = dict(self._open(feature_set).videos["failures"])
        store = self.source(feature_set)
        gained = self.differences(feature_set, store).gained if store else ()
        return reasons | dict.fromkeys(gained, "the store has it now, the pack not: run `har features pack` again")

    def read(self, feature_set: str, video_id: str, *, check: bool = True) -> FeatureRecord:
        """Return the features of one video, a slice of the memory map that cannot be written to.

        check: as `FeatureStore.read` takes it; a pack always compares features with their checksum.
        Raises: StoreError if it is not packed, damaged, or the store has other features of a packed video by now.
        """
        if feature_set not in self._compared:
            self._require_current(feature_set)
            self._compared.add(feature_set)
        return self._record(feature_set, video_id)

    def verify(self, feature_set: str) -> Iterator[Damage | None]:
        """Read every video of a set against its checksum; yields None for a sound one and its `Damage` otherwise."""
        for video_id in self.video_ids(feature_set):
            try:
                self._record(feature_set, video_id)
            except StoreError as error:
                yield Damage(video_id, str(error))
            else:
                yield None

    def reduction_attributes(self, feature_set: str) -> dict[str, Any] | None:
        """Return what was written beside the arrays of a reduced feature set, None if nothing was."""
        attributes: dict[str, Any] | None = self.info(feature_set)["reduction"]
        return attributes

    def read_reduction(self, feature_set: str) -> dict[str, np.ndarray]:
        """Return what made a reduced feature set. Raises: StoreError if it was not reduced, or the file is damaged."""
        if self.reduction_attributes(feature_set) is None:
            raise StoreError(f"{self.path}: no reduction of {feature_set!r}")
        return self._arrays(feature_set, REDUCTION)

    def source(self, feature_set: str) -> FeatureStore | None:
        """Return the store that a set was packed from, None if neither it nor the set is in its place any more."""
        path = self.path.resolve() / self.info(feature_set)["store"]
        if not (path / feature_set / "zarr.json").exists():
            return None
        return FeatureStore(Path(os.path.normpath(path)))

    def differences(self, feature_set: str, store: FeatureStore) -> Differences:
        """Return by which ids `store` differs from what is packed; quick while no video came or went since."""
        info = self.info(feature_set)
        same_store = (self.path.resolve() / info["store"]).resolve() == store.path.resolve()
        if same_store and info["store_changed_ns"] == store.last_change(feature_set):
            return Differences()
        then, now = self.checksums(feature_set), store.checksums(feature_set)
        return Differences(
            tuple(sorted(now.keys() - then.keys())),
            tuple(sorted(then.keys() - now.keys())),
            tuple(video_id for video_id in then if video_id in now and then[video_id] != now[video_id]),
        )

    def describe(self, feature_set: str) -> dict[str, Any]:
        """Return where a set was packed from, when, and whether that is still what the store holds."""
        store = self.source(feature_set)
        state = "the store is not there to compare"
        if store is not None:
            found = self.differences(feature_set, store)
            counts = [f"{len(ids)} {what}" for what, ids in dataclasses.asdict(found).items() if ids]
            state = f"the store differs: videos {', '.join(counts)}" if counts else "up to date"
        info = self.info(feature_set)
        return {"store": info["store"], "packed": info["packed"], "clips": info["clips"], "state": state}

    def _require_current(self, feature_set: str) -> None:
        store = self.source(feature_set)
        found = self.differences(feature_set, store) if store else Differences()
        if not store or not found:
            return
        again = f"run `har features pack` on {store.path} again"
        if found.changed:
            ids = f"{', '.join(found.changed[:3])}{', ...' if len(found.changed) > 3 else ''}"
            raise StoreError(
                f"{self.path / feature_set}: the store has other features of {len(found.changed)} packed videos now "
                f"({ids}): {again}"
            )
        packed = self.info(feature_set)["videos"]
        log.warning(
            "%s: packed from %s videos; the store has %s now: %s",
            self.path / feature_set,
            f"{packed:,}",
            f"{packed + len(found.gained) - len(found.lost):,}",
            again,
        )

    def _open(self, feature_set: str) -> _PackedSet:
        if feature_set not in self._opened:
            info, spec, folder = self.info(feature_set), self.spec(feature_set), self.path / feature_set
            clips, text = self._arrays(feature_set, CLIPS), self._file(feature_set, VIDEOS)
            shape, dtype = (info["clips"], spec.feature_dim), np.dtype(spec.dtype)
            try:
                size = (folder / FEATURES).stat().st_size
                if size != info["features_start"] + shape[0] * shape[1] * dtype.itemsize:
                    raise StoreError(f"{size} bytes are not what was packed")
                # Not np.load, which would have to parse a header that nothing checks. Not kept as an np.memmap, whose
                # class makes each slice slow.
                features = np.asarray(np.memmap(folder / FEATURES, dtype, "r", info["features_start"], shape))
            except OSError as error:
                raise StoreError(f"{folder / FEATURES}: damaged ({error}); {_AGAIN}") from error
            videos = json.loads(text)
            row_of = {video_id: row for row, video_id in enumerate(videos["video_ids"])}
            self._opened[feature_set] = _PackedSet(features, clips, videos, row_of)
        return self._opened[feature_set]

    def _file(self, feature_set: str, name: str) -> bytes:
        """Return the bytes of a file, compared with the hash in set.json."""
        path = self.path / feature_set / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
        if hashlib.sha256(content).hexdigest() != self.info(feature_set).get("sha256", {}).get(name):
            raise StoreError(f"{path}: differs from its checksum; {_AGAIN}")
        return content

    def _arrays(self, feature_set: str, name: str) -> dict[str, np.ndarray]:
        with np.load(io.BytesIO(self._file(feature_set, name))) as arrays:
            return dict(arrays)

    def decode_notes(self, feature_set: str) -> dict[str, tuple[str, ...]]:
        """As of the store."""
        return {video_id: tuple(notes) for video_id, notes in self._open(feature_set).videos["decode_notes"].items()}

    def _record(self, feature_set: str, video_id: str) -> FeatureRecord:
        packed = self._open(feature_set)
        row, clips, videos = packed.row_of.get(video_id), packed.clips, packed.videos
        if row is None:
            raise StoreError(
                f"{self.path}: {feature_set} has no features of {video_id!r}; run `har features pack` again"
            )
        start, stop = (int(offset) for offset in clips["offsets"][row : row + 2])
        features, checksum = packed.features[start:stop], videos["checksums"][row]
        if f"sha256:{hashlib.sha256(features.data).hexdigest()}" != checksum:
            raise StoreError(f"{self.path / feature_set}: features of {video_id} differ from their checksum; {_AGAIN}")
        return FeatureRecord(
            video_id=video_id,
            features=features,
            clip_starts=clips["clip_starts"][start:stop],
            clip_ends=clips["clip_ends"][start:stop],
            padded=bool(clips["padded"][row]),
            num_frames=int(clips["num_frames"][row]),
            fps=float(clips["fps"][row]),
            checksum=checksum,
            decode_notes=tuple(videos["decode_notes"].get(video_id, ())),
            provenance=videos["provenances"][videos["provenance"][row]],
            file=videos["files"][row] if "files" in videos else {},
        )


def open_features(path: Path | str) -> FeatureStore | PackedStore:
    """Return the feature store or the pack at `path`. Raises: StoreError if it is neither."""
    return PackedStore(path) if (Path(path) / PACK_JSON).exists() else FeatureStore(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); make packs with `har features pack`") from error
    except ValueError as error:
        raise StoreError(f"{path}: not valid JSON ({error}); {_AGAIN}") from error
    if not isinstance(values, dict):
        raise StoreError(f"{path}: not a JSON object; {_AGAIN}")
    return values
