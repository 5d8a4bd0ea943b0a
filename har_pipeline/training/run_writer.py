"""The files that a finished training leaves in its run folder, whatever was trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from har_pipeline.core.files import write_json
from har_pipeline.core.records import Scores, TrainedOn
from har_pipeline.evaluation.run_folder import (
    FORMATS,
    FROM_PYTHON,
    HISTORY,
    SCORES,
    SPLIT_JSON,
    Origin,
    RunSummary,
    fit_file,
    package_versions,
    split_info,
    stream_info,
    write_info,
)
from har_pipeline.evaluation.scores import write_scores
from har_pipeline.evaluation.tables import write_csv
from har_pipeline.features.fitted import fit_arrays, train_ids_sha256
from har_pipeline.models.device import device_name
from har_pipeline.models.extractors.weights import TRAINING
from har_pipeline.training.checkpoint import write_tensors
from har_pipeline.training.data import TrainingData
from har_pipeline.training.history import Epoch
from har_pipeline.training.options import TrainConfig, VideoTrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came out of a training."""

    model: torch.nn.Module
    history: Sequence[Epoch]
    # The epoch whose weights the model has, from 1.
    best_epoch: int
    # Of the validation and test videos.
    scores: Scores
    train_accuracy: float
    val_accuracy: float | None
    notes: tuple[str, ...]
    device: torch.device
    # When the process began that finished it; `seconds` count those of interrupted ones as well.
    started: datetime
    seconds: float
    # Further entries of run.json for this kind of run.
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def part_accuracy(scores: Scores, part: str) -> float | None:
    """Return the share of the videos of `val` or `test` classified correctly; None if there are none."""
    best = scores.probabilities.argmax(axis=1)
    rows = zip(best, scores.labels, scores.part, strict=True)
    right = [scores.classes[k] == label for k, label, own in rows if own == part]
    return sum(right) / len(right) if right else None


def write_run(
    folder: Path,
    run_dir: Path,
    weights: str,
    data: TrainingData,
    config: TrainConfig | VideoTrainConfig,
    trained: Trained,
    job: str = "",
    origin: Origin = FROM_PYTHON,
) -> RunSummary:
    """Write the files of a run into `folder`, run.json last, and return its summary.

    run_dir: what the folder will be called. weights: name of the file with the model's weights. job: of which the run is a
    part, as `plan.job_sha256` returns it; empty for a run that stands alone. origin: what it was made by and from.
    """
    summary = RunSummary(
        path=run_dir,
        epochs=len(trained.history),
        best_epoch=trained.best_epoch,
        train_accuracy=trained.train_accuracy,
        val_accuracy=trained.val_accuracy,
        test_accuracy=part_accuracy(trained.scores, "test"),
        num_train=len(data.parts.train),
        num_val=len(data.parts.val),
        num_test=len(data.parts.test),
        missing=data.missing,
        notes=trained.notes,
        seconds=round(trained.seconds, 3),
    )
    # A net of ours may become an extractor: its file says which split it belongs to.
    split = TrainedOn(
        protocol=data.split.protocol, split=data.split.index, train_ids_sha256=train_ids_sha256(data.split)
    )
    ours = isinstance(config, VideoTrainConfig)
    header = {TRAINING: json.dumps({**dataclasses.asdict(split), "resize": data.specs[0].resize})}
    write_tensors(folder / weights, trained.model.state_dict(), header if ours else None)
    for number, (spec, fit) in enumerate(zip(data.specs, data.fits, strict=True)):
        if fit is not None:
            write_tensors(folder / fit_file(spec, number), fit_arrays(fit))
    names = [field.name for field in dataclasses.fields(Epoch)]
    write_csv(folder / HISTORY, names, [dataclasses.astuple(epoch) for epoch in trained.history])
    write_scores(folder / SCORES, trained.scores)
    write_json(folder / SPLIT_JSON, dataclasses.asdict(data.split))
    info = {
        "format": FORMATS[-1],
        "options": config.to_dict(),
        "classes": list(data.classes),
        "split": split_info(data.split),
        # Without its path: the folder may be moved.
        "summary": {key: value for key, value in summary.to_dict().items() if key != "path"},
        "device": device_name(trained.device),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "started": trained.started.astimezone(UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **origin.to_dict(),
        **stream_info(data.feature_sets, data.specs),
        "labels_sha256": data.labels_sha256,
        "features_sha256": data.features_sha256,
        "manifest_sha256": data.split.manifest_sha256,
        **({"job": job} if job else {}),
        **trained.details,
    }
    write_info(folder, info)
    return summary
