"""One node of a feature store: its zarr.json, the chunks of an array, the commit of a video and its checksums.

An array is one zarr.json and its chunks `c.0.0`, `c.1.0` ... beside it, or `c/0/0` as older versions wrote them. One chunk,
or chunks of at most 64 MiB if a video is longer, so that writing needs bounded memory.

Zarr v3 as its specification has it, read and written here and not by Zarr's own arrays: reading a video of one chunk takes
less than a fifth of their time (benchmarks/load.py). Nothing but the metadata that this module writes is accepted
(`check_array`), before any byte is decoded, and nothing is decoded but zstd. The commit has two checksums, of the features
and of all else that numbers depend on (clips, times, frame rate).
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from har_pipeline.core.errors import StoreError
from har_pipeline.core.objects import StorePath
from har_pipeline.features.places import META, content, entries, meta_of, put_file

CHUNK_BYTES = 64 * 2**20

# What a feature set or a fit may be stored as.
DTYPES = ("float16", "float32", "float64", "uint8")

# How the keys of chunks are made of their numbers; older versions wrote the second.
SEPARATORS = (".", "/")
ZSTD_LEVEL = 1

# A block of zstd holds at most 128 KiB and takes at least 4 bytes. A chunk that is missing holds the fill value only.
ZSTD_RATIO, MAX_UNSEEN_BYTES = 2**15, 2**30
MAX_META_BYTES = 2**28
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class UnreadableError(StoreError):
    """What is stored cannot be read now (permission, faulty disk, too many open files), so it may be sound."""


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that is behind an error, however it was wrapped."""
    seen, found = set(), [error]
    for one in found:
        if isinstance(one, OSError) and one.errno is not None:
            return one
        seen.add(id(one))
        inner = (*getattr(one, "exceptions", ()), one.__cause__, one.__context__)
        found.extend(other for other in inner if other is not None and id(other) not in seen)
    return None


def unreadable(node: StorePath | str, error: BaseException) -> UnreadableError | None:
    """Return the error to raise if `error` says nothing of what is stored, only that it cannot be read now."""
    reason = system_error(error)
    if isinstance(error, MemoryError):
        return UnreadableError(f"{node}: cannot be read (not enough memory)")
    if reason is None or reason.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG):
        return None
    return UnreadableError(f"{node}: cannot be read ({reason.strerror})")


def read_metadata(node: StorePath | str, kind: Literal["array", "group"]) -> dict[str, Any]:
    """Return the zarr.json of a group or an array. Raises: UnreadableError; ValueError if it is not one of Zarr v3."""
    try:
        values = json.loads(content(meta_of(node), MAX_META_BYTES))
    except (OSError, MemoryError) as error:
        raise unreadable(node, error) or ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError(f"{META} is nested too deeply") from error
    if not isinstance(values, dict) or values.get("zarr_format") != 3 or values.get("node_type") != kind:
        raise ValueError(f"{META} is not of a Zarr v3 {kind}")
    if not isinstance(values.get("attributes"), dict):
        raise ValueError(f"{META} has no attributes")
    return values


def check_array(node: StorePath, values: Mapping[str, Any], dtypes: Sequence[str]) -> None:
    """Check that the metadata of an array is what this module writes: no other codec, grid, transformer or key.

    Raises: ValueError saying what differs.
    """
    shape, dtype = values.get("shape"), values.get("data_type")
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise ValueError(f"data_type {dtype!r}, not {' or '.join(dtypes)}")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {shape!r}")
    grid = values.get("chunk_grid")
    chunks = grid["configuration"]["chunk_shape"] if isinstance(grid, dict) and "configuration" in grid else None
    item = np.dtype(dtype).itemsize
    fill = values.get("fill_value")
    codecs = values.get("codecs")
    zstd = codecs[-1] if isinstance(codecs, list) and codecs else None
    level = zstd.get("configuration", {}).get("level") if isinstance(zstd, dict) else None
    keys = values.get("chunk_key_encoding")
    of_older = isinstance(keys, dict) and keys.get("configuration") == {"separator": SEPARATORS[1]}
    expected = _fixed_metadata(chunks, item, level, SEPARATORS[of_older])
    for key, wanted in expected.items():
        if values.get(key) != wanted:
            raise ValueError(f"{key} {json.dumps(values.get(key))[:200]} is not this version's")
    if (
        not isinstance(chunks, list)
        or len(chunks) != len(shape)
        or chunks[1:] != shape[1:]
        or type(chunks[0]) is not int
    ):
        raise ValueError(f"chunks {chunks!r} of an array {shape}")
    if not 1 <= chunks[0] <= max(1, shape[0]) or type(level) is not int:
        raise ValueError(f"chunks {chunks!r} of an array {shape}, zstd level {level!r}")
    row_bytes = item * math.prod(shape[1:])
    if (chunks[0] > 1 and chunks[0] * row_bytes > CHUNK_BYTES) or row_bytes > MAX_UNSEEN_BYTES:
        raise ValueError(f"chunks {chunks!r} are too large")
    if isinstance(fill, bool) or fill not in ((0,) if item == 1 else ("NaN", 0)):
        raise ValueError(f"fill_value {fill!r}")
    known = {"shape", "data_type", "fill_value", "attributes", "zarr_format", "node_type", "dimension_names", *expected}
    if others := {key for key, value in values.items() if key not in known and value not in ([], None)}:
        raise ValueError(f"unknown {', '.join(sorted(others))}")
    unseen = shape[0] * row_bytes - MAX_UNSEEN_BYTES
    if unseen > 0 and unseen > ZSTD_RATIO * sum(path.stat().st_size for _, path in _chunks(node, values)):
        raise ValueError(f"shape {shape} is more than its chunks can hold")


def _fixed_metadata(chunks: Sequence[int] | None, item: int, level: object, separator: str) -> dict[str, Any]:
    """Return what the metadata of all arrays of one chunk shape and size of an item have in common."""
    bytes_codec = {"name": "bytes"} if item == 1 else {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        # With a checksum: Zarr's default notices no flipped bit.
        "codecs": [bytes_codec, {"name": "zstd", "configuration": {"level": level, "checksum": True}}],
    }


def _chunk_key(number: int, num_dims: int, separator: str) -> str:
    return separator.join(["c", str(number), *["0"] * (num_dims - 1)])


def _chunks(node: StorePath, values: Mapping[str, Any]) -> Iterator[tuple[int, StorePath]]:
    """Give number and path of the chunks of an array, in no order; of several only those that there are."""
    shape, rows = values["shape"], values["chunk_grid"]["configuration"]["chunk_shape"][0]
    separator = values["chunk_key_encoding"]["configuration"]["separator"]
    count = -(-shape[0] // rows) if all(shape) else 0
    if count == 1:  # nearly always
        yield 0, node / _chunk_key(0, len(shape), separator)
    elif count:
        folder, named = (node, r"c\.(\d{1,18})(?:\.0)*") if separator == "." else (node / "c", r"(\d{1,18})")
        matches = (re.fullmatch(named, name) for name in entries(folder))
        for number in {int(match[1]) for match in matches if match}:
            if number < count:
                yield number, node / _chunk_key(number, len(shape), separator)


def _zstd_size(start: bytes) -> int | None:
    """Return the size in bytes that a zstd frame says it decodes to, None if it does not say so. Source: RFC 8878, 3.1.1."""
    if start[:4] != b"\x28\xb5\x2f\xfd" or len(start) < 5:
        return None
    flags = start[4]
    single_segment = flags >> 5 & 1
    place = 5 + (not single_segment) + (0, 1, 2, 4)[flags & 3]
    size = (single_segment, 2, 4, 8)[flags >> 6]
    field = start[place : place + size]
    return int.from_bytes(field, "little") + 256 * (size == 2) if size and len(field) == size else None


def array_of(node: StorePath, values: Mapping[str, Any]) -> np.ndarray:
    """Return the content of an array, given its metadata, which were checked.

    Raises: ValueError if a chunk is no file, not of the chunks' size, or damaged.
    """
    from numcodecs import zstd

    shape, rows = values["shape"], values["chunk_grid"]["configuration"]["chunk_shape"][0]
    dtype = np.dtype(values["data_type"]).newbyteorder("<")
    array: np.ndarray | None = None
    for number, path in _chunks(node, values):
        try:
            encoded = content(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        chunk = np.empty((rows, *shape[1:]), dtype)
        if _zstd_size(encoded) != chunk.nbytes:
            raise ValueError(f"{path.name} is not of the chunks' size")
        try:
            zstd.decompress(encoded, chunk)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path.name}: {error}") from error
        if rows == shape[0]:
            array = chunk
        else:
            array = _filled(values, dtype) if array is None else array
            array[number * rows : (number + 1) * rows] = chunk[: shape[0] - number * rows]
    return (_filled(values, dtype) if array is None else array).astype(values["data_type"], copy=False)


def _filled(values: Mapping[str, Any], dtype: np.dtype[Any]) -> np.ndarray:
    return np.full(values["shape"], np.nan if values["fill_value"] == "NaN" else 0, dtype)


class ArrayWriter:
    """Writes an array of shape (N, ...) into a new folder, chunk by chunk; it is one only when `finish` has been called."""

    def __init__(self, node: Path, shape: tuple[int, ...], dtype: DTypeLike, fill: Literal["NaN", 0]) -> None:
        self.node, self.shape, self.dtype = node, shape, np.dtype(dtype)
        self._fill = fill
        row_bytes = max(1, math.prod(shape[1:]) * self.dtype.itemsize)
        self._chunk = np.empty((max(1, min(shape[0], CHUNK_BYTES // row_bytes)), *shape[1:]), self.dtype)
        self.given = 0
        self._hash = hashlib.sha256()
        node.mkdir()

    def append(self, rows: np.ndarray) -> None:
        """Add (n, ...) rows of the array's dtype after those already given; at most N in all."""
        self._hash.update(np.ascontiguousarray(rows, dtype=self.dtype).data)
        size = len(self._chunk)
        while len(rows):
            place = self.given % size
            taken = min(len(rows), size - place)
            self._chunk[place : place + taken] = rows[:taken]
            self.given += taken
            rows = rows[taken:]
            if place + taken == size:
                self._write_chunk()

    def _write_chunk(self) -> None:
        from numcodecs import zstd

        key = _chunk_key((self.given - 1) // len(self._chunk), len(self.shape), SEPARATORS[0])
        little = self._chunk.astype(self.dtype.newbyteorder("<"), copy=False)
        (self.node / key).write_bytes(zstd.compress(little, ZSTD_LEVEL, True))

    @property
    def checksum(self) -> str:
        """The checksum of the rows that were given, as a commit has it."""
        return f"sha256:{self._hash.hexdigest()}"

    def finish(self, attributes: Mapping[str, Any], dimension_names: Sequence[str] | None = None) -> None:
        """Write what is left, and the metadata."""
        if rest := self.given % len(self._chunk):
            self._chunk[rest:] = np.nan if self._fill == "NaN" else 0
            self._write_chunk()
        fixed = _fixed_metadata(self._chunk.shape, self.dtype.itemsize, ZSTD_LEVEL, SEPARATORS[0])
        values = {
            "shape": self.shape,
            "data_type": self.dtype.name,
            "chunk_grid": fixed["chunk_grid"],
            "chunk_key_encoding": fixed["chunk_key_encoding"],
            "fill_value": self._fill,
            "codecs": fixed["codecs"],
            "attributes": dict(attributes),
            **({} if dimension_names is None else {"dimension_names": dimension_names}),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
        (self.node / META).write_text(json.dumps(values, indent=2), encoding="utf-8")


def write_array(node: Path, array: np.ndarray) -> None:
    """Write a whole array into a new folder."""
    writer = ArrayWriter(node, array.shape, array.dtype, 0)
    writer.append(array)
    writer.finish({})


def source_checksum(commit: Mapping[str, Any]) -> str:
    """Return the checksum of what numbers depend on beside the features themselves."""
    names = ("clip_starts", "clip_ends", "clip_times_s", "num_frames", "fps", "padded")
    known = {**{name: commit[name] for name in names}, **({"id": commit["id"]} if "id" in commit else {})}
    return f"sha256:{hashlib.sha256(_CANONICAL.encode(known).encode()).hexdigest()}"


def write_group(node: StorePath, attributes: Mapping[str, Any], *, once: bool = False) -> None:
    """Write the metadata of a group, whole or not at all, as Zarr does. once: only if there are none."""
    values = {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}
    put_file(node / META, json.dumps(values, indent=2), once=once)


def read_commit(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the commit of a video's array. name: of its node. Raises: ValueError if it is missing or damaged."""
    commit: dict[str, Any] = values["attributes"]
    if commit.get("complete") is not True:
        raise ValueError("it was never committed")
    try:
        starts, ends, clips = commit["clip_starts"], commit["clip_ends"], commit["num_clips"]
        times = commit.get("clip_times_s", [[0.0, 0.0]] * len(starts))
        sound = (
            len(starts) == len(ends) == len(times) == clips
            and {*map(type, starts), *map(type, ends), type(commit["num_frames"])} == {int}
            and {*map(len, times)} <= {2}
            and {*map(type, itertools.chain.from_iterable(times))} <= {int, float}
            and type(commit["fps"]) in (int, float)
            and isinstance(commit["padded"], bool)
            and isinstance(commit["checksum"], str)
            and isinstance(commit["decode_notes"], list)
            and isinstance(commit["provenance"], dict)
            and isinstance(commit.get("file", {}), dict)
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"its commit has no {error}") from error
    if not sound:
        raise ValueError("its commit is malformed")
    # Stores of older versions have no second checksum.
    found = source_checksum(commit) if "clip_times_s" in commit else None
    if commit.get("source_checksum", found) != found:
        raise ValueError("its clips, times or frame rate differ from their checksum")
    if commit.get("id", name) != name:
        raise ValueError(f"these are the features of {commit['id']!r}")
    return commit


def checksum_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the checksum of the arrays of a fit: their names, types, shapes and content."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return f"sha256:{digest.hexdigest()}"


def reason_of(error: BaseException) -> str:
    """Return the text of an error for a line that says what is damaged."""
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
