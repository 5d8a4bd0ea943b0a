"""The progress of a training job on stderr: a live table in a terminal, a line for each run otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from har_pipeline.cli.common import note

if TYPE_CHECKING:
    from rich.table import Table

    from har_pipeline.training.history import Epoch
    from har_pipeline.training.jobs import Job, Outcome

SHOWN_AT_MOST = 25


@dataclass(slots=True)
class _Row:
    state: str = "waits"
    epoch: str = ""
    train: str = ""
    val: str = ""
    test: str = ""
    seconds: float = 0.0


def describe(outcome: Outcome) -> str:
    """Return one line on a finished run."""
    summary = outcome.summary
    return (
        f"test video accuracy {summary.test_accuracy:.1%} on {summary.num_test} videos "
        f"({summary.num_train} train, {summary.num_val} val), {summary.seconds:.1f} s"
    )


@contextmanager
def training_table(
    jobs: Sequence[Job], epochs: int, *, live: bool | None = None
) -> Iterator[tuple[Callable[[Job, Epoch], None], Callable[[Outcome], None]]]:
    """Give the functions to call with each epoch and each finished run. live: None = if stderr is a terminal."""
    if not (sys.stderr.isatty() if live is None else live):
        yield _lines(jobs)
        return
    from rich.console import Console
    from rich.live import Live

    rows = {job: _Row() for job in jobs}
    with Live(_table(rows), console=Console(stderr=True), refresh_per_second=4) as view:

        def on_epoch(job: Job, epoch: Epoch) -> None:
            row = rows[job]
            row.state, row.epoch = "trains", f"{epoch.epoch}/{epochs}"
            row.train = f"{epoch.train_accuracy:.1%}"
            row.val = "" if epoch.val_accuracy is None else f"{epoch.val_accuracy:.1%}"
            row.seconds += epoch.seconds
            view.update(_table(rows))

        def on_done(outcome: Outcome) -> None:
            summary, row = outcome.summary, rows[outcome.job]
            row.state, row.epoch = "kept" if outcome.kept else "done", f"{summary.best_epoch}/{summary.epochs}"
            row.train, row.test = f"{summary.train_accuracy:.1%}", f"{summary.test_accuracy:.1%}"
            row.val = "" if summary.val_accuracy is None else f"{summary.val_accuracy:.1%}"
            row.seconds = summary.seconds
            view.update(_table(rows))

        yield on_epoch, on_done


def _lines(jobs: Sequence[Job]) -> tuple[Callable[[Job, Epoch], None], Callable[[Outcome], None]]:
    done = 0

    def on_done(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if outcome.kept:
            note(f"{outcome.job.folder}: already trained, kept (--overwrite trains it again)")
        elif len(jobs) > 1:
            job = outcome.job
            note(f"[{done}/{len(jobs)}] split {job.split.index}, seed {job.seed}: {describe(outcome)}")

    return lambda job, epoch: None, on_done


def _table(rows: dict[Job, _Row]) -> Table:
    from rich.table import Table

    table = Table()
    for name in ("split", "seed", "state", "epoch", "train", "val", "test", "seconds"):
        table.add_column(name, justify="right")
    items = list(rows.items())
    busy = next((i for i, (_, row) in enumerate(items) if row.state in ("waits", "trains")), len(items) - 1)
    # A terminal shows so many lines only: those around the run that is trained now.
    first = max(0, min(busy - SHOWN_AT_MOST // 2, len(items) - SHOWN_AT_MOST))
    for job, row in items[first : first + SHOWN_AT_MOST]:
        cells = (row.state, row.epoch, row.train, row.val, row.test, f"{row.seconds:.1f}" if row.seconds else "")
        table.add_row(str(job.split.index), str(job.seed), *cells)
    finished = sum(row.state in ("done", "kept") for row in rows.values())
    table.caption = f"{finished} of {len(rows)} runs finished"
    return table
