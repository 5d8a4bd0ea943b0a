"""The progress of training on raw video: a bar in a terminal, a line an epoch otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from har_pipeline.cli.common import note
from har_pipeline.cli.train_table import describe

if TYPE_CHECKING:
    from rich.progress import Progress

    from har_pipeline.training.history import Epoch
    from har_pipeline.training.jobs import Job, Outcome
    from har_pipeline.training.networks.fit import BatchProgress

OnEpoch = Callable[["Job", "Epoch"], None]
OnBatch = Callable[["Job", "BatchProgress"], None]
OnDone = Callable[["Outcome"], None]


@contextmanager
def training_bar(
    jobs: Sequence[Job], epochs: int, *, silent: bool = False
) -> Iterator[tuple[OnEpoch, OnBatch, OnDone]]:
    """Give the functions to call with each epoch, batch and finished run.

    The bar shows batches, loss, accuracy, learning rate and the time left of a run; each epoch leaves a line.
    """

    def name_of(job: Job) -> str:
        return f"split {job.split.index}, seed {job.seed}, " if len(jobs) > 1 else ""

    with _bar("{task.fields[state]}", silent=silent) as bar:
        task = bar.add_task("train", total=None, state="")

        def on_epoch(job: Job, epoch: Epoch) -> None:
            if silent:
                return
            val = "" if epoch.val_accuracy is None else f"; validation {epoch.val_loss:.3f}, {epoch.val_accuracy:.1%}"
            text = (
                f"{name_of(job)}epoch {epoch.epoch}/{epochs}: loss {epoch.train_loss:.3f}, {epoch.train_accuracy:.1%}{val}"
                f"; rate {epoch.learning_rate:.1e}; {epoch.seconds:.1f} s"
            )
            bar.console.print(text, highlight=False, soft_wrap=True)

        def on_batch(job: Job, now: BatchProgress) -> None:
            state = f"loss {now.loss:.3f}, {now.accuracy:.1%}, rate {now.learning_rate:.1e}"
            bar.update(
                task,
                description=f"{name_of(job)}epoch {now.epoch}/{now.epochs}",
                completed=(now.epoch - 1) * now.batches + now.batch,
                total=now.epochs * now.batches,
                state=state,
            )

        def on_done(outcome: Outcome) -> None:
            if silent:
                return
            if outcome.kept:
                note(f"{outcome.job.folder}: already trained, kept (--overwrite trains it again)")
            elif len(jobs) > 1:
                note(f"{name_of(outcome.job)}{describe(outcome)}")
            bar.reset(task, total=None, state="")

        yield on_epoch, on_batch, on_done


@contextmanager
def step_bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """Give the function to call with the updates done and their last loss."""
    with _bar("loss {task.fields[loss]:.3f}") as bar:
        task = bar.add_task("range test", total=steps, loss=float("nan"))
        yield lambda step, loss: bar.update(task, completed=step, loss=loss)


def _bar(text: str, *, silent: bool = False) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(text),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=silent or not sys.stderr.isatty(),
    )
