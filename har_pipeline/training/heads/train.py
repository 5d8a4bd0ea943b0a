"""Train a head on stored features and write its run folder."""

from __future__ import annotations

import dataclasses
import functools
import time
from datetime import UTC, datetime
from pathlib import Path

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Split
from har_pipeline.evaluation.run_folder import FROM_PYTHON, TENSORBOARD, WEIGHTS, Origin, RunSummary, new_run_folder
from har_pipeline.models.config import RECURRENT_HEADS
from har_pipeline.models.device import pick_device
from har_pipeline.training.data import TrainingData, held_out_scores
from har_pipeline.training.heads.fit import fit_head, probabilities_of
from har_pipeline.training.history import OnEpoch, epoch_writer, loss_and_accuracy
from har_pipeline.training.memory import head_need, require_memory
from har_pipeline.training.options import TrainConfig
from har_pipeline.training.run_writer import Trained, part_accuracy, write_run


def train_head(
    data: TrainingData,
    config: TrainConfig,
    run_dir: Path,
    *,
    overwrite: bool = False,
    tensorboard: bool = False,
    job: str = "",
    origin: Origin = FROM_PYTHON,
    on_epoch: OnEpoch = lambda epoch: None,
) -> RunSummary:
    """Train a head on a split's training videos, score its validation and test videos, and write the run folder.

    Several streams are joined by mid fusion. On one CPU machine, with one number of threads, the same arguments give the
    same weights, bit for bit; torch's global random state is left as it was. tensorboard: also write its event files.
    job, origin: of which the run is a part, and what it was made by, see `write_run`.
    Raises: RunError if `run_dir` is taken, validation videos are needed and there are none, streams cannot be joined, the
    device is absent, or the loss becomes NaN.
    """
    start, started = time.perf_counter(), datetime.now(UTC)
    config = config.for_features(data.specs)
    check_validation(data.split, config)
    _check_memory(data, config)
    with new_run_folder(run_dir, overwrite=overwrite) as folder:
        with epoch_writer(folder / TENSORBOARD if tensorboard else None, on_epoch) as report:
            dims, train = [spec.feature_dim for spec in data.specs], data.parts.train
            fitted = fit_head(
                data.table,
                data.parts,
                len(data.classes),
                config,
                stream_dims=dims,
                classes=data.classes,
                units=data.units,
                on_epoch=report,
            )
        score = functools.partial(probabilities_of, fitted.head, fitted.data)
        scores = held_out_scores(data, config.seed, score)
        trained = Trained(
            model=fitted.head,
            history=fitted.history,
            best_epoch=fitted.best_epoch,
            scores=scores,
            train_accuracy=loss_and_accuracy(score(train), data.table.labels[train])[1],
            val_accuracy=part_accuracy(scores, "val"),
            notes=(*_notes(data, config), *data.notes, *fitted.notes),
            device=pick_device(config.device),
            started=started,
            seconds=time.perf_counter() - start,
        )
        return write_run(folder, run_dir, WEIGHTS, data, config, trained, job, origin)


def _check_memory(data: TrainingData, config: TrainConfig) -> None:
    """Raise RunError if the longest videos in a batch do not fit into memory; the features are there already."""
    dims, lengths = [spec.feature_dim for spec in data.specs], data.table.lengths
    rows_per_clip = data.table.rows_per_clip
    need = head_need(config, dims, len(data.classes), len(lengths), int(lengths.max()), rows_per_clip)
    if config.num_steps is None:
        need = dataclasses.replace(need, features=0)
    require_memory(need, config, dims)


def check_validation(split: Split, config: TrainConfig) -> None:
    """Raise RunError if the options need validation videos and the split has none."""
    if config.needs_validation and not split.val:
        what = "early stopping (patience)" if config.patience is not None else "the schedule plateau"
        raise RunError(f"{what} needs validation videos: make a split with a validation part (--val-fraction)")


def _notes(data: TrainingData, config: TrainConfig) -> list[str]:
    random = {spec.weights: None for spec in data.specs if spec.weights.startswith("random")}
    notes = [f"features come from random backbone weights ({weights}): no measure of the method" for weights in random]
    lengths = data.table.lengths
    if config.num_steps is not None and (short := int((lengths < config.num_steps).sum())):
        notes.append(
            f"{short} of {len(lengths)} videos have fewer than {config.num_steps} clips: some of theirs are used repeatedly"
        )
    single = len(lengths) if config.num_steps == 1 else int((lengths == 1).sum())
    if config.head in RECURRENT_HEADS and 2 * single > len(lengths):
        which = "every video is" if single == len(lengths) else f"{single} of {len(lengths)} videos are"
        notes.append(
            f"{which} a sequence of one step, in which {config.head} sees nothing change: take several clips of a video "
            "(har extract --sampling uniform --num-clips 10), or a head without time (--head mean_pool)"
        )
    return notes
