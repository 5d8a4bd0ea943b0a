"""The feature store: one Zarr v3 array of shape (N, D) per video, complete or absent, written without locks.

Layout: `store.zarr/<feature_set>/<video_id>`; a feature set's group carries its `FeatureSpec` as the attribute `spec`.
An array is built in the group `_staging` and renamed into place after its commit attributes were written, so a kill at any
moment leaves no partial video, and of two processes that finish the same video the first one's features stay.
Reasons of failed videos are in `_failures`, and what made a reduced feature set (mean, components) in `_reduction`, so
that whoever lists a feature set's arrays sees features only.
Arrays have one chunk, or chunks of at most 64 MiB if a video is longer, so that writing needs bounded memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader
import numpy as np

from har_pipeline.core.errors import FeatureMismatchError, StoreError
from har_pipeline.core.files import publish, remove_debris, staging_name
from har_pipeline.core.records import FeatureRecord, FeatureSpec, VideoSource, check_video_id

if TYPE_CHECKING:
    import zarr.codecs
else:
    zarr = lazy_loader.load("zarr")  # a fifth of a second, which a wrong path need not wait for

STAGING, FAILURES, REDUCTION = "_staging", "_failures", "_reduction"
FORMAT_VERSION = 1
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Damage:
    """A stored video that does not hold what its commit says."""

    video_id: str
    reason: str


def choose_feature_set(path: Path, prefix: str, names: Sequence[str], spec_of: Callable[[str], FeatureSpec]) -> str:
    """Return the one of `names` that `prefix` means; see `FeatureStore.resolve`. path: named in the error."""
    found = [name for name in names if name == prefix] or [name for name in names if name.startswith(prefix)]
    if len(found) > 1:
        found = [name for name in found if spec_of(name).reduction is None] or found
    if len(found) != 1:
        there = ", ".join(found or names) or "none"
        if not prefix and found:
            raise StoreError(f"{path} holds {len(found)} feature sets, choose one with --features: {there}")
        what = "no feature set starts" if not found else f"{len(found)} feature sets start"
        raise StoreError(f"{path}: {what} with {prefix!r}; there are: {there}")
    return found[0]


def _compressor() -> zarr.codecs.ZstdCodec:
    """Return the codec of all arrays, with a checksum: Zarr's default notices no flipped bit."""
    return zarr.codecs.ZstdCodec(level=1, checksum=True)


class FeatureStore:
    """Feature sets on disk. Reading never writes; `create=True` creates the folder if it is missing.

    Raises: StoreError if `path` is not a feature store.
    """

    def __init__(self, path: Path | str, *, create: bool = False) -> None:
        self.path = Path(path)
        if create and not (self.path / "zarr.json").exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise StoreError(f"{self.path} exists and is not a feature store: choose another path")
            # Two processes may get here together: both write the same bytes, and Zarr renames the file into place.
            zarr.create_group(self.path, attributes={"har_pipeline_store": FORMAT_VERSION}, overwrite=False)
        if not (self.path / "zarr.json").exists():
            raise StoreError(
                f"{self.path} is not a feature store (no zarr.json); create one with `har extract` or `har frames`"
            )
        version = self._attributes(self.path).get("har_pipeline_store")
        if version != FORMAT_VERSION:
            raise StoreError(f"{self.path} is a Zarr group but not a feature store of format {FORMAT_VERSION}")
        self._specs: dict[str, FeatureSpec] = {}

    @staticmethod
    def _attributes(node: Path) -> dict[str, Any]:
        try:
            return dict(zarr.open(node, mode="r").attrs)
        except Exception as error:
            raise StoreError(f"{node}: cannot be read as Zarr ({type(error).__name__}: {error})") from error

    def feature_sets(self) -> list[str]:
        """Return the names of all feature sets, sorted."""
        return sorted(
            node.name for node in self.path.iterdir() if (node / "zarr.json").exists() and not node.name.startswith("_")
        )

    def resolve(self, prefix: str) -> str:
        """Return the full name of the one feature set that starts with `prefix`, or the only one of them not reduced.

        Raises: StoreError if there is not exactly one; the message lists the candidates.
        """
        return choose_feature_set(self.path, prefix, self.feature_sets(), self.spec)

    def spec(self, feature_set: str) -> FeatureSpec:
        """Return how the features of a set were computed."""
        if feature_set not in self._specs:
            group = self.path / feature_set
            if not (group / "zarr.json").exists():
                raise StoreError(f"{self.path} has no feature set {feature_set!r}")
            self._specs[feature_set] = FeatureSpec.from_dict(self._attributes(group)["spec"])
        return self._specs[feature_set]

    def create_feature_set(self, spec: FeatureSpec) -> str:
        """Create the group of `spec` if it is missing and return its name.

        Raises: FeatureMismatchError if the group of that name has another spec.
        """
        group = self.path / spec.name
        if not (group / "zarr.json").exists():
            with contextlib.suppress(zarr.errors.ContainsGroupError):
                zarr.create_group(group, attributes={"spec": spec.to_dict()})
        stored = FeatureSpec.from_dict(self._attributes(group)["spec"])
        spec.require_equal(stored, f"{self.path}/{spec.name}")
        self._make_groups(STAGING, FAILURES, f"{FAILURES}/{spec.name}")
        return spec.name

    def _make_groups(self, *names: str) -> None:
        for name in names:
            if not (self.path / name / "zarr.json").exists():
                with contextlib.suppress(zarr.errors.ContainsGroupError):
                    zarr.create_group(self.path / name)

    def video_ids(self, feature_set: str) -> list[str]:
        """Return the ids of the videos whose features are complete, sorted."""
        self.spec(feature_set)
        nodes = (self.path / feature_set).iterdir()
        return sorted(node.name for node in nodes if node.is_dir() and (node / "zarr.json").exists())

    def checksums(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> checksum of its complete features. Raises: StoreError if a commit cannot be read."""
        return {video_id: str(value) for video_id, value in self._commits(feature_set, "checksum")}

    def num_clips(self, feature_set: str) -> dict[str, int]:
        """Return video_id -> N, in the order of `video_ids`. Raises: StoreError as `checksums`."""
        return {video_id: int(value) for video_id, value in self._commits(feature_set, "num_clips")}

    def files(self, feature_set: str) -> dict[str, dict[str, str]]:
        """Return video_id -> the file that was read, as `FeatureRecord.file`. Raises: StoreError as `checksums`."""
        return dict(self._commits(feature_set, "file", {}))

    def decode_notes(self, feature_set: str) -> dict[str, tuple[str, ...]]:
        """Return video_id -> what was wrong with its file, for the videos whose files had faults."""
        return {video_id: tuple(notes) for video_id, notes in self._commits(feature_set, "decode_notes") if notes}

    def _commits(self, feature_set: str, key: str, default: Any = None) -> Iterator[tuple[str, Any]]:
        for video_id in self.video_ids(feature_set):
            node = self.path / feature_set / video_id / "zarr.json"
            try:
                # Not through zarr, which would open an array for each.
                attributes = json.loads(node.read_bytes())["attributes"]
                yield video_id, attributes[key] if default is None else attributes.get(key, default)
            except (OSError, ValueError, KeyError) as error:
                raise StoreError(f"{node}: damaged ({error!r}); delete its folder and extract again") from error

    def last_change(self, feature_set: str) -> int:
        """Return when a video was last added to a feature set or removed from it, in ns since 1970."""
        self.spec(feature_set)
        return (self.path / feature_set).stat().st_mtime_ns

    def writer(self, feature_set: str, video_id: str, num_clips: int) -> FeatureWriter:
        """Return a writer of the `num_clips` features of one video."""
        return FeatureWriter(self.path, self.spec(feature_set), video_id, num_clips)

    def write(self, feature_set: str, video_id: str, features: np.ndarray, source: VideoSource) -> bool:
        """Write and commit the whole (N, D) array of one video; see `FeatureWriter.commit`.

        Raises: FeatureMismatchError if D is not the spec's.
        """
        spec = self.spec(feature_set)
        if features.ndim != 2 or features.shape[1] != spec.feature_dim:
            raise FeatureMismatchError(
                f"{video_id}: shape {features.shape}, but {feature_set} has D={spec.feature_dim}"
            )
        writer = self.writer(feature_set, video_id, len(features))
        writer.append(features.astype(spec.dtype, copy=False))
        return writer.commit(source)

    def read(self, feature_set: str, video_id: str, *, check: bool = False) -> FeatureRecord:
        """Return the features of one video; with `check`, compared with the checksum of the commit.

        Raises: StoreError if the video has no complete features here, or they are damaged.
        """
        node = self.path / feature_set / video_id
        if not (node / "zarr.json").exists():
            reason = self.failures(feature_set).get(video_id)
            command = "har features reduce" if self.spec(feature_set).reduction else "har extract"
            why = f"; its extraction failed: {reason}" if reason else f"; create them with `{command}`"
            raise StoreError(f"{self.path}: {feature_set} has no features of {video_id!r}{why}")
        try:
            array = zarr.open_array(node, mode="r")
            attributes: dict[str, Any] = dict(array.attrs)
            features = np.asarray(array[...])
        except Exception as error:
            raise StoreError(
                f"{node}: damaged ({type(error).__name__}: {error}); delete it and extract again"
            ) from error
        if not attributes.get("complete"):
            raise StoreError(f"{node}: was never committed; delete it and extract again")
        if check and f"sha256:{hashlib.sha256(features.tobytes()).hexdigest()}" != attributes["checksum"]:
            raise StoreError(f"{node}: features differ from their checksum; delete it and extract again")
        return FeatureRecord(
            video_id=video_id,
            features=features,
            clip_starts=np.asarray(attributes["clip_starts"], np.int64),
            clip_ends=np.asarray(attributes["clip_ends"], np.int64),
            padded=bool(attributes["padded"]),
            num_frames=attributes["num_frames"],
            fps=attributes["fps"],
            checksum=attributes["checksum"],
            decode_notes=tuple(attributes["decode_notes"]),
            provenance=attributes["provenance"],
            file=attributes.get("file", {}),
        )

    def verify(self, feature_set: str) -> Iterator[Damage | None]:
        """Read every video of a set against its checksum; yields None for a sound one and its `Damage` otherwise."""
        spec = self.spec(feature_set)
        for video_id in self.video_ids(feature_set):
            try:
                record = self.read(feature_set, video_id, check=True)
                if record.features.shape[1:] != (spec.feature_dim,) or record.features.dtype != spec.dtype:
                    raise StoreError(f"{record.features.shape} {record.features.dtype} does not fit the spec")
            except StoreError as error:
                yield Damage(video_id, str(error))
            else:
                yield None

    def delete(self, feature_set: str, video_id: str) -> None:
        """Remove one video's features, so that the next extraction computes them again."""
        node = self.path / feature_set / check_video_id(video_id)
        trash = self.path / STAGING / staging_name()
        with contextlib.suppress(FileNotFoundError):
            node.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def write_reduction(
        self, feature_set: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
    ) -> bool:
        """Write and commit what a reduced feature set is computed with. Returns False if another process did so first.

        The feature set itself need not exist yet.
        """
        self._make_groups(STAGING, REDUCTION)
        staged, final = self.path / STAGING / staging_name(), self.path / REDUCTION / feature_set
        group = zarr.create_group(staged)
        for name, array in arrays.items():
            rows = max(1, min(len(array), CHUNK_BYTES // max(1, array[:1].nbytes)))
            group.create_array(name, data=array, chunks=(rows, *array.shape[1:]), compressors=_compressor())
        commit = {"complete": True, "checksum": _checksum(arrays), "written": _now()}
        group.update_attributes({**attributes, **commit})
        return publish(staged, final, "zarr.json")

    def reduction_attributes(self, feature_set: str) -> dict[str, Any] | None:
        """Return what was written beside the arrays of a reduced feature set, None if nothing was."""
        node = self.path / REDUCTION / feature_set
        return self._attributes(node) if (node / "zarr.json").exists() else None

    def read_reduction(self, feature_set: str) -> dict[str, np.ndarray]:
        """Return the arrays that `write_reduction` wrote. Raises: StoreError if they are missing or damaged."""
        node = self.path / REDUCTION / feature_set
        attributes = self.reduction_attributes(feature_set)
        if attributes is None:
            raise StoreError(f"{self.path}: no reduction of {feature_set!r}; create it with `har features reduce`")
        again = "delete it and the feature set of that name, and reduce again"
        try:
            group = zarr.open_group(node, mode="r")
            arrays = {name: np.asarray(array[...]) for name, array in group.arrays()}
        except Exception as error:
            raise StoreError(f"{node}: damaged ({type(error).__name__}: {error}); {again}") from error
        if _checksum(arrays) != attributes.get("checksum"):
            raise StoreError(f"{node}: differs from its checksum; {again}")
        return arrays

    def record_failure(
        self, feature_set: str, video_id: str, reason: str, file: Mapping[str, str] | None = None
    ) -> None:
        """Record why a video has no features; `failures` returns it until the video succeeds. file: see `VideoSource`."""
        attributes = {"reason": reason, "file": dict(file or {}), "written": _now()}
        zarr.create_group(self.path / FAILURES / feature_set / video_id, attributes=attributes, overwrite=True)

    def clear_failure(self, feature_set: str, video_id: str) -> None:
        """Forget the failure of a video."""
        shutil.rmtree(self.path / FAILURES / feature_set / check_video_id(video_id), ignore_errors=True)

    def failures(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> reason of the videos that failed and have no features."""
        return {video_id: str(value.get("reason", "unknown")) for video_id, value in self._failed(feature_set)}

    def failed_files(self, feature_set: str) -> dict[str, dict[str, str]]:
        """Return video_id -> the file that failed, as `FeatureRecord.file`; see `failures`."""
        return {video_id: value.get("file", {}) for video_id, value in self._failed(feature_set)}

    def _failed(self, feature_set: str) -> Iterator[tuple[str, dict[str, Any]]]:
        folder = self.path / FAILURES / feature_set
        done = set(self.video_ids(feature_set)) if folder.is_dir() else set()
        for node in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (node / "zarr.json").exists() and node.name not in done:
                yield node.name, self._attributes(node)

    def remove_debris(self) -> int:
        """Delete what killed processes of this host left in `_staging`; returns how many arrays."""
        return remove_debris(self.path / STAGING)


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return f"sha256:{digest.hexdigest()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class FeatureWriter:
    """Writes one video's features in order; nothing is visible in the store before `commit` returns."""

    def __init__(self, store: Path, spec: FeatureSpec, video_id: str, num_clips: int) -> None:
        self._final = store / spec.name / check_video_id(video_id)
        self._staged = store / STAGING / staging_name()
        dtype = np.dtype(spec.dtype)
        rows = max(1, min(num_clips, CHUNK_BYTES // (spec.feature_dim * dtype.itemsize)))
        self._array = zarr.create_array(
            self._staged,
            shape=(num_clips, spec.feature_dim),
            chunks=(rows, spec.feature_dim),
            dtype=dtype,
            fill_value=float("nan") if dtype.kind == "f" else 0,
            compressors=_compressor(),
            dimension_names=("clip", "feature"),
        )
        self._buffer = np.empty((rows, spec.feature_dim), dtype)
        self._buffered = self._written = 0
        self._hash = hashlib.sha256()

    def append(self, rows: np.ndarray) -> None:
        """Add (n, D) features of the store's dtype after those already given. Raises: StoreError if there are too many."""
        if self._written + self._buffered + len(rows) > self._array.shape[0]:
            raise StoreError(f"{self._final.name}: more features than the {self._array.shape[0]} clips announced")
        self._hash.update(np.ascontiguousarray(rows, dtype=self._buffer.dtype).data)
        while len(rows):
            taken = min(len(rows), len(self._buffer) - self._buffered)
            self._buffer[self._buffered : self._buffered + taken] = rows[:taken]
            self._buffered += taken
            rows = rows[taken:]
            if self._buffered == len(self._buffer):
                self._flush()

    def _flush(self) -> None:
        self._array[self._written : self._written + self._buffered] = self._buffer[: self._buffered]
        self._written += self._buffered
        self._buffered = 0

    def commit(self, source: VideoSource) -> bool:
        """Make the features visible. Returns False if another process has committed this video already.

        Raises: StoreError if rows are missing.
        """
        if self._buffered:
            self._flush()
        if self._written != self._array.shape[0]:
            raise StoreError(f"{self._final.name}: {self._written} of {self._array.shape[0]} clips were written")
        self._array.update_attributes(
            {
                "complete": True,
                "checksum": f"sha256:{self._hash.hexdigest()}",
                "num_clips": self._written,
                "num_frames": int(source.num_frames),
                "fps": float(source.fps),
                "clip_starts": [int(start) for start in source.clip_starts],
                "clip_ends": [int(end) for end in source.clip_ends],
                "clip_times_s": source.clip_times_s.tolist(),
                "padded": source.padded,
                "decode_notes": list(source.decode_notes),
                "provenance": dict(source.provenance),
                "file": dict(source.file),
                "written": _now(),
            }
        )
        return publish(self._staged, self._final, "zarr.json")

    def abort(self) -> None:
        """Delete what was written."""
        shutil.rmtree(self._staged, ignore_errors=True)
