"""Stage two: train a head on stored features and leave a run folder."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import FeatureSpec, Split, VideoRecord
from har_pipeline.evaluation.run_folder import (
    FORMAT_VERSION,
    HISTORY,
    RUN_JSON,
    SCORES,
    SPLIT_JSON,
    TENSORBOARD,
    WEIGHTS,
    RunSummary,
    features_sha256,
    labels_sha256,
    new_run_folder,
    package_versions,
    reduction_file,
    split_info,
    stream_info,
    write_history,
    write_json,
)
from har_pipeline.evaluation.scores import write_scores
from har_pipeline.features.reduce import projection_arrays, read_projection, require_same_training_videos
from har_pipeline.features.table import FeatureTable
from har_pipeline.models.device import pick_device
from har_pipeline.training.checkpoint import write_tensors
from har_pipeline.training.configs import TrainConfig
from har_pipeline.training.data import (
    Parts,
    TrainSource,
    check_parts,
    class_notes,
    held_out_scores,
    load_training_features,
    missing_videos,
    resolve_streams,
    run_classes,
)
from har_pipeline.training.heads.fit import Fitted, fit_head, loss_and_accuracy, probabilities_of
from har_pipeline.training.history import OnEpoch, epoch_writer


def train_head(
    store: TrainSource,
    feature_set: str | Sequence[str],
    records: Sequence[VideoRecord],
    split: Split,
    config: TrainConfig,
    run_dir: Path,
    *,
    manifest_sha256: str = "",
    on_epoch: OnEpoch | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
    tensorboard: bool = False,
    table: FeatureTable | None = None,
) -> RunSummary:
    """Train a head on a split's training videos, score its validation and test videos, and write the run folder.

    `feature_set` may be any unique prefix; several of them are the streams of mid fusion. Classes are the labels of the
    training videos, sorted. On one CPU machine the same arguments give the same weights, bit for bit; torch's global
    random state is left as it was. tensorboard: also write its event files. table: the features where the caller has
    loaded them (`load_training_features`, all videos of the split that have any, the split's classes).
    Raises: RunError if `run_dir` is taken, features are missing (unless `allow_missing`) or not finite, a label of the
    validation or test videos is not among the classes, validation videos are needed and there are none, streams cannot be
    joined, or the loss becomes NaN; StoreError if the features cannot be read; FeatureMismatchError if they were reduced
    on other training videos than those of this split.
    """
    start = time.perf_counter()
    device = pick_device(config.device)
    names = resolve_streams(store, [feature_set] if isinstance(feature_set, str) else feature_set)
    specs = [store.spec(name) for name in names]
    for name, spec in zip(names, specs, strict=True):
        require_same_training_videos(name, spec, split)
    classes = classes_of(records, split, config)
    with new_run_folder(run_dir, overwrite=overwrite) as folder:
        if table is None:
            ids = (*split.train, *split.val, *split.test)
            table = load_training_features(
                store, names, records, ids, classes, allow_missing=allow_missing, spill_dir=folder
            )
        missing = missing_videos(table, split)
        parts = Parts(*(table.rows_of(part) for part in (split.train, split.val, split.test)))
        check_parts(table, parts, classes, missing)
        with epoch_writer(folder / TENSORBOARD if tensorboard else None, on_epoch) as report:
            dims = [spec.feature_dim for spec in specs]
            fitted = fit_head(table, parts, len(classes), config, stream_dims=dims, on_epoch=report)
        notes = (
            *_feature_notes(specs),
            *_step_notes(table, config),
            *table.notes,
            *class_notes(table, parts, classes),
            *fitted.notes,
        )
        summary = _summary(run_dir, fitted, table, parts, missing, notes, time.perf_counter() - start)
        write_tensors(folder / WEIGHTS, fitted.head.state_dict())
        for number, (name, spec) in enumerate(zip(names, specs, strict=True)):
            if spec.reduction is not None:
                projection = read_projection(store, name, spec.reduction)
                write_tensors(folder / reduction_file(number), projection_arrays(projection))
        write_history(folder / HISTORY, [dataclasses.asdict(epoch) for epoch in fitted.history])
        score = functools.partial(probabilities_of, fitted.head, fitted.data)
        write_scores(folder / SCORES, held_out_scores(table, parts, classes, split, config.seed, score))
        write_json(folder / SPLIT_JSON, dataclasses.asdict(split))
        info = {
            **_run_info(summary, config, split, classes, device),
            **stream_info(names, specs),
            "labels_sha256": labels_sha256(records, split),
            "features_sha256": features_sha256(dict(zip(table.video_ids, table.checksums, strict=True)), split),
            "manifest_sha256": manifest_sha256 or split.manifest_sha256,
        }
        write_json(folder / RUN_JSON, info)
    return summary


def _summary(
    run_dir: Path,
    fitted: Fitted,
    table: FeatureTable,
    parts: Parts,
    missing: tuple[str, ...],
    notes: tuple[str, ...],
    seconds: float,
) -> RunSummary:
    def accuracy(rows: np.ndarray) -> float:
        return loss_and_accuracy(fitted.head, fitted.data, table.labels, rows)[1]

    return RunSummary(
        path=run_dir,
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        train_accuracy=accuracy(parts.train),
        val_accuracy=accuracy(parts.val) if len(parts.val) else None,
        test_accuracy=accuracy(parts.test),
        num_train=len(parts.train),
        num_val=len(parts.val),
        num_test=len(parts.test),
        missing=missing,
        notes=notes,
        seconds=round(seconds, 3),
    )


def _feature_notes(specs: Sequence[FeatureSpec]) -> list[str]:
    random = {spec.weights: None for spec in specs if spec.weights.startswith("random")}
    return [f"features come from random backbone weights ({weights}): no measure of the method" for weights in random]


def _step_notes(table: FeatureTable, config: TrainConfig) -> list[str]:
    if config.num_steps is None or not (short := int((table.lengths < config.num_steps).sum())):
        return []
    return [
        f"{short} of {len(table.lengths)} videos have fewer than {config.num_steps} clips: theirs stand there repeatedly"
    ]


def _run_info(
    summary: RunSummary, config: TrainConfig, split: Split, classes: tuple[str, ...], device: torch.device
) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "options": config.to_dict(),
        "classes": list(classes),
        "split": split_info(split),
        # The folder may be moved: it does not say where it is.
        "summary": {key: value for key, value in summary.to_dict().items() if key != "path"},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": package_versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def classes_of(records: Sequence[VideoRecord], split: Split, config: TrainConfig) -> tuple[str, ...]:
    """Return the classes of a split: the labels of its training videos, sorted.

    Raises: RunError if the split does not fit the manifest or the options.
    """
    if config.needs_validation and not split.val:
        what = "early stopping (patience)" if config.patience is not None else "the schedule plateau"
        raise RunError(f"{what} needs validation videos: make a split with a validation part (--val-fraction)")
    return run_classes(records, split)
