"""Fitting a head to features in memory: by gradient descent, or by scikit-learn."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from har_pipeline.core.errors import RunError, first_few
from har_pipeline.features.table import FeatureTable, feature_statistics, take_steps
from har_pipeline.models.config import SCIKIT_HEADS
from har_pipeline.models.device import pick_device
from har_pipeline.models.heads import SequenceClassifier, build_head, fit_linear, fit_svm
from har_pipeline.training.batches import FeatureBatches, class_probabilities
from har_pipeline.training.data import Parts
from har_pipeline.training.history import Epoch, OnEpoch, loss_and_accuracy
from har_pipeline.training.options import TrainConfig


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained head."""

    head: SequenceClassifier
    # What it was trained on, where batches are made of it.
    data: FeatureBatches
    history: list[Epoch]
    # The epoch whose weights the head has, from 1.
    best_epoch: int
    # What a reader of the results must know of the fit.
    notes: list[str]


def fit_head(
    table: FeatureTable,
    parts: Parts,
    num_classes: int,
    config: TrainConfig,
    *,
    stream_dims: Sequence[int] | None = None,
    classes: Sequence[str] = (),
    units: np.ndarray | None = None,
    on_epoch: OnEpoch = lambda epoch: None,
) -> Fitted:
    """Train a new head on the training rows of a table; the validation rows decide when to stop, test rows are not read.

    stream_dims: with mid fusion the feature_dim of each stream. classes: their names, for notes. units: see
    `TrainingData`; None: each video is one. torch's global random state is restored.
    Raises: RunError if the device is absent, the streams cannot be joined, or the loss becomes NaN.
    """
    device, whole = pick_device(config.device), table
    table = take_steps(whole, config.num_steps)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        head = build_head(config.head_config, stream_dims or [table.feature_dim], num_classes)
        if config.scales_features:
            joined = feature_statistics(table, parts.train, lambda clips: head.joined(torch.from_numpy(clips)).numpy())
            head.set_input_scaling(*joined)
        head.to(device)
        data = FeatureBatches(table, device)
        if config.head in SCIKIT_HEADS:
            return Fitted(head, data, *_fit_scikit(head, data, table.labels, parts, config, on_epoch, classes, units))
        # The steps of a sub-video are taken when it is drawn.
        seen = FeatureBatches(whole, device) if config.temporal_crop else data
        return Fitted(head, data, *_fit_by_gradient(head, seen, data, table.labels, parts, config, on_epoch))


def _optimizer(head: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = head.parameters()
    if config.optimizer == "rmsprop":
        # Keras's rho and epsilon, as the paper used Keras; torch's own are 0.99 and 1e-8.
        return torch.optim.RMSprop(parameters, lr=config.learning_rate, alpha=0.9, eps=1e-7)
    if config.optimizer in ("adam", "adamw"):
        # The decay is decoupled for every optimizer, see `_step`.
        return torch.optim.Adam(parameters, lr=config.learning_rate)
    return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=0.9)


def learning_rate(config: TrainConfig, done: float, drops: int = 0) -> float:
    """Return the learning rate after `done` epochs (may be fractional); drops: plateaus met so far."""
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done / config.epochs))
    if config.schedule == "step":
        return config.learning_rate * config.schedule_factor ** (int(done) // config.schedule_epochs)
    return config.learning_rate * config.schedule_factor**drops


def _fit_by_gradient(
    head: SequenceClassifier,
    seen: FeatureBatches,
    data: FeatureBatches,
    labels: np.ndarray,
    parts: Parts,
    config: TrainConfig,
    on_epoch: OnEpoch,
) -> tuple[list[Epoch], int, list[str]]:
    """Train `head` in place on `seen`, with validation on `data`; returns history, the epoch of its weights, and notes."""
    optimizer = _optimizer(head, config)
    generator = torch.Generator().manual_seed(config.seed)
    weights = _class_weights(head, labels[parts.train], config)
    averaged = AveragedModel(head) if config.average_last else None
    history: list[Epoch] = []
    best_epoch, best_loss, best_weights = 0, float("inf"), head.state_dict()
    drops = since = 0
    for number in range(1, config.epochs + 1):
        start = time.perf_counter()
        rate = learning_rate(config, number - 1, drops)
        train_loss, train_accuracy = train_epoch(
            head, optimizer, seen, parts.train, config, generator, number - 1, drops, weights
        )
        if not np.isfinite(train_loss):
            raise RunError(f"the loss became {train_loss} in epoch {number}; lower --learning-rate, or standardise")
        if averaged is not None and number > config.epochs - max(1, round(config.average_last * config.epochs)):
            averaged.update_parameters(head)
        val_loss, val_accuracy = val_measures(head, data, labels, parts.val)
        seconds = round(time.perf_counter() - start, 3)
        history.append(Epoch(number, rate, train_loss, train_accuracy, val_loss, val_accuracy, seconds))
        on_epoch(history[-1])
        if val_loss is None or not config.needs_validation:
            continue
        if val_loss < best_loss:
            best_epoch, best_loss, since = number, val_loss, 0
            if config.patience is not None:
                best_weights = copy.deepcopy(head.state_dict())
            continue
        since += 1
        if config.schedule == "plateau" and since % config.schedule_epochs == 0:
            drops += 1
        if config.patience is not None and number - best_epoch >= config.patience:
            break
    if averaged is not None:
        head.load_state_dict(averaged.module.state_dict())
    if config.patience is None or not best_epoch:
        return history, len(history), []
    head.load_state_dict(best_weights)
    return history, best_epoch, []


def _class_weights(head: SequenceClassifier, labels: np.ndarray, config: TrainConfig) -> torch.Tensor | None:
    if config.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=head.classifier.out_features)
    weights = len(labels) / (len(counts) * np.maximum(counts, 1))
    return torch.from_numpy(weights).to(head.input_mean)


def classification_loss(
    log_probabilities: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean cross-entropy of (B, K) log probabilities, weighted by the class weights (K,) of the labels.

    smoothing: share of each target that is spread evenly over the K classes.
    """
    if not smoothing:
        return nn.functional.nll_loss(log_probabilities, labels, weights)
    losses = -(1 - smoothing) * log_probabilities.gather(1, labels[:, None])[:, 0]
    losses = losses - smoothing * log_probabilities.mean(dim=1)
    if weights is None:
        return losses.mean()
    return (weights[labels] * losses).sum() / weights[labels].sum()


def train_epoch(
    head: SequenceClassifier,
    optimizer: torch.optim.Optimizer,
    data: FeatureBatches,
    rows: np.ndarray,
    config: TrainConfig,
    generator: torch.Generator,
    epochs_done: int = 0,
    drops: int = 0,
    weights: torch.Tensor | None = None,
) -> tuple[float, float]:
    """Train for one epoch on the videos `rows`; returns mean loss and accuracy while the weights changed."""
    head.train()
    total_loss = torch.zeros((), device=data.device)
    correct = torch.zeros((), dtype=torch.int64, device=data.device)
    steps = math.ceil(len(rows) / config.batch_size)
    batches = data.batches(
        config.batch_size,
        rows=rows,
        generator=generator,
        jitter=config.temporal_jitter,
        crop=config.temporal_crop,
        num_steps=config.num_steps,
    )
    for step, batch in enumerate(batches):
        rate = learning_rate(config, epochs_done + step / steps, drops)
        with torch.autocast(data.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            log_probabilities = head(batch.features, batch.lengths)
        loss = classification_loss(log_probabilities, batch.labels, config.label_smoothing, weights)
        optimizer.zero_grad()
        loss.backward()
        _step(head, optimizer, rate, config)
        total_loss += loss.detach() * len(batch.labels)
        correct += (log_probabilities.detach().argmax(dim=1) == batch.labels).sum()
    return float(total_loss) / len(rows), int(correct) / len(rows)


def _step(head: nn.Module, optimizer: torch.optim.Optimizer, rate: float, config: TrainConfig) -> None:
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(head.parameters(), config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    if config.weight_decay:
        with torch.no_grad():
            for parameter in head.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(1 - rate * config.weight_decay)
    optimizer.step()


def _fit_scikit(
    head: SequenceClassifier,
    data: FeatureBatches,
    labels: np.ndarray,
    parts: Parts,
    config: TrainConfig,
    on_epoch: OnEpoch,
    classes: Sequence[str],
    units: np.ndarray | None,
) -> tuple[list[Epoch], int, list[str]]:
    """Put scikit-learn's solution into the dense layer of a head on the mean over time; the history has one row."""
    start = time.perf_counter()
    head.eval()
    pooled = np.empty((len(parts.train), head.classifier.in_features), np.float32)
    with torch.inference_mode():
        done = 0
        for batch in data.batches(data.scored_at_once, rows=parts.train):
            encoded = head.encode(batch.features, batch.lengths).cpu().numpy()
            pooled[done : done + len(encoded)] = encoded
            done += len(encoded)
    own, count, balanced = labels[parts.train], head.classifier.out_features, config.class_weights == "balanced"
    notes = []
    if config.head == "svm":
        weights, biases, converged, told = fit_svm(
            pooled,
            own,
            None if units is None else units[parts.train],
            num_classes=count,
            c=config.logistic_c,
            max_iterations=config.max_iterations,
            balanced=balanced,
            seed=config.seed,
        )
        notes += _uncalibrated(told, classes)
    else:
        weights, biases, converged = fit_linear(
            pooled,
            own,
            num_classes=count,
            kind="ridge" if config.head == "ridge" else "logistic",
            c=config.logistic_c,
            max_iterations=config.max_iterations,
            balanced=balanced,
            seed=config.seed,
        )
    with torch.no_grad():
        head.classifier.weight.copy_(torch.from_numpy(weights))
        head.classifier.bias.copy_(torch.from_numpy(biases))
    train_loss, train_accuracy = loss_and_accuracy(probabilities_of(head, data, parts.train), labels[parts.train])
    val_loss, val_accuracy = val_measures(head, data, labels, parts.val)
    seconds = round(time.perf_counter() - start, 3)
    epoch = Epoch(1, 0.0, train_loss, train_accuracy, val_loss, val_accuracy, seconds)
    on_epoch(epoch)
    notes += [] if converged else [f"{config.head} did not converge in {config.max_iterations} iterations"]
    return [epoch], 1, notes


def _uncalibrated(told: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return a note if decision values of a class could not be held out, see `fit_svm`."""
    if told.all():
        return []
    why = "training videos of a single subject, group or file cannot be held out"
    if not told.any():
        return [f"the svm's probabilities are not calibrated: {why}"]
    names = [classes[k] if classes else f"number {k}" for k in np.flatnonzero(~told).tolist()]
    return [f"the svm's probabilities of {first_few(names)} are calibrated by the other classes alone: {why}"]


def probabilities_of(head: SequenceClassifier, data: FeatureBatches, rows: np.ndarray) -> np.ndarray:
    """Return (len(rows), K) float64 class probabilities."""
    return class_probabilities(head, data.batches(data.scored_at_once, rows=rows), len(rows))


def val_measures(
    head: SequenceClassifier, data: FeatureBatches, labels: np.ndarray, rows: np.ndarray
) -> tuple[float, float] | tuple[None, None]:
    """Return the loss and accuracy of the validation videos `rows`, if there are any."""
    return loss_and_accuracy(probabilities_of(head, data, rows), labels[rows]) if len(rows) else (None, None)
