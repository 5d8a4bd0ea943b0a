"""Training curves as TensorBoard event files, where asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from har_pipeline.core.errors import RunError
from har_pipeline.fit import Epoch, OnEpoch

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
