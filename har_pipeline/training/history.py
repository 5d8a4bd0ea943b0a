"""Training curves as TensorBoard event files, where asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from har_pipeline.core.errors import RunError

CURVES = ("learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


@contextlib.contextmanager
def epoch_writer(folder: Path | None, on_epoch: OnEpoch | None) -> Iterator[OnEpoch | None]:
    """Give a function to be called with each epoch: it writes into `folder`, if one is given, then calls `on_epoch`.

    Raises: RunError if a folder is given and TensorBoard is not installed.
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
            if on_epoch is not None:
                on_epoch(epoch)

        yield report


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of history.csv. Losses are mean cross-entropies in nats, accuracies video accuracies in [0, 1].

    The training numbers are means over the epoch's batches while the weights moved and with all that training adds
    (dropout, jitter, smoothing, weights of classes), as Keras prints them; the validation numbers are plain and come from
    the weights after the epoch, None without validation videos. learning_rate: at the epoch's first step.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


OnEpoch = Callable[[Epoch], None]
