"""What a training reads: the table of its features, the parts of its split, its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import FeatureSpec, Scores, Split, VideoRecord
from har_pipeline.features.reduce import ReductionSource
from har_pipeline.features.table import FeatureSource, FeatureTable, StreamSource, load_features


@dataclass(frozen=True, slots=True)
class Parts:
    """Row numbers of a table's training, validation and test videos."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class TrainSource(FeatureSource, ReductionSource, Protocol):
    """A feature store that also knows how a feature set was made."""

    def resolve(self, prefix: str, /) -> str:
        """Return the full name of the feature set that starts with `prefix`."""
        ...

    def spec(self, feature_set: str, /) -> FeatureSpec:
        """Return how the features of a set were made."""
        ...

    def checksums(self, feature_set: str, /) -> Mapping[str, str]:
        """Return video_id -> checksum of its features, without reading them."""
        ...


def resolve_streams(store: TrainSource, prefixes: Sequence[str]) -> list[str]:
    """Return the full name of the feature set of each stream. Raises: RunError if one is given twice; as `resolve`."""
    names = [store.resolve(prefix) for prefix in prefixes]
    if len(set(names)) < len(names):
        raise RunError(f"the feature set {max(names, key=names.count)} is given twice: each stream needs its own")
    return names


def stored_checksums(store: TrainSource, feature_sets: Sequence[str]) -> dict[str, str]:
    """Return video_id -> checksum of its features, as `FeatureTable` has it, of the videos that all feature sets hold."""
    first, *others = (store.checksums(name) for name in feature_sets)
    return {
        video_id: "+".join([checksum, *(other[video_id] for other in others)])
        for video_id, checksum in first.items()
        if all(video_id in other for other in others)
    }


def load_training_features(
    store: TrainSource,
    feature_sets: Sequence[str],
    records: Sequence[VideoRecord],
    ids: Sequence[str],
    classes: Sequence[str],
    *,
    allow_missing: bool = False,
    spill_dir: Path | None = None,
) -> FeatureTable:
    """Read the features of the videos `ids`: those of one feature set, or of several side by side, aligned by time.

    feature_sets: full names. Raises: as `datasets.load_features`.
    """
    if len(feature_sets) == 1:
        source: FeatureSource = store
    else:
        source = StreamSource(store, feature_sets)
    return load_features(
        source, "+".join(feature_sets), records, ids, classes, allow_missing=allow_missing, spill_dir=spill_dir
    )


def missing_videos(table: FeatureTable, split: Split) -> tuple[str, ...]:
    """Return the ids of the split that are not in the table, in their order."""
    present = set(table.video_ids)
    return tuple(video_id for video_id in (*split.train, *split.val, *split.test) if video_id not in present)


def class_notes(table: FeatureTable, parts: Parts, classes: tuple[str, ...]) -> list[str]:
    """Return a note on the classes that no test video has, if there are any."""
    tested = set(table.labels[parts.test].tolist())
    if not (untested := [label for number, label in enumerate(classes) if number not in tested]):
        return []
    return [f"no test video of {len(untested)} of the {len(classes)} classes: {', '.join(untested[:5])}"]


def run_classes(records: Sequence[VideoRecord], split: Split) -> tuple[str, ...]:
    """Return the labels of a split's training videos, sorted.

    Raises: RunError if the split has no training or test videos, ids that the manifest has not, one class only, or
    validation or test videos of a class without training videos.
    """
    labels = {record.video_id: record.label for record in records}
    if not split.train or not split.test:
        raise RunError(f"{split.protocol} split {split.index} has no {'test' if split.train else 'training'} videos")
    for part in (split.train, split.val, split.test):
        if unknown := [video_id for video_id in part if video_id not in labels]:
            raise RunError(
                f"{split.protocol} split {split.index} names {len(unknown)} videos that are not in the manifest "
                f"({', '.join(unknown[:5])}); was the split made from another manifest?"
            )
    classes = tuple(sorted({labels[video_id] for video_id in split.train}))
    if len(classes) < 2:
        raise RunError(f"the training videos have one class only ({classes[0]}); a classifier needs two")
    for name, part in (("validation", split.val), ("test", split.test)):
        if extra := sorted({labels[video_id] for video_id in part} - set(classes)):
            raise RunError(
                f"{split.protocol} split {split.index}: {name} videos of {', '.join(extra[:5])}, but no training video "
                "of that class: take the class out of the manifest, or use another protocol"
            )
    return classes


def check_parts(table: FeatureTable, parts: Parts, classes: tuple[str, ...], missing: tuple[str, ...]) -> None:
    """Check what is left without the missing videos. Raises: RunError if a class has no training video, or none is tested."""
    present = set(table.labels[parts.train].tolist())
    if absent := [label for number, label in enumerate(classes) if number not in present]:
        raise RunError(f"without the {len(missing)} missing videos no training video of {absent[:5]} is left")
    if not len(parts.test):
        raise RunError("without the missing videos no test video is left")


def held_out_scores(
    table: FeatureTable,
    parts: Parts,
    classes: tuple[str, ...],
    split: Split,
    seed: int,
    probabilities: Callable[[np.ndarray], np.ndarray],
) -> Scores:
    """Return the scores of the validation and test videos; probabilities: rows (n,) of the table -> (n, K)."""
    rows = np.concatenate([parts.val, parts.test])
    return Scores(
        video_ids=tuple(table.video_ids[row] for row in rows),
        labels=tuple(classes[table.labels[row]] for row in rows),
        classes=classes,
        probabilities=probabilities(rows),
        part=("val",) * len(parts.val) + ("test",) * len(parts.test),
        fold=(split.index,) * len(rows),
        seed=(seed,) * len(rows),
    )
