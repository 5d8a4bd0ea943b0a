"""What a training learns from: the features of a split's videos, the parts of the split, the classes. Built once per job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import FeatureSpec, Scores, Split, VideoRecord
from har_pipeline.datasets.protocols import PROTOCOLS, has_test_part
from har_pipeline.datasets.splits import unlabelled_videos
from har_pipeline.datasets.units import SOURCES, units
from har_pipeline.evaluation.run_folder import features_sha256, files_sha256, labels_sha256
from har_pipeline.features.fitted import Fit, read_fit, require_same_training_videos
from har_pipeline.features.table import FeatureStreams, FeatureTable, load_features

NO_TEST_PART = "all videos were for training (--protocol all): no test part, accuracy is not measured"


@dataclass(frozen=True, slots=True)
class Parts:
    """Row numbers of a table's training, validation and test videos."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """All that a head or a network learns from; trainers read nothing else."""

    # Features of the split's videos that have any; videos of other folds may stand between them.
    table: FeatureTable
    # Their rows in the table.
    parts: Parts
    # (V,) int64, for each video of the table the number of its unit: videos of one subject, group or file, as far as the
    # split's protocol keeps such apart.
    units: np.ndarray
    # The labels of the training videos, sorted.
    classes: tuple[str, ...]
    split: Split
    # Ids of the split that have no features and were left out.
    missing: tuple[str, ...]
    # What a reader of the results must know of the data.
    notes: tuple[str, ...]
    # Of each stream: its feature set, that set's spec, and the fit that made it if it is reduced or encoded.
    feature_sets: tuple[str, ...]
    specs: tuple[FeatureSpec, ...]
    fits: tuple[Fit | None, ...]
    # Hashes over the labels, the features, and the names and frames of the files, of the split's videos.
    labels_sha256: str
    features_sha256: str
    files_sha256: str


def load_training_data(
    streams: FeatureStreams,
    records: Sequence[VideoRecord],
    splits: Sequence[Split],
    *,
    allow_missing: bool = False,
    spill_dir: Path | None = None,
) -> Iterator[TrainingData]:
    """Return what the run of each split learns from; splits with the same classes share one table, read at once.

    allow_missing: leave out videos without features. spill_dir: where features go that do not fit into memory.
    Raises: RunError as `split_classes` and `table.load_features`, or if without the missing videos a class has no training
    video or no test video is left; FeatureMismatchError if features were fitted on other training videos than those of a
    split; StoreError if features cannot be read.
    """
    if not splits:
        return iter(())
    specs = streams.specs
    for split in splits:
        for name, spec in zip(streams.names, specs, strict=True):
            require_same_training_videos(name, spec, split)
    classes = [split_classes(records, split) for split in splits]

    def load(wanted: Sequence[Split], labels: tuple[str, ...]) -> FeatureTable:
        ids = dict.fromkeys(video_id for split in wanted for video_id in (*split.train, *split.val, *split.test))
        return load_features(streams, records, list(ids), labels, allow_missing=allow_missing, spill_dir=spill_dir)

    shared = load(splits, classes[0]) if len(set(classes)) == 1 else None
    fits = tuple(read_fit(streams.store, name, spec) for name, spec in zip(streams.names, specs, strict=True))

    def data_of(split: Split, labels: tuple[str, ...]) -> TrainingData:
        table = shared or load([split], labels)
        present = set(table.video_ids)
        parts = Parts(*(table.rows_of(part) for part in (split.train, split.val, split.test)))
        missing = tuple(v for v in (*split.train, *split.val, *split.test) if v not in present)
        _check_parts(table, parts, labels, missing, tested=bool(split.test))
        return TrainingData(
            table=table,
            parts=parts,
            units=_units(table, records, split),
            classes=labels,
            split=split,
            missing=missing,
            notes=(*table.notes, *unlabelled_videos(records), *_untested_classes(table, parts, labels)),
            feature_sets=streams.names,
            specs=specs,
            fits=fits,
            labels_sha256=labels_sha256(records, split),
            features_sha256=features_sha256(dict(zip(table.video_ids, table.checksums, strict=True)), split),
            files_sha256=files_sha256(records, split, specs[0].stream),
        )

    return map(data_of, splits, classes)


def _units(table: FeatureTable, records: Sequence[VideoRecord], split: Split) -> np.ndarray:
    by_id = {record.video_id: record for record in records}
    apart = PROTOCOLS[split.protocol].val_apart if split.protocol in PROTOCOLS else SOURCES
    return np.array(units([by_id[video_id] for video_id in table.video_ids], apart), np.int64)


def split_classes(records: Sequence[VideoRecord], split: Split) -> tuple[str, ...]:
    """Return the labels of a split's training videos, sorted.

    Raises: RunError if the split has no training or test videos, ids that are not in the manifest, one class only, or
    validation or test videos of a class without training videos.
    """
    labels = {record.video_id: record.label for record in records}
    name = f"{split.protocol} split {split.index}"
    if not split.train or (not split.test and has_test_part(split.protocol)):
        raise RunError(f"{name} has no {'test' if split.train else 'training'} videos")
    for part in (split.train, split.val, split.test):
        if unknown := [video_id for video_id in part if video_id not in labels]:
            raise RunError(
                f"{name} names {len(unknown)} videos that are not in the manifest "
                f"({', '.join(unknown[:5])}); was the split made from another manifest?"
            )
    classes = tuple(sorted({labels[video_id] for video_id in split.train}))
    if len(classes) < 2:
        raise RunError(f"the training videos have only one class ({classes[0]}); a classifier needs two")
    for kind, part in (("validation", split.val), ("test", split.test)):
        if extra := sorted({labels[video_id] for video_id in part} - set(classes)):
            raise RunError(
                f"{name}: {kind} videos of {', '.join(extra[:5])}, but no training video of that class: remove the class "
                "from the manifest, or use another protocol"
            )
    return classes


def _check_parts(
    table: FeatureTable, parts: Parts, classes: tuple[str, ...], missing: tuple[str, ...], *, tested: bool
) -> None:
    present = set(table.labels[parts.train].tolist())
    if absent := [label for number, label in enumerate(classes) if number not in present]:
        raise RunError(f"without the {len(missing)} missing videos no training video of {absent[:5]} is left")
    if tested and not len(parts.test):
        raise RunError("without the missing videos no test video is left")


def _untested_classes(table: FeatureTable, parts: Parts, classes: tuple[str, ...]) -> list[str]:
    if not len(parts.test):
        return [NO_TEST_PART]
    tested = set(table.labels[parts.test].tolist())
    if not (untested := [label for number, label in enumerate(classes) if number not in tested]):
        return []
    return [f"no test video of {len(untested)} of the {len(classes)} classes: {', '.join(untested[:5])}"]


def held_out_scores(data: TrainingData, seed: int, probabilities: Callable[[np.ndarray], np.ndarray]) -> Scores:
    """Return the scores of the validation and test videos; probabilities: rows (n,) of the table -> (n, K)."""
    rows = np.concatenate([data.parts.val, data.parts.test])
    return Scores(
        video_ids=tuple(data.table.video_ids[row] for row in rows),
        labels=tuple(data.classes[data.table.labels[row]] for row in rows),
        classes=data.classes,
        probabilities=probabilities(rows) if len(rows) else np.zeros((0, len(data.classes))),
        part=("val",) * len(data.parts.val) + ("test",) * len(data.parts.test),
        fold=(data.split.index,) * len(rows),
        seed=(seed,) * len(rows),
    )
