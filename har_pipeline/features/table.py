"""Stored features as one flat table in memory, of one stream or of several side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import FeatureRecord, FeatureSpec, VideoRecord
from har_pipeline.features.options import MOTION, made_by
from har_pipeline.features.places import in_order
from har_pipeline.features.reader import FeatureReader
from har_pipeline.features.source_files import differ, words
from har_pipeline.features.store import FeatureStore, writing_to
from har_pipeline.video.clips import sparse_clip_indices

MEMORY_FRACTION = 0.4
# Of an array that grows, the part that is kept free for what follows.
ROOM = 0.1


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """The features of V videos, one after the other."""

    video_ids: tuple[str, ...]
    # (V,) int64 class numbers.
    labels: np.ndarray
    # (sum N, D) float16, float32, or uint8 of raw frames; in memory or a memory map.
    features: np.ndarray
    # (V + 1,) int64: video v owns the rows `[offsets[v], offsets[v + 1])`.
    offsets: np.ndarray
    # Of the features as they are stored, those of several streams joined by +; empty if they come from no store.
    checksums: tuple[str, ...] = ()
    # What was odd about the videos' files when they were read.
    notes: tuple[str, ...] = ()
    # M, the rows of each clip, one after the other: of token features, see `FeatureSpec.rows_per_clip`.
    rows_per_clip: int = 1

    @property
    def lengths(self) -> np.ndarray:
        """(V,) int64, the number of clips of each video; `offsets` count their rows."""
        return np.diff(self.offsets) // self.rows_per_clip

    @property
    def feature_dim(self) -> int:
        """D."""
        return int(self.features.shape[1])

    def rows_of(self, video_ids: Sequence[str]) -> np.ndarray:
        """Return the (n,) int64 positions of those of `video_ids` that are in the table, in the order given."""
        position = {video_id: row for row, video_id in enumerate(self.video_ids)}
        return np.array([position[video_id] for video_id in video_ids if video_id in position], np.int64)


class FeatureStreams:
    """One feature set of a store, or several side by side; its videos are those that all of them hold."""

    def __init__(self, store: FeatureReader, feature_sets: Sequence[str]) -> None:
        """feature_sets: names, or unique starts of names. Raises: RunError if one is given twice; StoreError if unknown."""
        self.store = store
        self.names = tuple(store.resolve(prefix) for prefix in feature_sets)
        if len(set(self.names)) < len(self.names):
            raise RunError(
                f"the feature set {max(self.names, key=self.names.count)} is given twice: each stream needs its own"
            )

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """How the features of each set were made."""
        return tuple(self.store.spec(name) for name in self.names)

    def video_ids(self) -> list[str]:
        """Return the ids that have features in all sets, in the order of the first."""
        first, *others = (self.store.video_ids(name) for name in self.names)
        common = set(first).intersection(*others)
        return [video_id for video_id in first if video_id in common]

    @functools.cached_property
    def checksums(self) -> Mapping[str, str]:
        """video_id -> checksum of its features, as `FeatureTable` has it, read once."""
        sets = [self.store.checksums(name) for name in self.names]
        return {
            video_id: "+".join(own[video_id] for own in sets)
            for video_id in sets[0]
            if all(video_id in own for own in sets)
        }

    def read(self, video_id: str, *, check: bool = False) -> FeatureRecord:
        """Return the record of the first set, with the features of all sets and their checksums joined by +."""
        records = [self.store.read(name, video_id, check=check) for name in self.names]
        checksum = "+".join(record.checksum for record in records)
        return dataclasses.replace(records[0], features=joined_features(records), checksum=checksum)

    def failures(self) -> dict[str, str]:
        """Return video_id -> why it has no features; of several sets with the name of the set."""
        return {
            video_id: reason if len(self.names) == 1 else f"{name}: {reason}"
            for name in self.names
            for video_id, reason in self.store.failures(name).items()
        }


def load_features(
    streams: FeatureStreams,
    records: Sequence[VideoRecord],
    ids: Sequence[str],
    classes: Sequence[str],
    *,
    allow_missing: bool = False,
    memory_fraction: float = MEMORY_FRACTION,
    spill_dir: Path | None = None,
) -> FeatureTable:
    """Read the features of the videos `ids`, in that order.

    They stay in memory up to `memory_fraction` of what is free, and take a tenth more while they are read; beyond that they
    become a memory map of an unlinked temporary file in `spill_dir`. Each video is compared with its checksum.
    Raises: StoreError if they differ; RunError if an id is not in the manifest, has no features (with `allow_missing` it
    is left out), has features that were made from another file, has no clip, another feature_dim than the first video, or
    a feature that is not finite.
    """
    number = {label: k for k, label in enumerate(classes)}
    by_id = {record.video_id: record for record in records if record.label in number}
    if unknown := [video_id for video_id in ids if video_id not in by_id]:
        raise RunError(f"{_some(unknown)} not in the manifest, or with a label outside the run's classes")
    present = set(streams.video_ids())
    kept = tuple(video_id for video_id in ids if video_id in present)
    if len(kept) < len(ids) and not allow_missing:
        raise RunError(missing_message(streams, [video_id for video_id in ids if video_id not in present], len(ids)))
    if not kept:
        raise RunError(
            f"{'+'.join(streams.names)}: none of the {len(ids)} videos has features; run `{made_by(streams.specs[0])}` first"
        )
    _check_derived(streams, kept)
    lengths, checksums, odd = [], [], {}
    with contextlib.closing(Rows(int(memory_fraction * available_memory()), spill_dir)) as rows:
        read = in_order(streams.store.path, functools.partial(streams.read, check=True), kept)
        for video_id, record in zip(kept, read, strict=True):
            check_file(record, by_id[video_id])
            if record.decode_notes:
                odd[video_id] = "; ".join(record.decode_notes)
            rows.add(video_id, record.features)
            lengths.append(len(record.features))
            checksums.append(record.checksum)
        flat = rows.join()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    labels = np.array([number[by_id[video_id].label] for video_id in kept], np.int64)
    notes, rows_per_clip = _odd_files(odd, len(kept)), streams.specs[0].rows_per_clip
    return FeatureTable(kept, labels, flat, offsets, tuple(checksums), notes, rows_per_clip)


def check_file(record: FeatureRecord, video: VideoRecord) -> None:
    """Check that features were made from the file that the manifest names: by its name, as training does not need the file.

    Raises: RunError naming both.
    """
    names = {path.name for path in (video.path, video.depth_path) if path is not None}
    now = {"frames": video.describe_span()}
    if record.file and (record.file["name"] not in names or differ(record.file, now)):
        raise RunError(
            f"{video.video_id}: its features were made from {words(record.file)}; the manifest names {', '.join(names)}, "
            f"frames {now['frames']}: extract it into another store, or re-extract it with --replace-changed"
        )


def _check_derived(streams: FeatureStreams, ids: Sequence[str]) -> None:
    """Check that reduced and encoded videos were made from what their source holds now. A pack holds no sources."""
    if not isinstance(streams.store, FeatureStore):
        return
    for name, spec in zip(streams.names, streams.specs, strict=True):
        if spec.fit is None or spec.fit.source not in streams.store.feature_sets():
            continue
        mine, theirs = streams.store.files(name), streams.store.files(spec.fit.source)
        if stale := [one for one in ids if one in theirs and mine.get(one) != theirs[one]]:
            raise RunError(
                f"{name}: {_some(stale)} extracted again since from another file: run `{made_by(spec)}` again, as before"
            )


def _odd_files(odd: Mapping[str, str], videos: int) -> tuple[str, ...]:
    if not odd:
        return ()
    first = next(iter(odd))
    return (f"there is something to say of {len(odd)} of the {videos} videos, such as {first}: {odd[first]}",)


def _all_finite(features: np.ndarray) -> bool:
    if features.dtype == np.float16:
        # Four times as fast as np.isfinite, which goes through float32. No finite number has all exponent bits set.
        return bool((features.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)
    return bool(np.isfinite(features).all())


class Rows:
    """Collects (n, D) arrays in one that grows; once they exceed `budget` bytes they continue in a temporary file."""

    def __init__(self, budget: int, spill_dir: Path | None) -> None:
        """spill_dir: the folder of that file; None: the system's."""
        self._budget, self._spill_dir = budget, spill_dir
        # The rows so far, and room for others; empty once there is a file.
        self._rows = np.empty((0, 0))
        self._first: tuple[int, np.dtype[Any]] | None = None
        self._count = self._bytes = 0
        self._file: IO[bytes] | None = None

    def add(self, video_id: str, features: np.ndarray) -> None:
        """Take the features (n, D) of a video. Raises: RunError if they do not fit to those before, or are not finite."""
        if features.ndim != 2 or not len(features):
            raise RunError(f"{video_id}: features of shape {features.shape} hold no clip; extract the video again")
        shape = (features.shape[1], features.dtype)
        self._first = self._first or shape
        if shape != self._first:
            raise RunError(f"{video_id}: (feature_dim, dtype) is {shape}, but that of the videos before {self._first}")
        if not _all_finite(features):
            raise RunError(f"{video_id}: a feature is not finite; extract it again (float16 ends at 65504)")
        self._bytes += features.nbytes
        if self._file is None and self._bytes > self._budget:
            with self._spilling():
                if self._spill_dir is not None:
                    self._spill_dir.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._spill_dir)  # noqa: SIM115 - see close
                self._file.write(self._rows[: self._count].data)
            self._rows = np.empty((0, 0))
        if self._file is None:
            self._put(features)
        else:
            with self._spilling():
                self._file.write(np.ascontiguousarray(features).data)
        self._count += len(features)

    def _put(self, features: np.ndarray) -> None:
        """Copy rows behind those before. An array that is resized grows in its place, where a list of parts is copied."""
        end = self._count + len(features)
        if not self._count:
            self._rows = np.empty(features.shape, features.dtype)
        elif end > len(self._rows):
            self._rows.resize((end + int(ROOM * end), features.shape[1]), refcheck=False)
        self._rows[self._count : end] = features

    def _spilling(self) -> contextlib.AbstractContextManager[None]:
        way_out = (
            "the features do not fit into memory and go there: make room, or reduce them with `har features reduce`"
        )
        return writing_to(self._spill_dir or Path(tempfile.gettempdir()), way_out)

    def join(self) -> np.ndarray:
        """Return all rows in order, in memory or as a memory map."""
        if self._file is None or self._first is None:
            if self._first is not None:  # else there are no rows
                self._rows.resize((self._count, self._first[0]), refcheck=False)
            return self._rows
        with self._spilling():
            self._file.flush()
        # r+ because torch wants a writable array; the file has no name, nothing else can be overwritten.
        return np.memmap(self._file, self._first[1], "r+", shape=(self._count, self._first[0]))

    def close(self) -> None:
        """Close the temporary file; a memory map of it stays valid."""
        if self._file is not None:
            self._file.close()


def available_memory() -> int:
    """Return the memory in bytes that can be had without swapping, as the system estimates it."""
    import psutil

    return int(psutil.virtual_memory().available)


def feature_statistics(
    table: FeatureTable, rows: np.ndarray, join: Callable[[np.ndarray], np.ndarray] = lambda clips: clips
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (D',) float64 of each feature over all clips of the videos `rows`.

    join: makes of the table's features (N, D) float64 of a video those that are meant (N, D').
    """
    count, total, squares = 0, 0.0, 0.0
    shift: np.ndarray | None = None
    for row in rows:
        clips = join(table.features[table.offsets[row] : table.offsets[row + 1]].astype(np.float64))
        # Sums around the first video's mean: the naive formula loses a constant feature's zero deviation.
        shift = clips.mean(axis=0) if shift is None else shift
        clips = clips - shift
        count += len(clips)
        total = total + clips.sum(axis=0)
        squares = squares + np.square(clips).sum(axis=0)
    if shift is None:
        raise RunError("feature statistics need at least one training video")
    mean = total / count
    return mean + shift, np.sqrt(np.maximum(squares / count - mean**2, 0))


def align_by_time(times: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return, for each stream of one video, which of its clips (N_1,) int64 belongs to each clip of the first stream.

    times: for each stream (N_s, 2) start and end of its clips in seconds. Each of the N_1 clips of the first stream gets
    the clip whose middle is closest in time, the earlier of two at the same distance; the first stream keeps its clips.
    The middles may be apart by half of the longer clip plus one step between clips (of the stream with longer steps; a
    single clip counts as a step of its length). Clips over the same video are never further apart: dense clips leave out
    less than a step at its end. Streams that cover different times of the video are.
    Raises: RunError if a stream has no clip, a time is not finite (a file without a frame rate), or a clip of the first
    stream has no clip that near in another stream.
    """
    streams = [np.asarray(stream, np.float64).reshape(-1, 2) for stream in times]
    for number, stream in enumerate(streams):
        if not len(stream) or not np.isfinite(stream).all():
            raise RunError(f"stream {number} has no clips, or no times of its clips: extract the video again")
    first, lengths = streams[0].mean(axis=1), np.diff(streams[0], axis=1)[:, 0]
    rows = [np.arange(len(first))]
    for number, stream in enumerate(streams[1:], start=1):
        middles = stream.mean(axis=1)
        # Sorted by time, so that the earlier clip wins a tie.
        order = np.argsort(middles, kind="stable")
        nearest = order[np.abs(first[:, None] - middles[order]).argmin(axis=1)]
        apart = np.abs(first - middles[nearest])
        longer = np.maximum(lengths, np.diff(stream, axis=1)[nearest, 0])
        allowed = longer / 2 + max(_clip_step(streams[0]), _clip_step(stream))
        if (far := np.flatnonzero(apart > allowed * (1 + 1e-9))).size:
            raise RunError(
                f"stream {number} has no clip within {allowed[far[0]]:.2f} s of the first stream's clip at "
                f"{first[far[0]]:.2f} s (the nearest is {apart[far[0]]:.2f} s away; {far.size} of {len(first)} clips have "
                "none): the streams cover different times; extract them with the same --sampling"
            )
        rows.append(nearest)
    return rows


def _clip_step(stream: np.ndarray) -> float:
    """Return the median distance in seconds between the middles of successive clips; of a single clip its length."""
    gaps = np.diff(np.unique(stream.mean(axis=1)))
    return float(np.median(gaps)) if len(gaps) else float(np.diff(stream, axis=1).max())


def take_steps(table: FeatureTable, num_steps: int | None) -> FeatureTable:
    """Return a table with `num_steps` evenly spaced clips of each video; None = the table as it is.

    Clips of shorter videos repeat. Source: Lakhal 2018, section 3.1, sigma(t).
    """
    if num_steps is None or bool((table.lengths == num_steps).all()):
        return table
    taken = {length: sparse_clip_indices(length, num_steps) for length in set(table.lengths.tolist())}
    starts = table.offsets // table.rows_per_clip
    clips = np.concatenate(
        [start + taken[length] for start, length in zip(starts, table.lengths.tolist(), strict=False)]
    )
    offsets = table.rows_per_clip * num_steps * np.arange(len(table.offsets), dtype=np.int64)
    return dataclasses.replace(table, features=take_clips(table.features, clips, table.rows_per_clip), offsets=offsets)


def take_clips(features: np.ndarray, clips: np.ndarray, rows_per_clip: int) -> np.ndarray:
    """Return the rows (n * M, D) of the clips `clips` (n,), given by their numbers, of features (N * M, D)."""
    return features.reshape(-1, rows_per_clip, features.shape[-1])[clips].reshape(-1, features.shape[-1])


def _some(ids: Sequence[str]) -> str:
    return f"{len(ids)} video{'s' if len(ids) > 1 else ''} ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})"


def missing_message(streams: FeatureStreams, missing: Sequence[str], wanted: int) -> str:
    """Return in words how many of the `wanted` videos have no features, why, and what to do. missing: their ids."""
    failures = streams.failures()
    failed = [video_id for video_id in missing if video_id in failures]
    why = f"; the reason is known for {len(failed)}, of the first: {failures[failed[0]]}" if failed else ""
    spec = streams.specs[0]
    command, how = made_by(spec), "on the manifest (with --retry-failed for those that failed)"
    if spec.fit is not None:
        source = made_by(dataclasses.replace(spec, reduction=None, encoding=None))
        how = f"on the store, after `{source}` if the features that it reads are missing too"
    elif spec.extractor == MOTION:
        how = "on the store, after `har frames` if their frames are missing too"
    return (
        f"{'+'.join(streams.names)}: no features of {_some(missing)} of the {wanted} wanted{why}. Run `{command}` {how}, or "
        "leave them out with --allow-missing"
    )


def joined_features(records: Sequence[FeatureRecord]) -> np.ndarray:
    """Return (N, D1 + D2 + ...) the features of one video's streams on the clips of the first.

    Of tokens the clips are joined token by token, (N * M, D1 + D2 + ...).
    Raises: RunError naming the video if a stream has no clip near enough, see `align_by_time`, or another number of tokens.
    """
    if len(records) == 1:
        return records[0].features
    tokens = [len(record.features) // max(1, len(record.clip_starts)) for record in records]
    if len(set(tokens)) > 1:
        raise RunError(
            f"{records[0].video_id}: feature sets of {' and '.join(map(str, tokens))} rows a clip cannot be joined row by row: "
            "train a head on each and fuse their scores (har fuse)"
        )
    try:
        rows = align_by_time([record.clip_times_s for record in records])
    except RunError as error:
        raise RunError(f"{records[0].video_id}: {error}") from error
    return np.concatenate(
        [take_clips(record.features, own, tokens[0]) for record, own in zip(records, rows, strict=True)], axis=1
    )
