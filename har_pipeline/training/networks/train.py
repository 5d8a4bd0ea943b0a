"""The raw-video path: train a network on stored raw frames, end to end, and leave a run folder."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from har_pipeline.core.files import write_json
from har_pipeline.core.records import Scores, Split, VideoRecord
from har_pipeline.evaluation.run_folder import (
    FORMAT_VERSION,
    HISTORY,
    RUN_JSON,
    SCORES,
    SPLIT_JSON,
    VIDEO,
    RunSummary,
    features_sha256,
    files_sha256,
    labels_sha256,
    lasting_run_folder,
    package_versions,
    split_info,
    stream_info,
    write_history,
)
from har_pipeline.evaluation.scores import write_scores
from har_pipeline.features.frames import frame_shape
from har_pipeline.features.table import FeatureTable
from har_pipeline.models.convlstm.windows import BIN_EDGES
from har_pipeline.training.checkpoint import CHECKPOINT, write_tensors
from har_pipeline.training.configs import VideoTrainConfig
from har_pipeline.training.data import (
    Parts,
    TrainSource,
    check_parts,
    class_notes,
    held_out_scores,
    load_training_features,
    missing_videos,
    run_classes,
    stored_checksums,
)
from har_pipeline.training.history import OnEpoch
from har_pipeline.training.networks.distributed import ALONE, World
from har_pipeline.training.networks.fit import FittedNetwork, OnBatch, fit_network

NETWORK = "network.safetensors"


def train_video(
    store: TrainSource,
    feature_set: str,
    records: Sequence[VideoRecord],
    split: Split,
    config: VideoTrainConfig,
    run_dir: Path,
    *,
    manifest_sha256: str = "",
    on_epoch: OnEpoch | None = None,
    on_batch: OnBatch | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
    table: FeatureTable | None = None,
    world: World = ALONE,
) -> RunSummary | None:
    """Train a network on a split's training videos, score its validation and test videos, and write the run folder.

    feature_set: raw frames (or any unique prefix of its name). Classes are the labels of the training videos, sorted. A
    training that was killed goes on at the epoch it was in when the same call is made again. table: the frames where the
    caller has loaded them. world: the processes that train together; all make the same call, the first one writes, and
    the others return None. On one CPU machine the same call gives the same weights, bit for bit, interrupted or not; GPUs
    add in varying order. The summary's train_accuracy is that of the best epoch while the weights moved; its seconds count
    the epochs of all processes that had a part in the training, interrupted ones too.
    Raises: RunError if `run_dir` is taken or of an unfinished run with other options, frames are missing (unless
    `allow_missing`), a label of the validation or test videos is not among the classes, or the loss is not finite;
    StoreError if the frames cannot be read.
    """
    start = time.perf_counter()
    name = store.resolve(feature_set)
    spec = store.spec(name)
    shape = frame_shape(spec)
    classes = run_classes(records, split)

    def fit(folder: Path | None) -> tuple[FittedNetwork, FeatureTable, Parts]:
        ids = (*split.train, *split.val, *split.test)
        frames = table or load_training_features(
            store, [name], records, ids, classes, allow_missing=allow_missing, spill_dir=folder or run_dir.parent
        )
        parts = Parts(*(frames.rows_of(part) for part in (split.train, split.val, split.test)))
        check_parts(frames, parts, classes, missing_videos(frames, split))
        checkpoint = folder / CHECKPOINT if folder else None
        fitted = fit_network(
            frames,
            shape,
            parts,
            len(classes),
            config,
            checkpoint=checkpoint,
            world=world,
            on_epoch=on_epoch,
            on_batch=on_batch,
        )
        return fitted, frames, parts

    if not world.first:
        fitted, frames, parts = fit(None)
        _scores(fitted, frames, parts, classes, split, config)
        return None
    options = {option: value for option, value in config.to_dict().items() if option != "device"}
    job = {"options": options, "features": name, "split": split_info(split), "processes": world.size}
    checksums = stored_checksums(store, [name])
    hashes = {
        "labels_sha256": labels_sha256(records, split),
        "features_sha256": features_sha256(checksums, split),
        "files_sha256": files_sha256(records, split, spec.stream),
    }
    with lasting_run_folder(run_dir, {**job, **hashes}, overwrite=overwrite) as folder:
        fitted, frames, parts = fit(folder)
        scores = _scores(fitted, frames, parts, classes, split, config)
        seconds = time.perf_counter() - start + fitted.seconds_before
        summary = _summary(run_dir, fitted, frames, parts, scores, split, classes, config, seconds)
        info = {
            **_run_info(summary, config, split, classes, fitted, world),
            **stream_info([name], [spec]),
            **hashes,
            "manifest_sha256": manifest_sha256 or split.manifest_sha256,
        }
        _write_run(folder, fitted, scores, split, info)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return summary


def _write_run(folder: Path, fitted: FittedNetwork, scores: Scores, split: Split, info: dict[str, Any]) -> None:
    """Write the files of a finished run, run.json last."""
    write_tensors(folder / NETWORK, fitted.learner.network.state_dict())
    write_history(folder / HISTORY, [dataclasses.asdict(epoch) for epoch in fitted.history])
    write_scores(folder / SCORES, scores)
    write_json(folder / SPLIT_JSON, dataclasses.asdict(split))
    write_json(folder / RUN_JSON, info)


def _scores(
    fitted: FittedNetwork,
    frames: FeatureTable,
    parts: Parts,
    classes: tuple[str, ...],
    split: Split,
    config: VideoTrainConfig,
) -> Scores:
    score = functools.partial(fitted.learner.probabilities, whole=config.long_videos == "whole")
    return held_out_scores(frames, parts, classes, split, config.seed, score)


def _summary(
    run_dir: Path,
    fitted: FittedNetwork,
    frames: FeatureTable,
    parts: Parts,
    scores: Scores,
    split: Split,
    classes: tuple[str, ...],
    config: VideoTrainConfig,
    seconds: float,
) -> RunSummary:
    best = fitted.history[fitted.best_epoch - 1]
    tested = scores.select([row for row, part in enumerate(scores.part) if part == "test"])
    right = [classes[k] == label for k, label in zip(tested.probabilities.argmax(axis=1), tested.labels, strict=True)]
    return RunSummary(
        path=run_dir,
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        train_accuracy=best.train_accuracy,
        val_accuracy=best.val_accuracy,
        test_accuracy=sum(right) / len(right),
        num_train=len(parts.train),
        num_val=len(parts.val),
        num_test=len(parts.test),
        missing=missing_videos(frames, split),
        notes=(
            *config_notes(config),
            *_length_notes(config, frames),
            *(() if len(parts.val) else ("no validation videos: the network of the last epoch was kept",)),
            *frames.notes,
            *class_notes(frames, parts, classes),
        ),
        seconds=round(seconds, 3),
    )


def config_notes(config: VideoTrainConfig) -> list[str]:
    """Return how the options differ from the published network and training, for a reader of the results."""
    notes = []
    if config.width != 1:
        notes.append(
            f"every layer has {config.width:g} times the paper's filters: this is not the published network, but a "
            f"{'narrower' if config.width < 1 else 'wider'} one"
        )
    if config.schedule != "published" or config.num_epochs != config.published_epochs:
        count = f"{config.num_epochs} epoch{'s' * (config.num_epochs != 1)}"
        how = "the published schedule run through in" if config.schedule == "published" else f"{config.schedule} for"
        notes.append(f"learning rate: {how} {count}; the paper's schedule has {config.published_epochs} epochs")
    if config.state_gradient != "window":
        notes.append("the gradient went through the state of whole videos; the paper cuts it off at each window")
    if config.memory_frames is not None:
        notes.append(f"the cells began with a memory of up to {config.memory_frames} frames, which is ours")
    if config.augment:
        notes.append(f"training frames were moved and scaled by up to {100 * config.augment:g} %; the paper's are not")
    return notes


def _length_notes(config: VideoTrainConfig, frames: FeatureTable) -> list[str]:
    long = int((frames.lengths > BIN_EDGES[-1]).sum())
    if not config.stateful or not long or config.long_videos == "whole":
        return []
    return [
        f"{long} videos of more than {BIN_EDGES[-1]} frames were cut to their first {BIN_EDGES[-2]}, see --long-videos"
    ]


def _run_info(
    summary: RunSummary,
    config: VideoTrainConfig,
    split: Split,
    classes: tuple[str, ...],
    fitted: FittedNetwork,
    world: World,
) -> dict[str, Any]:
    device = fitted.learner.frames.device
    return {
        "format": FORMAT_VERSION,
        "kind": VIDEO,
        "options": config.to_dict(),
        "precision": fitted.precision,
        "parameters": sum(parameter.numel() for parameter in fitted.learner.network.parameters()),
        "processes": world.size,
        "classes": list(classes),
        "split": split_info(split),
        "summary": {key: value for key, value in summary.to_dict().items() if key != "path"},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": package_versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
