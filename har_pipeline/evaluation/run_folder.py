"""Run folders: everything a training run leaves, and all that a prediction needs.

    run.json           options, feature set and spec, classes, hashes, versions, measures, command, paths; written last
    split.json         the ids of the training, validation and test videos
    head.safetensors   weights, with the input scaling (network.safetensors of a network on raw video)
    reduction.safetensors  the fit of reduced features (of a further stream with its number); encoding.safetensors of encoded
    history.csv        one row per epoch
    scores.csv         class probabilities of the validation and test videos
    tensorboard/       event files, where asked for

A run is written in a hidden sibling folder and renamed, so that a folder under its own name is complete. Long trainings
use `.<name>.partial`, which outlives a kill, so that the same command resumes in it. run.json holds the sha256 of the
other files and of itself; runs of older versions have none.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from har_pipeline.core.errors import RunError, first_few
from har_pipeline.core.files import (
    file_sha256,
    finished_path,
    new_folder,
    read_json,
    recover_folder,
    replace_folder,
    write_json,
)
from har_pipeline.core.objects import StorePath
from har_pipeline.core.records import FeatureSpec, Scores, Split, VideoRecord
from har_pipeline.evaluation.scores import read_scores

RUN_JSON, SPLIT_JSON, WEIGHTS = "run.json", "split.json", "head.safetensors"
HISTORY, SCORES, TENSORBOARD = "history.csv", "scores.csv", "tensorboard"
HEAD, VIDEO = "head", "video"
JOB, OLD_LOCK = "job.json", "lock"  # older versions left a lock file as well
# Columns of the history that are drawn.
CURVES = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
# 1 had no hashes; 1 and 2 had other rules, see `RunRecord.older_rules`.
FORMATS = (1, 2, 3)
PACKAGES = ("har-pipeline", "torch", "numpy", "scikit-learn", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The results of a training run."""

    path: Path
    epochs: int  # epochs trained
    best_epoch: int  # the epoch whose weights were kept, from 1
    train_accuracy: float  # video accuracies, in [0, 1]
    val_accuracy: float | None  # None without validation videos
    test_accuracy: float | None  # None without a test part, of a final model
    num_train: int  # videos
    num_val: int
    num_test: int
    missing: tuple[str, ...]  # ids without features that were left out
    notes: tuple[str, ...]  # what a reader must know, such as random backbone weights
    seconds: float

    @property
    def measured_accuracy(self) -> float:
        """The test accuracy. Raises: RunError if the run has no test part."""
        if self.test_accuracy is None:
            raise RunError(f"{self.path} has no test part: its accuracy is not measured")
        return self.test_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as a plain dict, ready for JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a run was made by and from, for people and reports; it does not identify the run, so that it may change."""

    command: str | None = None  # the command line as typed, printable; None: made from Python
    manifest: Path | None = None  # None: unknown
    root: Path | None = None  # given in the place of the manifest's own; None: that one, or unknown
    store: StorePath | None = None  # or pack; None: unknown

    def to_dict(self) -> dict[str, str | None]:
        """Return the entries of run.json, with absolute paths."""
        paths = {name: getattr(self, name) for name in ("manifest", "root", "store")}
        return {"command": self.command, **{name: path and str(path.absolute()) for name, path in paths.items()}}


FROM_PYTHON = Origin()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStream:
    """A feature set that a run learned from."""

    feature_set: str  # its name
    spec: FeatureSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A finished run of a head or a network, without its weights."""

    path: Path
    streams: tuple[RunStream, ...]  # one, or with mid fusion several, in the order in which the head reads them
    classes: tuple[str, ...]
    split: Split
    info: Mapping[str, Any]  # run.json

    @property
    def feature_set(self) -> str:
        """The feature set of the first stream."""
        return self.streams[0].feature_set

    @property
    def spec(self) -> FeatureSpec:
        """The spec of the first stream."""
        return self.streams[0].spec

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        return (*self.info.get("summary", {}).get("notes", ()), *self.older_rules)

    @property
    def older_rules(self) -> tuple[str, ...]:
        """What the version that trained it did otherwise with its options than this one does, as sentences."""
        options, found = self.info["options"], []
        if self.info["format"] > 2:
            return ()
        if options.get("num_steps") not in (None, 1):
            found.append(f"num_steps {options['num_steps']} took other clips: an older version rounded their places")
        fusion, op = options.get("mid_fusion"), options.get("fusion_op", "sum")
        if fusion == "input" or (fusion == "hidden" and op == "product" and options.get("standardise", True)):
            found.append(
                f"mid_fusion {fusion} scaled, if at all, each stream: an older version did so before their {op}"
            )
        return tuple(found)

    @property
    def kind(self) -> str:
        """`head` on stored features, or `video`: a network on raw frames."""
        return str(self.info.get("kind", HEAD))

    @property
    def random_weights(self) -> bool:
        """Whether features came from a net with random weights, so that the results mean nothing."""
        return any(stream.spec.weights.startswith("random") for stream in self.streams)

    @property
    def job(self) -> str:
        """What identifies the job it is a fold or repeat of, see `job_sha256`; empty of a single run or an older one."""
        return str(self.info.get("job", ""))

    def require_part(self, part: str) -> None:
        """Raise RunError that says what to do if the run has no videos of a part, `test` or `val`."""
        if not {"val": self.split.val, "test": self.split.test}.get(part, True):
            raise RunError(f"{self.path} {self._no_part(part)}")

    def _no_part(self, part: str) -> str:
        if part == "val":
            return "has no validation videos: train with --val-fraction"
        there = "report its validation videos with --part val" if self.split.val else "it is for `har predict`"
        return (
            f"was trained on all videos ({self.split.protocol}): it has no test part, and its accuracy is not measured; "
            f"{there}, or train with another --protocol to measure"
        )

    def scores(self) -> Scores:
        """Read the run's scores file. Raises: RunError if it is missing, malformed or not the one that was written."""
        self.check_file(SCORES)
        return read_scores(self.path / SCORES)

    def history(self) -> dict[str, list[float | None]]:
        """Read the run's history. Raises: RunError if it is not the one that was written."""
        self.check_file(HISTORY)
        return read_history(self.path)

    def check_file(self, name: str) -> None:
        """Compare a file with its sha256 in run.json, if it has one there. Raises: RunError if they differ."""
        _check_file(self.path, self.info, name)


def fit_file(spec: FeatureSpec, stream: int) -> str:
    """Return the name of the file with the fit of a stream's features (from 0)."""
    return f"{'reduction' if spec.reduction else 'encoding'}{stream or ''}.safetensors"


def stream_info(feature_sets: Sequence[str], specs: Sequence[FeatureSpec]) -> dict[str, Any]:
    """Return the entries of run.json on the features: the first stream's, and the list of all if there are several."""
    streams = [
        {"feature_set": name, "feature_dim": spec.feature_dim, "feature_spec": spec.to_dict()}
        for name, spec in zip(feature_sets, specs, strict=True)
    ]
    return streams[0] if len(streams) == 1 else {**streams[0], "streams": streams}


@contextlib.contextmanager
def new_run_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write a run into; on success it becomes `path`, after an error nothing is left.

    Raises: RunError as `free_run_path`.
    """
    path = free_run_path(path, overwrite=overwrite)
    with new_folder(path) as partial:
        yield partial
        free_run_path(path, overwrite=overwrite)


@contextlib.contextmanager
def lasting_run_folder(
    path: Path, job: Mapping[str, Any], *, overwrite: bool, defaults: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Path]:
    """Give a folder to write a run into; it survives a kill or an error, and the same training gets it again.

    job: what identifies the run, ready for JSON; entries that an older version did not write are not compared. defaults: of
    the job's `options`, for those that an older version did not have. On success the folder becomes `path`; by then the
    caller must have removed everything but the run from it. Nobody else may write there meanwhile.
    Raises: RunError as `free_run_path`, or if what is there is of another job (with `overwrite` it is removed).
    """
    path = free_run_path(path, overwrite=overwrite)
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    # Such files are of a process that was killed.
    for file in partial.glob(".*.partial-*"):
        file.unlink()
    wanted, before = json.loads(json.dumps(job)), _read_json(partial / JOB) if (partial / JOB).exists() else None
    if before and "options" in before:
        before["options"] = {**defaults, **before["options"]}
    differing = sorted(
        first_few(differing_options(value, wanted["options"])) if key == "options" else key
        for key, value in (before or {}).items()
        if value != wanted.get(key)
    )
    if differing:
        if not overwrite:
            raise RunError(
                f"{partial} is an unfinished run that differs in {first_few(differing)}: give the same options, manifest and "
                "features to finish it, or --overwrite to start again"
            )
        for file in partial.iterdir():
            file.unlink()
    write_json(partial / JOB, wanted)
    try:
        yield partial
    except BaseException:
        if {file.name for file in partial.iterdir()} <= {JOB, OLD_LOCK}:
            shutil.rmtree(partial)
        raise
    free_run_path(path, overwrite=overwrite)
    # A name that tells whose it is, so that after a kill it is known to be finished.
    staged = finished_path(path)
    partial.rename(staged)
    _remove_job(staged)
    replace_folder(staged, path)


def _remove_job(folder: Path) -> None:
    for name in (JOB, OLD_LOCK):
        (folder / name).unlink(missing_ok=True)


def recover_run(path: Path) -> None:
    """Give a run its name back if the process that finished or replaced it was killed in between."""
    path = path.absolute()
    with contextlib.suppress(OSError):  # nothing can be moved here, or another process was faster
        if recover_folder(path, RUN_JSON):
            _remove_job(path)


def differing_options(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return `name (value before, not value wanted)` of the options that differ, sorted by name."""
    names = sorted(name for name in {*before, *wanted} if before.get(name) != wanted.get(name))
    return [f"{name} ({before.get(name)}, not {wanted.get(name)})" for name in names]


def free_run_path(path: Path, *, overwrite: bool) -> Path:
    """Return where a run may be written, as an absolute path.

    Raises: RunError if `path` exists and `overwrite` is not set, or it is neither a run nor an empty folder.
    """
    path = path.absolute()
    recover_run(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not (path / RUN_JSON).is_file():
            raise RunError(
                f"{path} exists and is not a run folder (it has no {RUN_JSON}): choose another path, or delete the folder if "
                "nothing in it is needed; --overwrite replaces runs only"
            )
        if not overwrite:
            raise RunError(f"{path} holds a run already: choose another path, or replace it with --overwrite")
    return path


def read_history(run_dir: Path) -> dict[str, list[float | None]]:
    """Return the columns of history.csv; an empty cell is None. Raises: RunError if it is missing or malformed."""
    try:
        with open(run_dir / HISTORY, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = dict.fromkeys((*CURVES, *rows[0]))
        return {name: [float(row[name]) if row[name] else None for row in rows] for name in names}
    except (OSError, ValueError, TypeError, LookupError, csv.Error) as error:
        raise RunError(f"{run_dir / HISTORY}: cannot be read ({error}); train the run again") from error


def split_info(split: Split) -> dict[str, Any]:
    """Return the entry of run.json on a split: protocol, index, seed, sizes, and one hash over its ids."""
    ids = json.dumps([split.train, split.val, split.test])
    sizes = {f"num_{part}": len(getattr(split, part)) for part in ("train", "val", "test")}
    hashed = hashlib.sha256(ids.encode()).hexdigest()
    return {"protocol": split.protocol, "index": split.index, "seed": split.seed, **sizes, "ids_sha256": hashed}


def labels_sha256(records: Sequence[VideoRecord], split: Split) -> str:
    """Return one hash over the (video_id, label) pairs of a split's videos."""
    labels = {record.video_id: record.label for record in records}
    ids = sorted((*split.train, *split.val, *split.test))
    return hashlib.sha256(json.dumps([[video_id, labels.get(video_id)] for video_id in ids]).encode()).hexdigest()


def files_sha256(records: Sequence[VideoRecord], split: Split, stream: str) -> str:
    """Return one hash over the file names and ranges of a split's videos; folders are not part of it."""
    files = {
        r.video_id: (
            r.depth_path if stream == "depth" else r.path,
            r.start_frame,
            r.end_frame,
            *((r.start_s, r.end_s) if r.timed else ()),
        )
        for r in records
    }
    named = {video_id: (path and path.name, *frames) for video_id, (path, *frames) in files.items()}
    ids = sorted((*split.train, *split.val, *split.test))
    return hashlib.sha256(json.dumps([[video_id, named.get(video_id)] for video_id in ids]).encode()).hexdigest()


def features_sha256(checksums: Mapping[str, str], split: Split) -> str:
    """Return one hash over the (video_id, checksum) pairs of the videos of a split that have features."""
    ids = sorted(video_id for video_id in (*split.train, *split.val, *split.test) if video_id in checksums)
    return hashlib.sha256(json.dumps([[video_id, checksums[video_id]] for video_id in ids]).encode()).hexdigest()


def json_sha256(values: Any) -> str:
    """Return the sha256 of values that are ready for JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write run.json, with the sha256 of itself and of the run's other files, which are in the folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix == ".safetensors")
    written = [*files, *(folder / name for name in (SPLIT_JSON, SCORES, HISTORY))]
    write_json(folder / RUN_JSON, sealed({**info, "sha256": {file.name: file_sha256(file) for file in written}}))


def sealed(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of run.json with their own sha256 among the hashes that they hold."""
    return {**info, "sha256": {RUN_JSON: _info_sha256(info), **_other_hashes(info)}}


def _info_sha256(info: Mapping[str, Any]) -> str:
    return json_sha256({**info, "sha256": _other_hashes(info)})


def _other_hashes(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in info["sha256"].items() if name != RUN_JSON}


def _check_file(path: Path, info: Mapping[str, Any], name: str) -> None:
    """Raise RunError if a file is not the one that run.json tells of; runs of older versions tell of none."""
    if "sha256" not in info:
        return
    try:
        wanted = info["sha256"][name]
        found = _info_sha256(info) if name == RUN_JSON else file_sha256(path / name)
    except (OSError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{path / name}: cannot be read ({error!r}); train the run again with --overwrite") from error
    if found != wanted:
        raise RunError(
            f"{path / name}: damaged, or changed after the training (its sha256 is not the one in {RUN_JSON}): train the run "
            "again with --overwrite"
        )


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def read_run(path: Path | str) -> RunRecord:
    """Read a finished run of any kind. Raises: RunError if a file is missing, malformed or not the one that was written."""
    path = Path(path)
    info = _read_json(path / RUN_JSON)
    for name in (RUN_JSON, SPLIT_JSON):
        _check_file(path, info, name)
    try:
        if info["format"] not in FORMATS:
            raise RunError(
                f"{path / RUN_JSON}: run format {info['format']}, this version reads {', '.join(map(str, FORMATS))}; train it "
                "again"
            )
        if info["format"] > 1 and "sha256" not in info:
            raise KeyError("sha256")
        streams = [
            RunStream(feature_set=str(one["feature_set"]), spec=FeatureSpec.from_dict(one["feature_spec"]))
            for one in info.get("streams", [info])
        ]
        parts = _read_json(path / SPLIT_JSON)
        _check_types(info, parts, streams)
        ids = {part: tuple(parts[part]) for part in ("train", "val", "test")}
        split = Split(**{**parts, **ids})
        return RunRecord(path=path, streams=tuple(streams), classes=tuple(info["classes"]), split=split, info=info)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path / RUN_JSON} or {SPLIT_JSON} is malformed ({error!r}); train it again") from error


def _check_types(info: Mapping[str, Any], parts: Mapping[str, Any], streams: Sequence[RunStream]) -> None:
    """Raise ValueError or TypeError if an entry of run.json or split.json that others build on is not of its type."""
    for values in (info["options"], info.get("summary", {})):
        if not isinstance(values, dict):
            raise TypeError("options and summary must be objects")
    lists = {"classes": info["classes"], **{part: parts[part] for part in ("train", "val", "test")}}
    lists |= {name: info.get("summary", {}).get(name, []) for name in ("missing", "notes")}
    for name, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise TypeError(f"{name} must be a list of text")
    if len(info["classes"]) < 2 or len(set(info["classes"])) < len(info["classes"]):
        raise ValueError("classes must be two different labels or more")
    if type(parts["index"]) is not int or not isinstance(parts["protocol"], str):
        raise TypeError("the split needs a protocol and a number")
    words = ("extractor", "weights", "layer", "stream", "resize", "flow", "preprocess", "precision", "dtype")
    for spec in (one.spec for one in streams):
        if odd := [name for name in words if not isinstance(getattr(spec, name), str)]:
            raise TypeError(f"{odd[0]} must be text")
        if type(spec.feature_dim) is not int or spec.feature_dim < 1:
            raise ValueError("feature_dim must be a whole number above 0")
    if not streams:
        raise ValueError("it has no stream")


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, RunError, f"is {path.parent} a run folder?")
