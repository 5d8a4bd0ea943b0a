"""Packs: read-optimised copies of feature sets, one file each, taken wherever training takes a feature store.

A pack is a folder with `pack.json`, which marks it and has the names that users gave to sets, and a safetensors file
`<feature_set>.safetensors` per set:
    features                   (sum N, D) in the set's dtype, one video after the other in the order of their ids; (sum N * M,
                               D) of M tokens a clip
    offsets                    (V + 1,) int64, video v owns the clips `[offsets[v], offsets[v + 1])`, M rows each
    clip_starts, clip_ends     (sum N,) int64
    clip_times_s               (sum N, 2) float64; not in packs of format 2, whose times are starts and ends over fps
    num_frames, fps, padded    (V,) int64, float64, bool
    videos                     JSON as bytes: ids, checksums, decode notes, files and provenance of the videos, and the
                               failures of others; not in the header, whose length safetensors limits
    reduction.*                the fit of a reduced or encoded feature set (mean, components ...), if it is one
The header's metadata holds the FeatureSpec, where the features come from and when, its own hash, and one of each tensor but
`features`, whose rows are compared with their video's checksum whenever they are read. Not a Zarr array: read whole, 154 MB
took 13 ms from the page cache against 77 ms in raw chunks of 64 MiB and 276 ms in compressed ones, and a video is a slice
of a memory map.

A pack may come from anywhere: a tensor is taken only if its type, shape and place in the file agree, so that nothing is
larger than the file, and JSON is all that is parsed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from har_pipeline.core.errors import StoreError
from har_pipeline.core.files import new_file, read_json, remove_debris, sync_folder, write_json
from har_pipeline.core.objects import StorePath, store_path
from har_pipeline.core.records import FeatureRecord, FeatureSpec, VideoRecord
from har_pipeline.datasets.units import SOURCES, Source
from har_pipeline.features.places import META, in_order, local_file
from har_pipeline.features.reader import StoredVideo
from har_pipeline.features.set_names import choose_feature_set
from har_pipeline.features.store import Damage, FeatureStore, UnreadableError, writing_to

FORMAT_VERSION = 3
READABLE = (2, 3)
MAX_HEADER_BYTES = 10**8  # as the library limits it
PACK_JSON, SUFFIX, METADATA, REDUCTION = "pack.json", ".safetensors", "har_pipeline_pack", "reduction."
# In pack.json: what users call the sets; other versions read nothing there.
NAMES = "names"
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "U8": "u1", "BOOL": "?"}.items()
}

# Reading a store of so many videos takes seconds, which a pack spares every training.
ADVISED_FROM = 2000

# Clock ticks are up to 10 ms long: two changes further apart than this have different times.
TICK_S = 0.05
_AGAIN = "run `har features pack` again"

# What the header's metadata holds beside the spec.
_INFO: dict[str, type | tuple[type, ...]] = {
    "videos": int,
    "clips": int,
    "store": str,
    "store_changed_ns": int,
    "packed": str,
    "reduction": (dict, NoneType),
}

# Called with what is being done, the videos done and their total.
OnVideo = Callable[[str, int, int], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Differences:
    """Ids by which a store differs from what was packed of it."""

    gained: tuple[str, ...] = ()  # added since
    lost: tuple[str, ...] = ()  # taken out since
    changed: tuple[str, ...] = ()  # with other features now

    def __bool__(self) -> bool:
        return bool(self.gained or self.lost or self.changed)


class _PackedSet:
    """The file of one feature set, whose tensors are slices of a read-only memory map.

    Not read by the library, which copies every slice. Raises: StoreError if the file is missing or damaged.
    """

    def __init__(self, path: StorePath, feature_set: str) -> None:
        self.path = path
        if not path.exists():
            raise StoreError(f"{path.parent} has no feature set {feature_set!r}; add it with `har features pack`")
        try:
            # Not kept as an np.memmap, whose class makes each slice slow.
            with local_file(path) as file:
                content = np.asarray(np.memmap(file, np.uint8, "r"))
            body_start = 8 + int.from_bytes(content[:8].tobytes(), "little")
            if body_start > min(len(content), MAX_HEADER_BYTES):
                raise ValueError(f"a header of {body_start} bytes in a file of {len(content)}")
            header = json.loads(content[8:body_start].tobytes())
            metadata, body = header.pop("__metadata__"), content[body_start:]
            self.tensors = _tensors(header, body)
            if hashlib.sha256(metadata[METADATA].encode()).hexdigest() != metadata["sha256"]:
                raise ValueError("the header differs from its checksum")
            self.info: dict[str, Any] = json.loads(metadata[METADATA])
            self.spec = FeatureSpec.from_dict(self.info["spec"])
            self.features = self.tensors["features"]
            shape = (self.info["clips"] * self.spec.rows_per_clip, self.spec.feature_dim)
            if self.spec.name != feature_set or (self.features.shape, self.features.dtype) != (
                shape,
                self.spec.dtype,
            ):
                raise ValueError("the header is not of this feature set")
            self._sha256 = dict(self.info["sha256"])
            told = [(self.info[key], kind) for key, kind in _INFO.items()]
            if not all(isinstance(value, kind) for value, kind in told) or Path(self.info["store"]).is_absolute():
                raise ValueError("the header says what no pack says")
        except OSError as error:
            raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise StoreError(f"{path}: damaged ({error!r}); {_AGAIN}") from error

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor in memory, compared with its hash in the header."""
        array = self.tensors[name].copy() if name in self.tensors else np.empty(0)
        if _sha256(array) != self._sha256.get(name):
            raise StoreError(f"{self.path}: {name} differs from its checksum; {_AGAIN}")
        return array

    @functools.cached_property
    def clips(self) -> dict[str, np.ndarray]:
        """The small arrays, by name."""
        num_videos, num_clips = self.info["videos"], self.info["clips"]
        shapes: dict[str, tuple[int, ...]] = {
            "offsets": (num_videos + 1,),
            **dict.fromkeys(("clip_starts", "clip_ends"), (num_clips,)),
        }
        shapes |= dict.fromkeys(("num_frames", "fps", "padded"), (num_videos,))
        if "clip_times_s" in self.tensors:
            shapes["clip_times_s"] = (num_clips, 2)
        found = {name: self.tensor(name) for name in shapes}
        ordered = bool((np.diff(found["offsets"]) >= 0).all())
        if any(found[name].shape != shape for name, shape in shapes.items()) or not ordered:
            raise StoreError(f"{self.path}: damaged (its tensors do not fit each other); {_AGAIN}")
        return found

    @functools.cached_property
    def videos(self) -> dict[str, Any]:
        """What the tensor `videos` says."""
        content = self.tensor("videos").tobytes()
        try:
            values: dict[str, Any] = json.loads(content)
            sound = all(
                len(values[key]) == self.info["videos"] for key in ("video_ids", "checksums", "provenance", "files")
            )
            sound = sound and all(0 <= number < len(values["provenances"]) for number in values["provenance"])
            sound = sound and isinstance(values["failures"], dict) and isinstance(values["decode_notes"], dict)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{self.path}: damaged ({error!r}); {_AGAIN}") from error
        if not sound:
            raise StoreError(f"{self.path}: damaged (what it says of its videos does not fit); {_AGAIN}")
        return values

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        """video_id -> v."""
        return {video_id: row for row, video_id in enumerate(self.videos["video_ids"])}


def _tensors(header: Mapping[str, Any], body: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file, views of `body`. Raises: ValueError if they do not fill it exactly."""
    tensors, end = {}, 0
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
        start, stop = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
            raise ValueError(f"{name}: shape {shape}, bytes {start} to {stop}")
        if start != end or stop > len(body) or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: {dtype} {shape} does not fit bytes {start} to {stop} of {len(body)}")
        tensors[name], end = body[start:stop].view(dtype).reshape(shape), stop
    if end != len(body):
        raise ValueError(f"{len(body)} bytes of tensors, not {end}")
    return tensors


class PackedStore:
    """Packed feature sets on disk, read as a `FeatureStore` is; nothing here writes.

    Raises: StoreError if `path` is not a pack.

    If the store that a set was packed from is still in its place, the two are compared before the first reading:
    other features of a packed video are an error, videos added or removed since are a warning.
    """

    def __init__(self, path: StorePath | str) -> None:
        self.path = store_path(path)
        found = read_json(self.path / PACK_JSON, StoreError, "create packs with `har features pack`").get(METADATA)
        if found not in READABLE:
            raise StoreError(
                f"{self.path} is a pack of format {found}, not {FORMAT_VERSION}: {_AGAIN}, which replaces it"
            )
        self._opened: dict[str, _PackedSet] = {}
        self._compared: set[str] = set()

    def __reduce__(self) -> tuple[type[PackedStore], tuple[StorePath]]:
        """Pickle as the path alone: a process that gets a pack opens its files itself."""
        return PackedStore, (self.path,)

    def feature_sets(self) -> list[str]:
        """Return the names of all packed feature sets, sorted."""
        names = (node.name for node in self.path.iterdir())
        return sorted(n.removesuffix(SUFFIX) for n in names if n.endswith(SUFFIX) and not n.startswith("."))

    def file(self, feature_set: str) -> StorePath:
        """Return the path of a set's file."""
        return self.path / f"{feature_set}{SUFFIX}"

    def resolve(self, prefix: str) -> str:
        """Return the full name of a feature set; see `FeatureStore.resolve`."""
        try:
            return choose_feature_set(
                self.path, prefix, self.feature_sets(), self.spec, self.names(), lambda one: False
            )
        except StoreError as error:
            raise StoreError(f"{error} (`har features pack` adds others)") from error

    def names(self) -> dict[str, str]:
        """Return name -> feature set; see `FeatureStore.names`."""
        found, sets = read_json(self.path / PACK_JSON, StoreError, _AGAIN).get(NAMES), self.feature_sets()
        names = found.items() if isinstance(found, dict) else ()
        return {name: one for name, one in names if isinstance(one, str) and one in sets}

    def info(self, feature_set: str) -> dict[str, Any]:
        """Return what the header says: spec, numbers of videos and clips, the store and its state, date, version, hashes.

        `store` is relative to the pack's folder. Raises: StoreError if the file is missing, or its header is damaged.
        """
        return self._open(feature_set).info

    def _open(self, feature_set: str) -> _PackedSet:
        if feature_set not in self._opened:
            self._opened[feature_set] = _PackedSet(self.file(feature_set), feature_set)
        return self._opened[feature_set]

    def spec(self, feature_set: str) -> FeatureSpec:
        """Return how the features of a set were made."""
        return self._open(feature_set).spec

    def video_ids(self, feature_set: str) -> list[str]:
        """Return the ids of the packed videos, sorted."""
        return list(self._open(feature_set).videos["video_ids"])

    def checksums(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> checksum of its features, of the packed videos."""
        videos = self._open(feature_set).videos
        return dict(zip(videos["video_ids"], videos["checksums"], strict=True))

    def failures(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> reason of the videos that failed before packing, or were added to the store since."""
        reasons: dict[str, str] = dict(self._open(feature_set).videos["failures"])
        store = self.source(feature_set)
        gained = self.differences(feature_set, store).gained if store else ()
        return reasons | dict.fromkeys(gained, f"the store has it now, the pack does not: {_AGAIN}")

    def decode_notes(self, feature_set: str) -> dict[str, tuple[str, ...]]:
        """Return video_id -> what was wrong with its file, for the videos whose files had faults."""
        return {video_id: tuple(notes) for video_id, notes in self._open(feature_set).videos["decode_notes"].items()}

    def read(self, feature_set: str, video_id: str, *, check: bool = True) -> FeatureRecord:
        """Return the features of one video, a slice of the memory map that cannot be written to.

        check: as `FeatureStore.read` takes it; a pack always compares features with their checksum.
        Raises: StoreError if it is not packed, damaged, or the store has other features of a packed video by now.
        """
        if feature_set not in self._compared:
            self._require_current(feature_set)
            self._compared.add(feature_set)
        return self._record(feature_set, video_id)

    def load(
        self,
        feature_set: str,
        records: Sequence[VideoRecord] | Path | str,
        *,
        apart: Sequence[Source] = SOURCES,
        allow_missing: bool = False,
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Return X, y and groups of the videos of a manifest, for scikit-learn; see `export.load_arrays`."""
        from har_pipeline.features.export import load_arrays

        return load_arrays(self, feature_set, records, apart=apart, allow_missing=allow_missing)

    def lengths(self, feature_set: str) -> dict[str, tuple[int, float]]:
        """Return video_id -> (frames, frame rate) of the video; see `FeatureStore.lengths`."""
        packed = self._open(feature_set)
        numbers = zip(packed.clips["num_frames"].tolist(), packed.clips["fps"].tolist(), strict=True)
        return dict(zip(packed.videos["video_ids"], numbers, strict=True))

    def stored(self, feature_set: str) -> Iterator[StoredVideo]:
        """Give what is known of each video; see `FeatureStore.stored`."""
        notes = self._open(feature_set).videos["decode_notes"]
        for video_id, (num_frames, fps) in self.lengths(feature_set).items():
            yield StoredVideo(video_id, num_frames, fps, tuple(notes.get(video_id, ())))

    def verify(self, feature_set: str) -> Iterator[Damage | None]:
        """Read every video of a set against its checksum; yields None for a sound one and its `Damage` otherwise."""
        for video_id in self.video_ids(feature_set):
            try:
                self._record(feature_set, video_id)
            except StoreError as error:
                yield Damage(video_id, str(error))
            else:
                yield None
        if self.fit_attributes(feature_set) is not None:
            try:
                self.read_fit(feature_set)
            except StoreError as error:
                yield Damage("", str(error), "fit")

    def fit_attributes(self, feature_set: str) -> dict[str, Any] | None:
        """Return what was written beside the fit of a reduced or encoded feature set, None if nothing was."""
        attributes: dict[str, Any] | None = self.info(feature_set)["reduction"]
        return attributes

    def read_fit(self, feature_set: str) -> dict[str, np.ndarray]:
        """Return the fit of a reduced or encoded feature set. Raises: StoreError if it has none, or it is damaged."""
        if self.fit_attributes(feature_set) is None:
            raise StoreError(f"{self.path}: no fit of {feature_set!r}")
        packed = self._open(feature_set)
        names = [name for name in packed.info["sha256"] if name.startswith(REDUCTION)]
        return {name.removeprefix(REDUCTION): packed.tensor(name) for name in names}

    def source(self, feature_set: str) -> FeatureStore | None:
        """Return the store that a set was packed from, None if either is no longer in its place."""
        path = self._store_path(feature_set)
        if path is None or not (path / feature_set / META).exists():
            return None
        return FeatureStore(path)

    def _store_path(self, feature_set: str) -> StorePath | None:
        """Return where the store is that a set was packed from, None if that is not known."""
        told: str = self.info(feature_set)["store"]
        if "://" in told:
            return store_path(told)
        if not isinstance(self.path, Path):
            return None  # a folder of the machine that packed
        return Path(os.path.normpath(self.path.resolve() / told))

    def differences(self, feature_set: str, store: FeatureStore) -> Differences:
        """Return by which ids `store` differs from what is packed; quick if no video was added or removed since."""
        info = self.info(feature_set)
        told = self._store_path(feature_set)
        same_store = told is not None and told.resolve() == store.path.resolve()
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
        state = "the store is missing, so it cannot be compared"
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

    def _record(self, feature_set: str, video_id: str) -> FeatureRecord:
        packed = self._open(feature_set)
        row, clips, videos = packed.row_of.get(video_id), packed.clips, packed.videos
        if row is None:
            raise StoreError(f"{self.path}: {feature_set} has no features of {video_id!r}; {_AGAIN}")
        start, stop = (int(offset) for offset in clips["offsets"][row : row + 2])
        rows_per_clip = packed.spec.rows_per_clip
        features, checksum = packed.features[start * rows_per_clip : stop * rows_per_clip], videos["checksums"][row]
        if f"sha256:{_sha256(features)}" != checksum:
            path = self.file(feature_set)
            raise StoreError(f"{path}: features of {video_id} differ from their checksum; {_AGAIN}")
        return FeatureRecord(
            video_id=video_id,
            features=features,
            clip_starts=clips["clip_starts"][start:stop],
            clip_ends=clips["clip_ends"][start:stop],
            clip_times_s=clips["clip_times_s"][start:stop] if "clip_times_s" in clips else None,  # type: ignore[arg-type]
            padded=bool(clips["padded"][row]),
            num_frames=int(clips["num_frames"][row]),
            fps=float(clips["fps"][row]),
            checksum=checksum,
            decode_notes=tuple(videos["decode_notes"].get(video_id, ())),
            provenance=videos["provenances"][videos["provenance"][row]],
            file=videos["files"][row],
        )


def open_features(path: StorePath | str) -> FeatureStore | PackedStore:
    """Return the feature store or the pack at `path`. Raises: StoreError if it is neither."""
    path = store_path(path)
    return PackedStore(path) if (path / PACK_JSON).is_file() else FeatureStore(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSummary:
    """What packing one feature set did."""

    feature_set: str
    path: StorePath  # of the pack
    videos: int
    clips: int
    num_bytes: int  # size of the set's file
    written: bool  # False if the pack was up to date


def default_pack_path(store: StorePath) -> StorePath:
    """Return the default path of a store's pack: `store.pack` beside `store.zarr`."""
    return store.with_name(f"{store.resolve().name.removesuffix('.zarr')}.pack")


def packing_advice(opened: FeatureStore | PackedStore, num_videos: int) -> str:
    """Return the line that advises who trains on `num_videos` videos to pack them first, empty where there is no need."""
    if isinstance(opened, PackedStore) or num_videos < ADVISED_FROM:
        return ""
    path = default_pack_path(opened.path)
    return (
        f"NOTE: {num_videos:,} videos are read several times faster from a pack: `har features pack "
        f"{shlex.quote(str(opened.path))}`, then train on {shlex.quote(str(path))}"
    )


def whole_sets(store: FeatureStore) -> list[str]:
    """Return the feature sets to pack by default: those that nothing was fitted for, or all if for every one.

    Sets without a video, as a job leaves that failed, are left out. Raises: StoreError if there is no other.
    """
    names = [name for name in store.feature_sets() if store.video_ids(name)]
    if not names:
        raise StoreError(f"{store.path} has no feature set to pack; create one with `har extract`")
    return [name for name in names if store.spec(name).fit is None] or names


def pack_features(
    store: FeatureStore, feature_set: str, path: StorePath, on_video: OnVideo = lambda stage, done, total: None
) -> PackSummary:
    """Write a feature set of a store into the pack at `path`, in place of an older copy; one video is in memory at a time.

    A copy that is up to date and sound is left as it is. Every video is compared with its checksum on the way.
    Raises: StoreError if `path` is taken by something else or cannot be written, or the set has no clips or a damaged video.
    """
    with writing_to(path, "choose another place with -o"):
        _make_pack(path)
        pack = PackedStore(path)
        written = not _up_to_date(pack, feature_set, store)
        if written:
            if read_json(path / PACK_JSON, StoreError, _AGAIN)[METADATA] != FORMAT_VERSION:
                write_json(path / PACK_JSON, {METADATA: FORMAT_VERSION})  # an older version must not read what comes
            if isinstance(path, Path):
                remove_debris(path, feature_set)
            with new_file(pack.file(feature_set)) as partial:
                _write_set(partial, store, feature_set, _told_path(store.path, path), on_video)
        called = [name for name, one in store.names().items() if one == feature_set]
        names = {name: one for name, one in pack.names().items() if one != feature_set and name not in called}
        if (names := {**names, **dict.fromkeys(called, feature_set)}) != pack.names():
            write_json(path / PACK_JSON, {METADATA: FORMAT_VERSION, NAMES: names})
    info = PackedStore(path).info(feature_set)
    return PackSummary(
        feature_set=feature_set,
        path=path,
        videos=info["videos"],
        clips=info["clips"],
        num_bytes=pack.file(feature_set).stat().st_size,
        written=written,
    )


def _told_path(store: StorePath, pack: StorePath) -> str:
    """Return how a pack says where its store is: from its own folder on, or as an address; empty where neither can be."""
    if isinstance(store, Path):
        return os.path.relpath(store.resolve(), pack.resolve()) if isinstance(pack, Path) else ""
    return str(store)


def _make_pack(path: StorePath) -> None:
    marker = path / PACK_JSON
    if not marker.is_file():
        if isinstance(path, Path) and path.is_dir():
            remove_debris(path, Path(PACK_JSON).stem)
        # Another process, perhaps of another host, may be making the pack too.
        if path.exists() and not (path.is_dir() and all(n.name.startswith(".pack.partial-") for n in path.iterdir())):
            raise StoreError(f"{path} exists and is not a pack: choose another path with -o")
        path.mkdir(parents=True, exist_ok=True)
        write_json(marker, {METADATA: FORMAT_VERSION})
        if isinstance(path, Path):
            sync_folder(path.absolute().parent)
    if not marker.stat().st_size:  # a power cut, with an older version
        write_json(marker, {METADATA: FORMAT_VERSION})
    found = read_json(marker, StoreError, f"delete it and {_AGAIN}").get(METADATA)
    if type(found) is not int or found > FORMAT_VERSION:
        raise StoreError(f"{path} is a pack of format {found}, of a newer version: choose another path with -o")
    if found not in READABLE:
        log.warning("%s: a pack of format %s, which this version does not read, is replaced", path, found)
        for file in list(path.iterdir()):
            if file.name.endswith(SUFFIX):
                file.unlink()
        write_json(marker, {METADATA: FORMAT_VERSION})


def _up_to_date(pack: PackedStore, feature_set: str, store: FeatureStore) -> bool:
    try:
        sound = all(damage is None for damage in pack.verify(feature_set))
        return sound and not pack.differences(feature_set, store)
    except StoreError:
        # Absent, or damaged here or in the store: packing repairs it or says so.
        return False


def _write_set(path: Path, store: FeatureStore, feature_set: str, store_path: str, on_video: OnVideo) -> None:
    """Write the file of a set. store_path: of the store, relative to the pack."""
    changed = _settled_change(store, feature_set)
    spec, lengths = store.spec(feature_set), store.num_clips(feature_set)
    num_clips, num_videos = sum(lengths.values()), len(lengths)
    if not num_clips:
        raise StoreError(f"{store.path}: {feature_set} has no features to pack; run `har extract` first")
    reduction = store.fit_attributes(feature_set)
    # The tensors before and after the features, by falling size of their items, so that each is aligned.
    head: dict[str, np.ndarray] = {
        "offsets": np.cumsum([0, *lengths.values()], dtype=np.int64),
        "clip_starts": np.zeros(num_clips, np.int64),
        "clip_ends": np.zeros(num_clips, np.int64),
        "clip_times_s": np.zeros((num_clips, 2), np.float64),
        "num_frames": np.zeros(num_videos, np.int64),
        "fps": np.zeros(num_videos, np.float64),
    }
    if reduction is not None:
        arrays = sorted(store.read_fit(feature_set).items(), key=lambda item: -item[1].itemsize)
        head |= {f"{REDUCTION}{name}": array for name, array in arrays}
    tail: dict[str, np.ndarray] = {"padded": np.zeros(num_videos, np.bool_), "videos": _no_bytes((10**15,), np.uint8)}
    features = _no_bytes((num_clips * spec.rows_per_clip, spec.feature_dim), spec.dtype)
    info = {
        "spec": spec.to_dict(),
        "videos": num_videos,
        "clips": num_clips,
        "store": store_path,
        "store_changed_ns": changed,
        "packed": datetime.now(UTC).isoformat(timespec="seconds"),
        "har_pipeline": version("har-pipeline"),
        "reduction": reduction,
        "sha256": dict.fromkeys((*head, *tail), "0" * 64),
    }
    # The hashes and the length of `videos` are known only after the features have been written: the header comes last.
    room = len(_header(info, {**head, "features": features, **tail}))
    with open(path, "wb") as file:
        file.seek(room + sum(array.nbytes for array in head.values()))
        texts = _Texts()
        videos = in_order(store.path, lambda video_id: store.read(feature_set, video_id, check=True), lengths)
        for row, (video_id, video) in enumerate(zip(lengths, videos, strict=True)):
            rows = slice(*head["offsets"][row : row + 2])
            wanted = (len(video.clip_starts) * spec.rows_per_clip, spec.feature_dim)
            if video.features.dtype != spec.dtype or video.features.shape != wanted:
                raise StoreError(f"{store.path}: {feature_set} of {video_id} does not fit its spec; extract it again")
            file.write(np.ascontiguousarray(video.features).data)
            head["clip_starts"][rows], head["clip_ends"][rows] = video.clip_starts, video.clip_ends
            head["clip_times_s"][rows] = video.clip_times_s
            head["num_frames"][row], head["fps"][row] = video.num_frames, video.fps
            tail["padded"][row] = video.padded
            texts.add(video)
            on_video("pack", row + 1, num_videos)
        told = {**texts.values(), "failures": store.failures(feature_set)}
        tail["videos"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
        for array in tail.values():
            file.write(array.data)
        info["sha256"] = {name: _sha256(array) for name, array in {**head, **tail}.items()}
        file.seek(0)
        file.write(_header(info, {**head, "features": features, **tail}, room))
        for array in head.values():
            file.write(np.ascontiguousarray(array).data)


def _no_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array that has a shape and a dtype, but takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _settled_change(store: FeatureStore, feature_set: str) -> int:
    """Return when a set last changed, in ns, such that every later change has another time; 0 if that cannot be had."""
    changed = store.last_change(feature_set)
    # A file system that keeps whole seconds only cannot tell two changes apart.
    if changed % 10**9 == 0:
        return 0
    age_s = (time.time_ns() - changed) / 10**9
    time.sleep(min(max(0.0, TICK_S - age_s), TICK_S))
    return changed


def _header(info: Mapping[str, Any], tensors: Mapping[str, np.ndarray], size: int = 0) -> bytes:
    """Return the start of a safetensors file: the header's length and the header, `size` bytes or as many as it needs.

    tensors: in the order of the file.
    """
    text = json.dumps(info)
    entries: dict[str, Any] = {"__metadata__": {METADATA: text, "sha256": hashlib.sha256(text.encode()).hexdigest()}}
    names, start = {dtype: name for name, dtype in DTYPES.items()}, 0
    for name, array in tensors.items():
        offsets = (start, start + array.nbytes)
        entries[name] = {"dtype": names[array.dtype], "shape": array.shape, "data_offsets": offsets}
        start += array.nbytes
    header = json.dumps(entries).encode()
    size = size or -(-(8 + len(header)) // 64) * 64
    return (size - 8).to_bytes(8, "little") + header.ljust(size - 8)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


class _Texts:
    """What the tensor `videos` says of videos, collected one by one; a provenance that many share is kept once."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._checksums: list[str] = []
        self._notes: dict[str, list[str]] = {}
        self._provenances: dict[str, int] = {}
        self._provenance: list[int] = []
        self._files: list[dict[str, str]] = []

    def add(self, video: FeatureRecord) -> None:
        """Add what is told of a video; its arrays are not kept."""
        self._ids.append(video.video_id)
        self._checksums.append(video.checksum)
        if video.decode_notes:
            self._notes[video.video_id] = list(video.decode_notes)
        key = json.dumps(dict(video.provenance), sort_keys=True)
        self._provenance.append(self._provenances.setdefault(key, len(self._provenances)))
        self._files.append(dict(video.file))

    def values(self) -> dict[str, Any]:
        """Return what is told of all of them, ready for JSON."""
        return {
            "video_ids": self._ids,
            "checksums": self._checksums,
            "decode_notes": self._notes,
            "provenances": [json.loads(key) for key in self._provenances],
            "provenance": self._provenance,
            "files": self._files,
        }
