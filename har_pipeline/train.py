"""Stage two: train a head on stored features and leave a run folder."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import nn

from har_pipeline.datasets import FeatureSource, FeatureTable, feature_statistics, load_features, padded_batches
from har_pipeline.errors import RunError
from har_pipeline.heads import SequenceClassifier, build_head, class_probabilities, fit_logistic_regression
from har_pipeline.records import FeatureSpec, Scores, Split, VideoRecord
from har_pipeline.reduce import ReductionSource, projection_arrays, read_projection, require_same_training_videos
from har_pipeline.run_folder import (
    FORMAT_VERSION,
    HISTORY,
    REDUCTION,
    RUN_JSON,
    SCORES,
    SPLIT_JSON,
    WEIGHTS,
    RunSummary,
    new_run_folder,
    package_versions,
    split_info,
    write_history,
    write_json,
)
from har_pipeline.scores import write_scores
from har_pipeline.train_config import TrainConfig

__all__ = ["Epoch", "TrainConfig", "TrainSource", "resolve_device", "train_head"]

EVAL_BATCH_SIZE = 64


class TrainSource(FeatureSource, ReductionSource, Protocol):
    """A feature store that also knows how a feature set was made."""

    def resolve(self, prefix: str, /) -> str:
        """Return the full name of the feature set that starts with `prefix`."""
        ...

    def spec(self, feature_set: str, /) -> FeatureSpec:
        """Return how the features of a set were made."""
        ...


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of history.csv. Losses are mean cross-entropies in nats, accuracies video accuracies in [0, 1].

    The training numbers are means over the epoch's batches while the weights moved and with dropout, as Keras prints
    them; the validation numbers come from the weights after the epoch, None without validation videos.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Parts:
    """Row numbers of a table's training, validation and test videos."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def resolve_device(name: str) -> torch.device:
    """Return the device `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1` ... Raises: RunError if absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:<number>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"device {name!r} is not there ({torch.cuda.device_count()} CUDA devices); use --device cpu")
    return device


def train_head(
    store: TrainSource,
    feature_set: str,
    records: Sequence[VideoRecord],
    split: Split,
    config: TrainConfig,
    run_dir: Path,
    *,
    manifest_sha256: str = "",
    on_epoch: Callable[[Epoch], None] | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
) -> RunSummary:
    """Train a head on a split's training videos, score its validation and test videos, and write the run folder.

    `feature_set` may be any unique prefix. Classes are the labels of the training videos, sorted. On one CPU machine
    the same arguments give the same weights, bit for bit; torch's global random state is left as it was.
    Raises: RunError if `run_dir` is taken, features are missing (unless `allow_missing`) or not finite, a label of the
    validation or test videos is not among the classes, `patience` comes without validation videos, or the loss
    becomes NaN; StoreError if the features cannot be read; FeatureMismatchError if they were reduced on other training
    videos than those of this split.
    """
    start = time.perf_counter()
    device = resolve_device(config.device)
    feature_set = store.resolve(feature_set)
    spec = store.spec(feature_set)
    require_same_training_videos(feature_set, spec, split)
    classes = _classes(records, split, config)
    with new_run_folder(run_dir, overwrite=overwrite) as folder:
        ids = (*split.train, *split.val, *split.test)
        table = load_features(store, feature_set, records, ids, classes, allow_missing=allow_missing, spill_dir=folder)
        parts = _Parts(*(table.rows_of(part) for part in (split.train, split.val, split.test)))
        _check_parts(table, parts, classes)
        head, history, best_epoch, notes = _fit(table, parts, len(classes), config, device, on_epoch)
        summary = RunSummary(
            path=run_dir,
            epochs=len(history),
            best_epoch=best_epoch,
            train_accuracy=_accuracy(head, table, parts.train),
            val_accuracy=_accuracy(head, table, parts.val) if len(parts.val) else None,
            test_accuracy=_accuracy(head, table, parts.test),
            num_train=len(parts.train),
            num_val=len(parts.val),
            num_test=len(parts.test),
            missing=table.missing,
            notes=(*_feature_notes(spec), *notes),
            seconds=round(time.perf_counter() - start, 3),
        )
        save_file({name: value.cpu().contiguous() for name, value in head.state_dict().items()}, folder / WEIGHTS)
        if spec.reduction is not None:
            projection = read_projection(store, feature_set, spec.reduction)
            save_arrays(projection_arrays(projection), folder / REDUCTION)
        write_history(folder / HISTORY, [dataclasses.asdict(epoch) for epoch in history])
        write_scores(folder / SCORES, _scores(head, table, parts, classes, split, config))
        write_json(folder / SPLIT_JSON, dataclasses.asdict(split))
        info = {
            **_run_info(summary, config, split, classes, device),
            "feature_set": feature_set,
            "feature_dim": table.feature_dim,
            "feature_spec": spec.to_dict(),
            "manifest_sha256": manifest_sha256 or split.manifest_sha256,
        }
        write_json(folder / RUN_JSON, info)
    return summary


def _fit(
    table: FeatureTable,
    parts: _Parts,
    num_classes: int,
    config: TrainConfig,
    device: torch.device,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[SequenceClassifier, list[Epoch], int, list[str]]:
    """Return a trained head, the history, the epoch whose weights were kept, and notes."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        head = build_head(config.head_config, table.feature_dim, num_classes)
        if config.standardise:
            head.set_input_scaling(*feature_statistics(table, parts.train))
        head.to(device)
        fit = _fit_mean_pool if config.head == "mean_pool" else _fit_by_gradient
        return head, *fit(head, table, parts, config, on_epoch)


def _feature_notes(spec: FeatureSpec) -> list[str]:
    if not spec.weights.startswith("random"):
        return []
    return [f"features come from random backbone weights ({spec.weights}): no measure of the method"]


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


def _classes(records: Sequence[VideoRecord], split: Split, config: TrainConfig) -> tuple[str, ...]:
    """Return the classes of a split that fits the manifest and the options."""
    if config.patience is not None and config.head != "mean_pool" and not split.val:
        raise RunError("early stopping (patience) needs validation videos: make a split with a validation part")
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


def _check_parts(table: FeatureTable, parts: _Parts, classes: tuple[str, ...]) -> None:
    present = set(table.labels[parts.train].tolist())
    if absent := [label for number, label in enumerate(classes) if number not in present]:
        raise RunError(f"without the {len(table.missing)} missing videos no training video of {absent[:5]} is left")
    if not len(parts.test):
        raise RunError("without the missing videos no test video is left")


def _optimizer(head: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = head.parameters()
    if config.optimizer == "rmsprop":
        # Keras's rho and epsilon, as the paper used Keras; torch's own are 0.99 and 1e-8.
        return torch.optim.RMSprop(parameters, lr=config.learning_rate, alpha=0.9, eps=1e-7)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.learning_rate)
    return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=0.9)


def _fit_by_gradient(
    head: SequenceClassifier,
    table: FeatureTable,
    parts: _Parts,
    config: TrainConfig,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[list[Epoch], int, list[str]]:
    """Train `head` in place; returns the history, the epoch whose weights it has now, and notes."""
    optimizer = _optimizer(head, config)
    generator = torch.Generator().manual_seed(config.seed)
    history: list[Epoch] = []
    best_epoch, best_loss, best_weights = 0, float("inf"), head.state_dict()
    for number in range(1, config.epochs + 1):
        start = time.perf_counter()
        train_loss, train_accuracy = _train_epoch(head, optimizer, table, parts.train, config, generator)
        if not np.isfinite(train_loss):
            raise RunError(f"the loss became {train_loss} in epoch {number}; lower --learning-rate, or standardise")
        val_loss, val_accuracy = _val_measures(head, table, parts)
        seconds = round(time.perf_counter() - start, 3)
        rate = config.learning_rate
        history.append(Epoch(number, rate, train_loss, train_accuracy, val_loss, val_accuracy, seconds))
        if on_epoch is not None:
            on_epoch(history[-1])
        if config.patience is None or val_loss is None:
            continue
        if val_loss < best_loss:
            best_epoch, best_loss, best_weights = number, val_loss, copy.deepcopy(head.state_dict())
        elif number - best_epoch >= config.patience:
            break
    if not best_epoch:
        return history, len(history), []
    head.load_state_dict(best_weights)
    return history, best_epoch, []


def _train_epoch(
    head: SequenceClassifier,
    optimizer: torch.optim.Optimizer,
    table: FeatureTable,
    rows: np.ndarray,
    config: TrainConfig,
    generator: torch.Generator,
) -> tuple[float, float]:
    head.train()
    device = head.input_mean.device
    total_loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    for batch in padded_batches(table, config.batch_size, rows=rows, generator=generator, device=device):
        log_probabilities = head(batch.features, batch.lengths)
        loss = nn.functional.nll_loss(log_probabilities, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        if config.weight_decay:
            with torch.no_grad():
                for parameter in head.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(1 - config.learning_rate * config.weight_decay)
        optimizer.step()
        total_loss += loss.detach() * len(batch.labels)
        correct += (log_probabilities.detach().argmax(dim=1) == batch.labels).sum()
    return float(total_loss) / len(rows), int(correct) / len(rows)


def _fit_mean_pool(
    head: SequenceClassifier,
    table: FeatureTable,
    parts: _Parts,
    config: TrainConfig,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[list[Epoch], int, list[str]]:
    """Put scikit-learn's solution into the dense layer of a `mean_pool` head; the history has one row."""
    start = time.perf_counter()
    device = head.input_mean.device
    batches = padded_batches(table, EVAL_BATCH_SIZE, rows=parts.train, device=device)
    with torch.inference_mode():
        pooled = np.concatenate([head.encode(batch.features, batch.lengths).cpu().numpy() for batch in batches])
    weights, biases, converged = fit_logistic_regression(
        pooled,
        table.labels[parts.train],
        num_classes=head.classifier.out_features,
        c=config.logistic_c,
        max_iterations=config.max_iterations,
    )
    with torch.no_grad():
        head.classifier.weight.copy_(torch.from_numpy(weights))
        head.classifier.bias.copy_(torch.from_numpy(biases))
    train_loss, train_accuracy = _loss_and_accuracy(head, table, parts.train)
    val_loss, val_accuracy = _val_measures(head, table, parts)
    seconds = round(time.perf_counter() - start, 3)
    epoch = Epoch(1, 0.0, train_loss, train_accuracy, val_loss, val_accuracy, seconds)
    if on_epoch is not None:
        on_epoch(epoch)
    notes = [] if converged else [f"logistic regression did not converge in {config.max_iterations} iterations"]
    return [epoch], 1, notes


def _probabilities(head: SequenceClassifier, table: FeatureTable, rows: np.ndarray) -> np.ndarray:
    batches = padded_batches(table, EVAL_BATCH_SIZE, rows=rows, device=head.input_mean.device)
    return class_probabilities(head, batches)


def _loss_and_accuracy(head: SequenceClassifier, table: FeatureTable, rows: np.ndarray) -> tuple[float, float]:
    probabilities = _probabilities(head, table, rows)
    labels = table.labels[rows]
    true = probabilities[np.arange(len(rows)), labels]
    loss = -np.log(np.maximum(true, np.finfo(np.float64).tiny)).mean()
    return float(loss), float((probabilities.argmax(axis=1) == labels).mean())


def _val_measures(
    head: SequenceClassifier, table: FeatureTable, parts: _Parts
) -> tuple[float, float] | tuple[None, None]:
    return _loss_and_accuracy(head, table, parts.val) if len(parts.val) else (None, None)


def _accuracy(head: SequenceClassifier, table: FeatureTable, rows: np.ndarray) -> float:
    return _loss_and_accuracy(head, table, rows)[1]


def _scores(
    head: SequenceClassifier,
    table: FeatureTable,
    parts: _Parts,
    classes: tuple[str, ...],
    split: Split,
    config: TrainConfig,
) -> Scores:
    rows = np.concatenate([parts.val, parts.test])
    return Scores(
        video_ids=tuple(table.video_ids[row] for row in rows),
        labels=tuple(classes[table.labels[row]] for row in rows),
        classes=classes,
        probabilities=_probabilities(head, table, rows),
        part=("val",) * len(parts.val) + ("test",) * len(parts.test),
        fold=(split.index,) * len(rows),
        seed=(config.seed,) * len(rows),
    )
