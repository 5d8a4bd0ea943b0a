"""The feature store: one Zarr v3 array of shape (N, D) per video, complete or absent, written without locks.

Of M tokens a clip the array is (N * M, D), clip by clip; clips, their times and `num_clips` are N all the same.

Layout: `store.zarr/<feature_set>/<video_id>`; a feature set's group carries its `FeatureSpec` as the attribute `spec`, whose
hash is in the set's name and is compared with it whenever the set is opened.
An array is built in the group `_staging` and renamed into place after its commit attributes were written and all of it is
on the disk, so a kill or a power cut at any moment leaves no partial video, and of two processes that finish the same video
the first one's features stay. What dead processes leave in `_staging` is removed as core/files.py describes.
Reasons of failed videos are in `_failures`, and the fit of a reduced or encoded feature set in `_reduction`, so
that whoever lists a feature set's arrays sees features only. Names that users gave to feature sets are groups in `_names`,
each of which says the set that it stands for; made by renaming, so that of two processes one has the name.
Arrays have one chunk, or chunks of at most 64 MiB if a video is longer, so that writing needs bounded memory.

A store may come from anywhere. Nothing but the metadata that `features/nodes.py` writes is accepted (`check_array`), before any
byte is decoded: of Zarr's codecs some load code. The commit has two checksums, of the features and of all else that numbers
depend on (clips, times, frame rate). An id is compared with the name in its folder: file systems that fold letter case
or unicode forms would give the features of another video.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import shutil
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from har_pipeline.core.errors import FeatureMismatchError, StoreError
from har_pipeline.core.files import remove, remove_debris, staging_name
from har_pipeline.core.kinds import what_is
from har_pipeline.core.objects import ObjectPath, StorePath, store_path
from har_pipeline.core.processes import working_on
from har_pipeline.core.records import (
    VIDEO_ID_PATTERN,
    FeatureRecord,
    FeatureSpec,
    VideoRecord,
    VideoSource,
    check_video_id,
)
from har_pipeline.datasets.units import SOURCES, Source
from har_pipeline.features.file_index import file_index
from har_pipeline.features.nodes import (
    DTYPES,
    ArrayWriter,
    UnreadableError,
    array_of,
    check_array,
    checksum_of,
    read_commit,
    read_metadata,
    reason_of,
    source_checksum,
    system_error,
    unreadable,
    write_array,
    write_group,
)
from har_pipeline.features.options import made_by
from har_pipeline.features.places import (
    META,
    Staging,
    candidates,
    committed,
    entries,
    in_order,
    is_there,
    last_change,
    meta_of,
    publish,
)
from har_pipeline.features.reader import StoredVideo
from har_pipeline.features.set_names import SET_NAME, check_set_name, choose_feature_set, spec_hash

STAGING, FAILURES, REDUCTION, NAMES = "_staging", "_failures", "_reduction", "_names"
FORMAT_VERSION = 1

# Videos from which on processes share what is to be verified, and how many one of them is given at a time.
SHARED_FROM, VERIFIED_AT_ONCE = 2000, 250
FAILURE_ATTEMPTS, SPELLING_ATTEMPTS = 100, 5
_DAMAGED = "its metadata is damaged"
_AGAIN = "delete it with `har features verify --delete` and extract again"
log = logging.getLogger(__name__)


class _ForeignError(StoreError):
    """A group in a store that is no feature set which this version could read."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A stored node that does not hold what its commit says, or cannot be read."""

    video_id: str  # empty of a fit
    reason: str
    kind: Literal["features", "failure", "fit"] = "features"
    readable: bool = True  # whether it was read and is wrong; else it may be sound


@contextlib.contextmanager
def writing_to(
    path: StorePath, way_out: str = "what is done is kept: mend that, then run the same command again"
) -> Iterator[None]:
    """Turn errors of the disk into a `StoreError` that names the store or pack at `path`, and the way out."""
    try:
        yield
    except (StoreError, FeatureMismatchError):
        raise
    except Exception as error:
        reason = system_error(error)
        if reason is None:
            raise
        gone = reason.errno == errno.ENOENT and not path.exists()
        raise StoreError(
            f"{path}: cannot be written ({'it is gone' if gone else reason.strerror}); {way_out}"
        ) from error


class FeatureStore:
    """Feature sets on disk. Reading never writes; `create=True` creates the folder if it is missing.

    Raises: StoreError if `path` is not a feature store.
    """

    def __init__(self, path: StorePath | str, *, create: bool = False) -> None:
        self.path = store_path(path)
        self._staging = Staging(self.path / STAGING)
        meta = self.path / META
        if create and not (meta.exists() and meta.stat().st_size):
            if self.path.exists() and not (self.path.is_dir() and all(map(_is_own, self.path.iterdir()))):
                raise StoreError(f"{self.path} is {what_is(self.path)}, not a feature store: choose another path")
            with writing_to(self.path):
                # Two processes may get here together: both write the same bytes.
                self.path.mkdir(parents=True, exist_ok=True)
                write_group(self.path, {"har_pipeline_store": FORMAT_VERSION})
        if not meta.exists():
            found = f"is {what_is(self.path)}, not a feature store" if self.path.exists() else "is not a feature store"
            raise StoreError(f"{self.path} {found} (no zarr.json); create one with `har extract` or `har frames`")
        version = self._attributes(self.path).get("har_pipeline_store")
        if version != FORMAT_VERSION:
            raise StoreError(f"{self.path} is a Zarr group but not a feature store of format {FORMAT_VERSION}")
        self._specs: dict[str, FeatureSpec] = {}
        self._told: set[str] = set()
        self._spelled: dict[tuple[str, ...], set[str]] = {}

    @property
    def folder(self) -> Path | None:
        """The folder of the store, None if it is in object storage."""
        return self.path if isinstance(self.path, Path) else None

    def staged(self) -> Path:
        """Return where a new node is built, which `places.publish` makes visible."""
        return self._staging.new()

    @staticmethod
    def _attributes(node: StorePath) -> dict[str, Any]:
        try:
            attributes: dict[str, Any] = read_metadata(node, "group")["attributes"]
            return attributes
        except ValueError as error:
            raise StoreError(f"{node}: cannot be read as a Zarr v3 group ({error})") from error

    def _node(self, *names: str, ask: bool = True) -> StorePath | None:
        """Return the path of a node, None if there is none. Raises: StoreError if it is spelled otherwise on the disk.

        ask: of object storage, whether it is there; else the path is returned in any case, which spares a request.
        """
        if any(Path(name).name != name or name == ".." for name in names):
            raise StoreError(f"{self.path}: {names[-1]!r} is no name in a store")
        node = functools.reduce(lambda path, name: path / name, names, self.path)
        if isinstance(node, ObjectPath):
            return node if not ask or is_there(node / META) else None
        folder = node.parent
        for _ in range(SPELLING_ATTEMPTS):  # other processes may remove and write the node meanwhile
            if not is_there(node / META):
                return None
            if node.name in self._spelled.get(names[:-1], ()):
                return node
            try:
                self._spelled[names[:-1]] = entries(folder)
            except OSError as error:
                raise UnreadableError(f"{node}: cannot be read ({error.strerror})") from error
        there = sorted(self._spelled[names[:-1]])
        other = next((name for name in there if _folded(name) == _folded(node.name)), "another name")
        raise StoreError(
            f"{folder} has {other!r}, and this file system takes {node.name!r} for the same name: give one of the two "
            "another video_id, or use another store"
        )

    def feature_sets(self) -> list[str]:
        """Return the names of all feature sets that this version reads, sorted; tells once of each other group."""
        return [name for name, error in self._groups() if error is None]

    def damaged_sets(self) -> dict[str, str]:
        """Return name -> reason of the feature sets whose spec cannot be read, or is not the one in their name."""
        found = self._groups()
        return {name: str(error) for name, error in found if error and not isinstance(error, _ForeignError)}

    def _groups(self) -> Iterator[tuple[str, StoreError | None]]:
        """Give each group's name and why it is passed over, None if it is a feature set."""
        try:
            nodes = sorted(
                (node for node in self.path.iterdir() if node.name[0] not in "_." and node.is_dir()),
                key=lambda node: node.name,
            )
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read ({error.strerror})") from error
        for node in nodes:
            found = None
            try:
                self.spec(node.name)
            except StoreError as error:
                found = error
                if node.name not in self._told:
                    self._told.add(node.name)
                    log.warning("passed over: %s", error)
            yield node.name, found

    def resolve(self, prefix: str) -> str:
        """Return the feature set of the name `prefix`, or the one that starts with it, or the only one of them without a fit.

        Names are its own and the one that it was given.
        Raises: StoreError if there is not exactly one; the message lists the candidates, and in what they differ.
        """
        return choose_feature_set(
            self.path, prefix, self.feature_sets(), self.spec, self.names(), lambda one: not self.video_ids(one)
        )

    def names(self) -> dict[str, str]:
        """Return name -> feature set of the sets that were given names, sorted; tells once of a damaged one."""
        found = {}
        for name in sorted(entries(self.path / NAMES)):
            node = self.path / NAMES / name
            try:
                owner = read_metadata(node, "group")["attributes"].get("feature_set") if is_there(node / META) else None
            except (ValueError, UnreadableError) as error:
                if str(node) not in self._told:
                    self._told.add(str(node))
                    log.warning("passed over: %s: %s", node, error)
                continue
            if isinstance(owner, str) and VIDEO_ID_PATTERN.fullmatch(owner) and is_there(self.path / owner / META):
                found[name] = owner
        return found

    def require_free(self, name: str, feature_set: str) -> None:
        """Check that a set, which need not exist yet, may be given a name. Raises: StoreError if another one has it."""
        check_set_name(name)
        self._node(NAMES, name)  # refuses another spelling
        owner = self.names().get(name, feature_set)
        if owner != feature_set:
            raise StoreError(
                f"{self.path}: {name!r} is the name of {owner}, which was made in another way: give another name, or rename "
                f"that one with `har features name {self.path} {name} NEW_NAME`"
            )

    def give_name(self, feature_set: str, name: str) -> list[str]:
        """Give a name to a feature set, by which `resolve` then finds it, in place of the one that it has, which is returned.

        Raises: StoreError if another set has the name, or it is not allowed, see `check_set_name`.
        """
        self.spec(feature_set)
        self.require_free(name, feature_set)
        staged, final = self._staging.new(), self.path / NAMES / name
        node = self._node(NAMES, name)
        if node is not None and name not in self.names():
            self._discard(node)  # damaged, or of a set that is gone
            node = None
        if node is None:
            with writing_to(self.path):
                for group in (STAGING, NAMES):
                    self._make_group(group)
                staged.mkdir()
                write_group(staged, {"feature_set": feature_set})
                self.discard_rump(final)
                published = publish(staged, final)
            if not published:
                self.require_free(name, feature_set)
        before = [other for other, owner in self.names().items() if owner == feature_set and other != name]
        for other in before:
            self._discard(self._node(NAMES, other))
        return before

    def spec(self, feature_set: str) -> FeatureSpec:
        """Return how the features of a set were computed."""
        if feature_set not in self._specs:
            if self._node(feature_set) is None:
                if (self.path / feature_set).is_dir():
                    raise _ForeignError(f"{self.path / feature_set}: no feature set (it has no {META})")
                raise StoreError(f"{self.path} has no feature set {feature_set!r}")
            self._specs[feature_set] = self._read_spec(self.path / feature_set)
        return self._specs[feature_set]

    @staticmethod
    def _read_spec(group: StorePath) -> FeatureSpec:
        again = "run the `har extract` or `har frames` that made it again"
        damage = StoreError if SET_NAME.fullmatch(group.name) else _ForeignError
        try:
            attributes = read_metadata(group, "group")["attributes"]
        except ValueError as error:
            raise damage(f"{group}: {_DAMAGED} ({error}); {again}") from error
        values = attributes.get("spec")
        if not isinstance(values, dict):
            raise _ForeignError(f"{group}: a Zarr group without a feature spec, not of this program")
        if not group.name.endswith(f"-{spec_hash(values)}"):
            raise damage(
                f"{group}: {_DAMAGED}: its spec is not the one that its name was made from (the spec's hash is "
                f"{spec_hash(values)}, not {group.name.rpartition('-')[2]}); bring {META} back from a copy"
            )
        try:
            return FeatureSpec.from_dict(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _ForeignError(
                f"{group}: a feature set of another version, or of another program ({error})"
            ) from error

    def create_feature_set(self, spec: FeatureSpec, name: str | None = None) -> str:
        """Create the group of `spec` if it is missing, or a power cut left it empty, and return what it is called.

        name: given to the set, see `give_name`. Raises: FeatureMismatchError if the group has another spec; StoreError if
        another set has the name, before anything is written.
        """
        if name is not None:
            self.require_free(name, spec.name)
        if not VIDEO_ID_PATTERN.fullmatch(spec.name):  # `_` begins the store's own names
            raise StoreError(f"{spec.name!r} is no name of a feature set: rename the extractor")
        group = self.path / spec.name
        with writing_to(self.path):
            if self._node(spec.name) is None or not (group / META).stat().st_size:
                group.mkdir(exist_ok=True)
                write_group(group, {"spec": spec.to_dict()})
            for own in (STAGING, FAILURES, f"{FAILURES}/{spec.name}"):
                self._make_group(own)
        try:
            stored = FeatureSpec.from_dict(self._attributes(group)["spec"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{group}: {_DAMAGED} ({error!r}); delete its {META} and run the same command") from error
        spec.require_equal(stored, f"{self.path}/{spec.name}")
        for before in self.give_name(spec.name, name) if name is not None else ():
            log.warning("%s is called %r now, and %r no longer", spec.name, name, before)
        return spec.name

    def _make_group(self, name: str) -> None:
        write_group(self.path / name, {}, once=True)

    def video_ids(self, feature_set: str) -> list[str]:
        """Return the ids of the videos whose features are complete, sorted."""
        self.spec(feature_set)
        try:
            return committed(self.path / feature_set)
        except OSError as error:
            raise StoreError(f"{self.path / feature_set}: cannot be read ({error.strerror})") from error

    def checksums(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> checksum of its complete features; a damaged commit is left out and told of."""
        return {video_id: str(value) for video_id, value in self._commits(feature_set, "checksum")}

    def num_clips(self, feature_set: str) -> dict[str, int]:
        """Return video_id -> N, in the order of `video_ids`. Raises: StoreError if a commit cannot be read."""
        return {video_id: int(value) for video_id, value in self._commits(feature_set, "num_clips", strict=True)}

    def lengths(self, feature_set: str) -> dict[str, tuple[int, float]]:
        """Return video_id -> (frames, frame rate) of the video, as in `VideoSource`; leaves out what `checksums` does."""
        return {video.video_id: (video.num_frames, video.fps) for video in self.stored(feature_set)}

    def files(self, feature_set: str) -> dict[str, dict[str, str]]:
        """Return video_id -> the file that was read, as `FeatureRecord.file`; leaves out what `checksums` does."""
        return {video_id: file for video_id, file in self.each_file(feature_set) if file is not None}

    def decode_notes(self, feature_set: str) -> dict[str, tuple[str, ...]]:
        """Return video_id -> what was wrong with its file, for the videos whose files had faults."""
        return {video.video_id: video.decode_notes for video in self.stored(feature_set) if video.decode_notes}

    def num_frames(self, feature_set: str) -> dict[str, int]:
        """Return video_id -> frames of its file, as far as known; leaves out what `checksums` does."""
        return {video_id: frames for video_id, (frames, _) in self.lengths(feature_set).items()}

    def written(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> when its features were stored, as ISO 8601, where that is known."""
        return {video_id: str(value) for video_id, value in self._commits(feature_set, "written") if value}

    def _commits(self, feature_set: str, key: str, *, strict: bool = False) -> Iterator[tuple[str, Any]]:
        return ((video_id, commit.get(key)) for video_id, commit in self._whole_commits(feature_set, strict=strict))

    def _whole_commits(self, feature_set: str, *, strict: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
        for video_id, commit in self.commits(feature_set):
            if isinstance(commit, dict):
                yield video_id, commit
                continue
            if strict:
                raise commit
            self._tell(feature_set, video_id, commit)

    def _tell(self, feature_set: str, video_id: str, damage: StoreError) -> None:
        """Warn of a damaged video once."""
        node = str(self.path / feature_set / video_id)
        if node not in self._told:
            self._told.add(node)
            log.warning("%s", damage)

    def commits(self, feature_set: str) -> Iterator[tuple[str, dict[str, Any] | StoreError]]:
        """Give the id of each video and its commit, or what is wrong with it, in the order of `video_ids`.

        One walk, and one look at each video; one commit is in memory at a time.
        """
        names, read = self._candidates(feature_set), functools.partial(self._commit, self.path / feature_set)
        for name, commit in zip(names, in_order(self.path, read, names), strict=True):
            if commit is not None:
                yield name, commit

    def _candidates(self, feature_set: str) -> list[str]:
        """Return the names of what may be videos of a set, sorted."""
        self.spec(feature_set)
        group = self.path / feature_set
        try:
            return candidates(group)
        except OSError as error:
            raise StoreError(f"{group}: cannot be read ({error.strerror})") from error

    @staticmethod
    def _commit(group: StorePath, name: str) -> dict[str, Any] | StoreError | None:
        """Return a video's commit, what is wrong with it, or None if there is no video; not through Zarr, which is slow."""
        node = f"{group}/{name}" if isinstance(group, Path) else group / name  # to make a Path takes its time
        try:
            return read_commit(name, read_metadata(node, "array"))
        except UnreadableError as error:
            return error
        except ValueError as error:
            return _damaged(node, error) if is_there(meta_of(node)) else None

    def each_file(self, feature_set: str) -> Iterator[tuple[str, dict[str, str] | None]]:
        """Give the id of each video there is, and the file that was read; None of a damaged one, which is told of."""
        names, group = self._candidates(feature_set), self.path / feature_set
        with file_index(group, len(names)) as index:

            def look(name: str) -> dict[str, Any] | StoreError | None:
                """Return the file, or why it is not known; None if there is no video."""
                state = b"" if index is None else index.state(name)
                if index is not None and (known := index.known(name, state)) is not None:
                    return known
                commit = self._commit(group, name)
                if not isinstance(commit, dict):
                    return commit
                file: dict[str, Any] = commit.get("file") or {}
                if index is not None:
                    index.add(name, state, file)
                return file

            for name, found in zip(names, in_order(self.path, look, names), strict=True):
                if isinstance(found, StoreError):
                    self._tell(feature_set, name, found)
                    yield name, None
                elif found is not None:
                    yield name, found

    def stored(self, feature_set: str) -> Iterator[StoredVideo]:
        """Give what is known of each video, one at a time; leaves out what `checksums` does."""
        for video_id, commit in self._whole_commits(feature_set):
            notes = tuple(commit["decode_notes"])
            yield StoredVideo(video_id, int(commit["num_frames"]), float(commit["fps"]), notes)

    def require_spelling(self, feature_set: str, video_id: str) -> None:
        """Check that no other video of the set has the folder of `video_id`. Raises: StoreError naming both."""
        self._node(feature_set, video_id)

    def last_change(self, feature_set: str) -> int:
        """Return when a video was last added to a feature set or removed from it, in ns since 1970.

        In object storage a number that tells two states apart, and no time.
        """
        self.spec(feature_set)
        return last_change(self.path / feature_set)

    def writer(self, feature_set: str, video_id: str, num_clips: int) -> FeatureWriter:
        """Return a writer of the features of one video of `num_clips` clips."""
        return FeatureWriter(self, self.spec(feature_set), video_id, num_clips)

    def write(self, feature_set: str, video_id: str, features: np.ndarray, source: VideoSource) -> bool:
        """Write and commit the whole (N, D) array of one video, or (N * M, D) of M tokens a clip; see `FeatureWriter.commit`.

        Raises: FeatureMismatchError if D is not the spec's, or the rows are no whole clips.
        """
        spec = self.spec(feature_set)
        if features.ndim != 2 or features.shape[1] != spec.feature_dim or len(features) % spec.rows_per_clip:
            rows = f" and {spec.rows_per_clip} rows a clip" if spec.rows_per_clip > 1 else ""
            raise FeatureMismatchError(
                f"{video_id}: shape {features.shape}, but {feature_set} has D={spec.feature_dim}{rows}"
            )
        writer = self.writer(feature_set, video_id, len(features) // spec.rows_per_clip)
        writer.append(features.astype(spec.dtype, copy=False))
        return writer.commit(source)

    def read(self, feature_set: str, video_id: str, *, check: bool = False) -> FeatureRecord:
        """Return the features of one video; with `check`, compared with the checksum of the commit.

        Raises: StoreError if the video has no complete features here, or they are damaged.
        """
        spec, node = self.spec(feature_set), self._node(feature_set, video_id, ask=False)
        if node is None:
            raise self._absent(feature_set, video_id)
        try:
            values = read_metadata(node, "array")
            commit = read_commit(node.name, values)
            check_array(node, values, (spec.dtype,))
            wanted = [commit["num_clips"] * spec.rows_per_clip, spec.feature_dim]
            if values["shape"] != wanted:
                raise ValueError(f"shape {values['shape']}, not {wanted}")
            features = array_of(node, values)
            starts, ends = (np.asarray(commit[name], np.int64) for name in ("clip_starts", "clip_ends"))
            times = np.asarray(commit["clip_times_s"], np.float64) if "clip_times_s" in commit else None
        except UnreadableError:
            raise
        except Exception as error:
            if self.folder is None and not is_there(node / META):
                raise self._absent(feature_set, video_id) from error
            raise unreadable(node, error) or _damaged(node, error) from error
        if (check or self.folder is None) and f"sha256:{hashlib.sha256(features.tobytes()).hexdigest()}" != commit[
            "checksum"
        ]:
            raise StoreError(f"{node}: features differ from their checksum; {_AGAIN}")
        return FeatureRecord(
            video_id=video_id,
            features=features,
            clip_starts=starts,
            clip_ends=ends,
            clip_times_s=None if times is None else times.reshape(-1, 2),  # type: ignore[arg-type]
            padded=bool(commit["padded"]),
            num_frames=commit["num_frames"],
            fps=commit["fps"],
            checksum=commit["checksum"],
            decode_notes=tuple(commit["decode_notes"]),
            provenance=commit["provenance"],
            file=commit.get("file", {}),
        )

    def _absent(self, feature_set: str, video_id: str) -> StoreError:
        """Return the error that says why a video has no features."""
        if not self.path.exists():
            return StoreError(f"{self.path}: the store is gone")
        reason = self.failures(feature_set).get(video_id)
        why = (
            f"; its extraction failed: {reason}"
            if reason
            else f"; create them with `{made_by(self.spec(feature_set))}`"
        )
        return StoreError(f"{self.path}: {feature_set} has no features of {video_id!r}{why}")

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

    def verify(self, feature_set: str, *, workers: int = 1) -> Iterator[Damage | None]:
        """Read every video of a set against its checksums; yields None for a sound one and its `Damage` otherwise.

        Failure records and the fit of the set are read too, of which only the damaged are told. workers: processes that
        share the videos of a local store, if there are many.
        """
        video_ids = self.video_ids(feature_set)
        if workers > 1 and self.folder is not None and len(video_ids) >= SHARED_FROM:
            yield from _verified(self.folder, feature_set, video_ids, workers)
        else:
            yield from in_order(self.path, functools.partial(self._damage, feature_set), video_ids)
        for video_id, attributes in self._failed(feature_set):
            if isinstance(attributes, StoreError):
                readable = not isinstance(attributes, UnreadableError)
                yield Damage(video_id, str(attributes), "failure", readable)
        yield from self.verify_fit(feature_set)

    def _damage(self, feature_set: str, video_id: str) -> Damage | None:
        """Return what is wrong with a video, None of a sound one."""
        try:
            self.read(feature_set, video_id, check=True)
        except (StoreError, ValueError) as error:
            return Damage(video_id, str(error), readable=not isinstance(error, UnreadableError))
        return None

    def verify_fit(self, feature_set: str) -> Iterator[Damage]:
        """Yield the `Damage` of the fit of a feature set that has one, or must have."""
        if self._node(REDUCTION, feature_set) is not None or self.spec(feature_set).fit is not None:
            try:
                self.read_fit(feature_set)
            except StoreError as error:
                yield Damage("", str(error), "fit", not isinstance(error, UnreadableError))

    def fits(self) -> list[str]:
        """Return the names of the feature sets of which a fit is stored, sorted; the sets need not exist yet."""
        return committed(self.path / REDUCTION) if (self.path / REDUCTION).is_dir() else []

    def delete(self, feature_set: str, video_id: str) -> None:
        """Remove one video's features, so that the next extraction computes them again."""
        self._discard(self._node(feature_set, video_id))

    def mend(self, feature_set: str, damage: Damage) -> None:
        """Remove what `verify` found damaged; with a fit, the features made with it.

        Raises: StoreError if it was not read, and so may be sound.
        """
        if not damage.readable:
            raise StoreError(f"{damage.reason}: not deleted")
        if damage.kind == "features":
            self.delete(feature_set, damage.video_id)
        elif damage.kind == "failure":
            self.clear_failure(feature_set, damage.video_id)
        else:
            self.discard_fit(feature_set)

    def discard_fit(self, feature_set: str) -> None:
        """Remove a fit and the features that were made with it, or a second fit would be mixed with the first."""
        self._discard(self._node(feature_set))
        self._specs.pop(feature_set, None)
        self._discard(self._node(REDUCTION, feature_set))

    def discard_rump(self, node: StorePath) -> None:
        """Remove a folder that has lost its metadata, and so holds nothing; in object storage writing replaces what is left."""
        if self.folder is not None and node.is_dir() and not is_there(node / META):
            self._discard(node)

    def _discard(self, node: StorePath | None) -> None:
        if node is None:
            return
        if isinstance(node, ObjectPath):
            with writing_to(self.path):
                _discard_objects(node)
            return
        assert isinstance(self.path, Path)
        assert isinstance(node, Path)
        trash = self.path / STAGING / staging_name()
        with writing_to(self.path):
            self._make_group(STAGING)
            try:
                node.rename(trash)
            except FileNotFoundError:
                if not self.path.exists():
                    raise
        shutil.rmtree(trash, ignore_errors=True)

    def write_fit(self, feature_set: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> bool:
        """Write and commit what a feature set is computed with. Returns False if another process did so first.

        The feature set itself need not exist yet.
        """
        staged, final = self._staging.new(), self.path / REDUCTION / feature_set
        with writing_to(self.path):
            for name in (STAGING, REDUCTION):
                self._make_group(name)
            try:
                staged.mkdir()
                for name, array in arrays.items():
                    write_array(staged / name, array)
                commit = {"complete": True, "checksum": checksum_of(arrays), "written": _now()}
                write_group(staged, {**attributes, **commit})
                self.discard_rump(final)
                return publish(staged, final)
            except BaseException:
                remove(staged)
                raise

    def fit_attributes(self, feature_set: str) -> dict[str, Any] | None:
        """Return what was written beside the fit of a feature set, None if nothing was."""
        node = self._node(REDUCTION, feature_set)
        return None if node is None else self._attributes(node)

    def read_fit(self, feature_set: str) -> dict[str, np.ndarray]:
        """Return the arrays that `write_fit` wrote. Raises: StoreError if they are missing or damaged."""
        node = self._node(REDUCTION, feature_set)
        if node is None:
            raise StoreError(f"{self.path}: no fit of {feature_set!r}; run the command that made the set again")
        again = "delete it and the feature set of that name, and run the command that made the set again"
        try:
            checksum = read_metadata(node, "group")["attributes"].get("checksum")
            arrays = {}
            for name in sorted(one for one in entries(node) if (node / one).is_dir()):
                values = read_metadata(node / name, "array")
                check_array(node / name, values, DTYPES)
                arrays[name] = array_of(node / name, values)
        except UnreadableError:
            raise
        except Exception as error:
            raise unreadable(node, error) or StoreError(f"{node}: damaged ({reason_of(error)}); {again}") from error
        if checksum_of(arrays) != checksum:
            raise StoreError(f"{node}: differs from its checksum; {again}")
        return arrays

    def record_failure(
        self, feature_set: str, video_id: str, reason: str, file: Mapping[str, str] | None = None
    ) -> None:
        """Record why a video has no features; `failures` returns it until the video succeeds. file: see `VideoSource`.

        Any number of processes may do so at a time; the last one's record stays.
        """
        node = self.path / FAILURES / feature_set / check_video_id(video_id)
        if self.folder is not None:
            self._node(FAILURES, feature_set, video_id)  # refuses another spelling
        with writing_to(self.path):
            for attempt in range(FAILURE_ATTEMPTS):
                try:
                    node.mkdir(exist_ok=True)
                    write_group(node, {"reason": reason, "file": dict(file or {}), "written": _now()})
                    return
                except (FileNotFoundError, FileExistsError):
                    # Another process has read the video meanwhile and cleared its failure; `mkdir` says that it exists if
                    # it is cleared between its two looks.
                    if attempt == FAILURE_ATTEMPTS - 1 or not node.parent.is_dir():
                        raise

    def clear_failure(self, feature_set: str, video_id: str) -> None:
        """Forget the failure of a video."""
        node = self.path / FAILURES / feature_set / video_id
        if isinstance(node, ObjectPath):
            with writing_to(self.path):
                (node / META).unlink()
        elif isinstance(node, Path) and video_id in entries(node.parent):
            remove(node)

    def failures(self, feature_set: str) -> dict[str, str]:
        """Return video_id -> reason of the videos that failed and have no features; of a damaged record, that it is so."""
        return {video_id: reason for video_id, (reason, _) in self.failure_records(feature_set).items()}

    def failed_files(self, feature_set: str) -> dict[str, dict[str, str]]:
        """Return video_id -> the file that failed, as `FeatureRecord.file`; see `failures`.

        A damaged record names no file that there is, so that the video is tried again.
        """
        return {video_id: file for video_id, (_, file) in self.failure_records(feature_set).items()}

    def failure_records(
        self, feature_set: str, done: Collection[str] | None = None
    ) -> dict[str, tuple[str, dict[str, str]]]:
        """Return video_id -> what `failures` and `failed_files` have of it. done: `video_ids`, where they are known."""
        return {
            video_id: (str(value), {"name": ""})
            if isinstance(value, StoreError)
            else (str(value.get("reason", "unknown")), value.get("file", {}))
            for video_id, value in self._failed(feature_set, done)
        }

    def _failed(
        self, feature_set: str, done: Collection[str] | None = None
    ) -> Iterator[tuple[str, dict[str, Any] | StoreError]]:
        """Give the attributes of each failure record whose video has no features, or what is wrong with the record."""
        folder = self.path / FAILURES / feature_set
        failed = committed(folder) if folder.is_dir() else []
        if done is None:
            done = set(self.video_ids(feature_set)) if failed else set()
        for name in failed:
            node = folder / name
            if name in done:
                continue
            try:
                attributes = read_metadata(node, "group")["attributes"]
                if not isinstance(attributes.get("file", {}), dict):
                    raise ValueError("its file is no mapping")
                yield name, attributes
            except UnreadableError as error:
                yield name, error
            except ValueError as error:
                yield (
                    name,
                    StoreError(f"{node}: the record of its failure is damaged ({error}); the video is tried again"),
                )

    def remove_debris(self) -> int:
        """Delete what dead writers left in the store, see core/files.py; returns how many arrays and files."""
        if not isinstance(self.path, Path):
            return 0  # what they put is replaced by the next who writes the same video
        removed = remove_debris(self.path / STAGING)
        sets = [node for node in self.path.iterdir() if node.is_dir() and not node.name.startswith(".")]
        failures = [self.path / FAILURES / name for name in entries(self.path / FAILURES)]
        for folder in (self.path, *sets, *(node for node in failures if node.is_dir())):
            removed += remove_debris(folder, "*")
        return removed


def _discard_objects(node: ObjectPath) -> None:
    """Take the commits of a node and of those within it away, its own last.

    The chunks of a video stay until they are replaced: of two who delete the same video one could delete what the other has
    put again, and committed.
    """
    for path, _ in sorted(node.files(), key=lambda one: -one[0].count("/")):
        if path.rpartition("/")[2] == META:
            (node / path).unlink()


def _verified(path: Path, feature_set: str, video_ids: Sequence[str], workers: int) -> Iterator[Damage | None]:
    """Give what is wrong with each video, as `FeatureStore.verify` does, found by several processes."""
    tasks = [
        (path, feature_set, video_ids[start : start + VERIFIED_AT_ONCE])
        for start in range(0, len(video_ids), VERIFIED_AT_ONCE)
    ]
    with working_on(tasks, _damages, min(workers, len(tasks)), _opened, path) as futures:
        for future in futures:
            try:
                yield from future.result()
            except BrokenProcessPool as error:
                raise StoreError(f"{path}: a process that checks features has died (out of memory?)") from error


@functools.cache
def _opened(path: Path) -> FeatureStore:
    """Return the store of a process that verifies."""
    return FeatureStore(path)


def _damages(task: tuple[Path, str, Sequence[str]]) -> list[Damage | None]:
    """Return what is wrong with each video of a task, None of a sound one."""
    path, feature_set, video_ids = task
    store = _opened(path)
    return [store._damage(feature_set, video_id) for video_id in video_ids]


def _is_unborn(node: StorePath) -> bool:
    """Whether a file is of a store whose making a kill or a power cut ended."""
    partial = node.name.startswith(".zarr.partial-") or (
        node.name.startswith("zarr.") and node.name.endswith(".partial")
    )
    return partial or (node.name == META and node.is_file() and not node.stat().st_size)


def _is_own(node: StorePath) -> bool:
    """Whether a file or folder may stand in a store whose own metadata is missing or empty: they are then written again."""
    own = node.name in (STAGING, FAILURES, REDUCTION, NAMES) or SET_NAME.fullmatch(node.name) is not None
    return _is_unborn(node) or (own and node.is_dir())


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _damaged(node: StorePath | str, error: BaseException) -> StoreError:
    return StoreError(f"{node}: damaged ({reason_of(error)}); {_AGAIN}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class FeatureWriter:
    """Writes one video's features in order; nothing is visible in the store before `commit` returns."""

    def __init__(self, store: FeatureStore, spec: FeatureSpec, video_id: str, num_clips: int) -> None:
        self._store = store
        self._final = store.path / spec.name / check_video_id(video_id)
        self._staged = store.staged()
        self._rows_per_clip = spec.rows_per_clip
        store.require_spelling(spec.name, video_id)
        dtype = np.dtype(spec.dtype)
        with self._writing():
            shape = (num_clips * spec.rows_per_clip, spec.feature_dim)
            self._array = ArrayWriter(self._staged, shape, dtype, "NaN" if dtype.kind == "f" else 0)

    def append(self, rows: np.ndarray) -> None:
        """Add (n, D) features of the store's dtype after those already given. Raises: StoreError if there are too many."""
        if self._array.given + len(rows) > self._array.shape[0]:
            raise StoreError(f"{self._final.name}: more features than the {self._array.shape[0]} rows announced")
        with self._writing():
            self._array.append(rows)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with writing_to(self._store.path):
                yield
        except BaseException:
            self.abort()
            raise

    def commit(self, source: VideoSource) -> bool:
        """Make the features visible. Returns False if another process has committed this video already.

        Raises: StoreError if rows are missing.
        """
        given = self._array.given
        if given != self._array.shape[0]:
            raise StoreError(f"{self._final.name}: {given} of {self._array.shape[0]} rows were written")
        clips = given // self._rows_per_clip
        if not len(source.clip_starts) == len(source.clip_ends) == len(source.clip_times_s) == clips:
            raise StoreError(f"{self._final.name}: {len(source.clip_starts)} clips are described, not {clips}")
        commit = {
            "complete": True,
            "id": self._final.name,
            "checksum": self._array.checksum,
            "num_clips": clips,
            "num_frames": int(source.num_frames),
            "fps": float(source.fps),
            "clip_starts": [int(start) for start in source.clip_starts],
            "clip_ends": [int(end) for end in source.clip_ends],
            "clip_times_s": np.asarray(source.clip_times_s, np.float64).tolist(),
            "padded": bool(source.padded),
            "decode_notes": list(source.decode_notes),
            "provenance": dict(source.provenance),
            "file": dict(source.file),
            "written": _now(),
        }
        with self._writing():
            self._array.finish({**commit, "source_checksum": source_checksum(commit)}, ("clip", "feature"))
            self._store.discard_rump(self._final)
            published = publish(self._staged, self._final)
        if not published:
            self._store.require_spelling(self._final.parent.name, self._final.name)
        return published

    def abort(self) -> None:
        """Delete what was written."""
        shutil.rmtree(self._staged, ignore_errors=True)
