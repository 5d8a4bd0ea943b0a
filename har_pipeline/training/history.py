"""The epochs of a training, their measures, and their TensorBoard event files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import RunError


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of history.csv. Losses are mean cross-entropies in nats, accuracies video accuracies in [0, 1].

    Training numbers are means over the epoch's batches while the weights changed, with all that training adds (dropout,
    jitter, smoothing, class weights), as in Keras. Validation numbers are plain and come from the weights after the epoch;
    None without validation videos.
    """

    epoch: int  # from 1
    learning_rate: float  # at the epoch's first step
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


OnEpoch = Callable[[Epoch], None]


def loss_and_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the accuracy of (n, K) probabilities; labels: (n,) class numbers."""
    true = probabilities[np.arange(len(labels)), labels]
    loss = -np.log(np.maximum(true, np.finfo(np.float64).tiny)).mean()
    return float(loss), float((probabilities.argmax(axis=1) == labels).mean())


CURVES = ("learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


@contextlib.contextmanager
def epoch_writer(folder: Path | None, on_epoch: OnEpoch) -> Iterator[OnEpoch]:
    """Give a function to call with each epoch: it writes TensorBoard event files, then calls `on_epoch`.

    folder: for the event files, None = no files. Raises: RunError if TensorBoard is needed and not installed.
    """
    if folder is None:
        yield on_epoch
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError("--tensorboard needs the package: pip install 'har-pipeline[tensorboard]'") from error

    with contextlib.closing(SummaryWriter(str(folder))) as writer:

        def report(epoch: Epoch) -> None:
            for name in CURVES:
                if (value := getattr(epoch, name)) is not None:
                    writer.add_scalar(name, value, epoch.epoch)
            writer.flush()
            on_epoch(epoch)

        yield report
