"""Features for other programs: one file of numpy, pandas or HDF5, or arrays for scikit-learn.

All three files hold the same. V videos in order have R rows (clips) together, D values each; video v owns the rows
`[offsets[v], offsets[v + 1])`. Of M tokens a clip each is a row, with its clip's frames and times.

    .npz      numpy.load: `features` (R, D) as stored, `offsets` (V + 1,), `lengths` (V,), `video_id` and the manifest's columns
              (V,), `num_frames`, `fps` (V,), `clip_starts`, `clip_ends` (R,), `clip_times_s` (R, 2), `provenance` (JSON)
    .h5       the same names as datasets, `provenance` as the file's attribute
    .parquet  one row for each clip, as pandas groups and joins them: `video_id`, `step`, of tokens `token`, the manifest's
              columns, `clip_start`, `clip_end`, `start_s`, `end_s`, and `features`, a list of D numbers; the key
              `har_pipeline` of the file's metadata holds the provenance

The provenance is JSON: the feature set's name, its spec and the version that exported it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline import __version__
from har_pipeline.core.errors import RunError, StoreError
from har_pipeline.core.files import new_file
from har_pipeline.core.records import FeatureRecord, VideoRecord
from har_pipeline.datasets.manifests import read_manifest
from har_pipeline.datasets.units import SOURCES, Source, units
from har_pipeline.features.reader import FeatureReader
from har_pipeline.features.table import (
    MEMORY_FRACTION,
    FeatureStreams,
    Rows,
    available_memory,
    check_file,
    load_features,
    missing_message,
)

COLUMNS = ("label", "subject", "group", "camera", "scenario", "split")
# Rows of a Parquet file that are converted at once.
BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What an export wrote."""

    path: Path
    feature_set: str
    videos: int
    rows: int  # of all videos together
    dim: int
    missing: tuple[str, ...]  # ids of the manifest without features, which were left out


def load_arrays(
    store: FeatureReader,
    feature_set: str,
    records: Sequence[VideoRecord] | Path | str,
    *,
    apart: Sequence[Source] = SOURCES,
    allow_missing: bool = False,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return X, y and groups of the videos of a manifest, in its order, for `HeadClassifier` and for scikit-learn.

    X: of each of V videos an array (N, D) float32, whose N may differ; y: (V,) labels; groups: (V,) int64, equal for videos
    that must not be on both sides of a split, as `cross_val_score(..., groups=groups, cv=GroupKFold())` keeps them.
    records: rows of a manifest, or its file; rows without a label are left out. apart: what equal groups share, directly or
    through others: subject, group or file. allow_missing: leave out videos without features.
    Raises: StoreError for an unknown feature set, RunError and StoreError as `load_features`; ManifestError for its file.
    """
    if isinstance(records, Path | str):
        records = read_manifest(Path(records), check_files=False)
    records = [record for record in records if record.label]
    classes = sorted({record.label for record in records})
    ids = [record.video_id for record in records]
    table = load_features(FeatureStreams(store, [feature_set]), records, ids, classes, allow_missing=allow_missing)
    by_id = {record.video_id: record for record in records}
    kept = [by_id[video_id] for video_id in table.video_ids]
    parts = np.split(table.features, table.offsets[1:-1])
    X = [np.array(part, np.float32) for part in parts]
    return X, np.array([record.label for record in kept]), np.array(units(kept, apart), np.int64)


def export_features(
    store: FeatureReader,
    feature_set: str,
    path: Path,
    records: Sequence[VideoRecord] | None = None,
    *,
    allow_missing: bool = False,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> ExportSummary:
    """Write a feature set into one .npz, .parquet or .h5 file; what each holds, says the module.

    records: rows of a manifest, whose videos and columns are written, in its order; None: all videos of the set.
    allow_missing: leave out rows without features. on_video: called with the videos read and their total. What does not
    fit into memory is kept in a temporary file beside `path`.
    Raises: StoreError if the set is unknown or a video is damaged, RunError for another kind of file, a package that it
    needs and is not installed, videos without features, features of another file than the manifest's, or ones not finite.
    """
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise RunError(f"{path}: features are exported as {', '.join(_WRITERS)}: choose by the ending of the name")
    package = _package(suffix)
    streams = FeatureStreams(store, [feature_set])
    (name,) = streams.names
    present = streams.video_ids()
    wanted = present if records is None else [record.video_id for record in records]
    missing = tuple(sorted(set(wanted) - set(present)))
    if missing and not allow_missing:
        raise RunError(missing_message(streams, missing, len(wanted)))
    ids = [video_id for video_id in wanted if video_id not in set(missing)]
    if not ids:
        raise StoreError(f"{name}: there are no features to export")
    by_id = {record.video_id: record for record in records or ()}
    videos: list[FeatureRecord] = []
    with contextlib.closing(Rows(int(MEMORY_FRACTION * available_memory()), path.absolute().parent)) as rows:
        for done, video_id in enumerate(ids, start=1):
            found = store.read(name, video_id, check=True)
            if records is not None:
                check_file(found, by_id[video_id])
            rows.add(video_id, found.features)
            videos.append(_without_features(found))
            on_video(done, len(ids))
        features = rows.join()
    rows_per_clip = store.spec(name).rows_per_clip
    lengths = rows_per_clip * np.array([len(video.clip_starts) for video in videos], np.int64)
    content = _Content(
        features=features,
        lengths=lengths,
        rows_per_clip=rows_per_clip,
        videos=videos,
        columns=_columns([by_id[video_id] for video_id in ids]) if records is not None else {},
        provenance=json.dumps(_provenance(store, name)),
    )
    with new_file(path) as partial:
        _WRITERS[suffix](partial, content, package)
    return ExportSummary(
        path=path,
        feature_set=name,
        videos=len(ids),
        rows=len(features),
        dim=int(features.shape[1]),
        missing=missing,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """What is written."""

    features: np.ndarray  # (R, D)
    lengths: np.ndarray  # (V,) int64, in rows
    rows_per_clip: int
    videos: Sequence[FeatureRecord]  # without their features
    columns: Mapping[str, list[str]]  # of the manifest, V cells each, empty where it says nothing
    provenance: str

    @property
    def of_videos(self) -> dict[str, list[Any]]:
        """The columns with one entry for each video."""
        return {
            "video_id": [video.video_id for video in self.videos],
            **self.columns,
            "num_frames": [video.num_frames for video in self.videos],
            "fps": [video.fps for video in self.videos],
        }

    def of_clips(self, name: str) -> np.ndarray:
        """(R, ...) clip_starts, clip_ends or clip_times_s."""
        return np.concatenate([getattr(video, name) for video in self.videos]).repeat(self.rows_per_clip, axis=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all but the features and the provenance as arrays."""
        clips = {name: self.of_clips(name) for name in ("clip_starts", "clip_ends", "clip_times_s")}
        videos = {name: np.array(values) for name, values in self.of_videos.items()}
        return {"offsets": np.concatenate([[0], np.cumsum(self.lengths)]), "lengths": self.lengths, **videos, **clips}


def _without_features(video: FeatureRecord) -> FeatureRecord:
    return dataclasses.replace(video, features=video.features[:0])


def _columns(records: Sequence[VideoRecord]) -> dict[str, list[str]]:
    """Return those of the manifest's columns in which any of the rows says something."""
    found = {name: [getattr(record, name) or "" for record in records] for name in COLUMNS}
    own = dict.fromkeys(name for record in records for name in record.extra)
    found |= {name: [record.extra.get(name, "") for record in records] for name in own}
    return {name: cells for name, cells in found.items() if any(cells)}


def _provenance(store: FeatureReader, name: str) -> dict[str, Any]:
    return {"feature_set": name, "spec": store.spec(name).to_dict(), "har_pipeline": __version__}


def _package(suffix: str) -> Any:
    """Import what writes a kind of file. Raises: RunError with the line that installs it."""
    if suffix == ".npz":
        return None
    module, extra = {".parquet": ("pyarrow.parquet", "parquet"), ".h5": ("h5py", "hdf5")}[suffix]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise RunError(f"{suffix} files need {package}: pip install 'har-pipeline[{extra}]'") from error


def _write_npz(path: Path, content: _Content, package: Any) -> None:
    arrays: dict[str, Any] = content.arrays()
    with path.open("wb") as file:
        np.savez(file, features=content.features, **arrays, provenance=np.array(content.provenance))


def _write_h5(path: Path, content: _Content, package: Any) -> None:
    with package.File(path, "w") as file:
        file.attrs["provenance"] = content.provenance
        file["features"] = content.features
        for name, array in content.arrays().items():
            text = array.dtype.kind == "U"
            file.create_dataset(
                name, data=array.astype(object) if text else array, dtype=package.string_dtype() if text else None
            )


def _write_parquet(path: Path, content: _Content, package: Any) -> None:
    import pyarrow as pa

    rows, dim = content.features.shape
    # Half floats in Parquet are too young for many readers.
    kind = np.float32 if content.features.dtype == np.float16 else content.features.dtype
    ids = pa.array([video.video_id for video in content.videos])
    video = np.repeat(np.arange(len(content.lengths)), content.lengths)
    times = content.of_clips("clip_times_s")
    numbers = np.concatenate([np.arange(length) for length in content.lengths])
    columns = {
        "video_id": ids.take(video),
        "step": pa.array(numbers // content.rows_per_clip),
        **({"token": pa.array(numbers % content.rows_per_clip)} if content.rows_per_clip > 1 else {}),
        **{name: pa.array([cell or None for cell in content.columns[name]]).take(video) for name in content.columns},
        "clip_start": pa.array(content.of_clips("clip_starts")),
        "clip_end": pa.array(content.of_clips("clip_ends")),
        "start_s": pa.array(times[:, 0]),
        "end_s": pa.array(times[:, 1]),
    }
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    fields.append(pa.field("features", pa.list_(pa.from_numpy_dtype(kind), dim)))
    schema = pa.schema(fields, metadata={"har_pipeline": content.provenance})
    step = max(1, BLOCK_BYTES // (dim * np.dtype(kind).itemsize))
    with package.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, step):
            block = np.ascontiguousarray(content.features[first : first + step], kind)
            cells = [column[first : first + step] for column in columns.values()]
            cells.append(pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dim))
            writer.write_table(pa.Table.from_arrays(cells, schema=schema))


_WRITERS: dict[str, Callable[[Path, _Content, Any], None]] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    ".h5": _write_h5,
}
