"""Progress on stderr: bars and tables in a terminal, a line for each run otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from har_pipeline.cli.output import note

if TYPE_CHECKING:
    from har_pipeline.features.engine import Progress

if TYPE_CHECKING:
    from rich.table import Table

    from har_pipeline.training.history import Epoch
    from har_pipeline.training.jobs import Outcome, PlannedRun

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from har_pipeline.training.history import Epoch
    from har_pipeline.training.jobs import Outcome, PlannedRun
    from har_pipeline.training.networks.fit import BatchProgress

if TYPE_CHECKING:
    from har_pipeline.training.jobs import Outcome
    from har_pipeline.training.sweep import Point


@contextmanager
def video_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show on stderr how many videos of their total each stage of a job has done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)


@contextmanager
def extraction_bar() -> Iterator[Callable[[Progress], None]]:
    """Show an extraction's progress on stderr: videos/s, time left, failures and the stage that binds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("extract"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.2f} videos/s, {task.fields[failed]} failed, bound by {task.fields[bound]}"),
    )
    with Bar(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("extract", total=None, rate=0.0, failed=0, bound="-")

        def update(progress: Progress) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            bar.update(
                task,
                total=progress.total,
                completed=progress.already + progress.done + progress.failed,
                rate=progress.done / elapsed if elapsed else 0.0,
                failed=progress.failed,
                bound=progress.bound_by,
            )

        yield update


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
    jobs: Sequence[PlannedRun], epochs: int, *, live: bool | None = None
) -> Iterator[tuple[Callable[[PlannedRun, Epoch], None], Callable[[Outcome], None]]]:
    """Give the functions to call with each epoch and each finished run. live: None = if stderr is a terminal."""
    if not (sys.stderr.isatty() if live is None else live):
        yield _lines(jobs)
        return
    from rich.console import Console
    from rich.live import Live

    rows = {job: _Row() for job in jobs}
    with Live(_table(rows), console=Console(stderr=True), refresh_per_second=4) as view:

        def on_epoch(job: PlannedRun, epoch: Epoch) -> None:
            row = rows[job]
            row.state, row.epoch = "trains", f"{epoch.epoch}/{epochs}"
            row.train = f"{epoch.train_accuracy:.1%}"
            row.val = "" if epoch.val_accuracy is None else f"{epoch.val_accuracy:.1%}"
            row.seconds += epoch.seconds
            view.update(_table(rows))

        def on_done(outcome: Outcome) -> None:
            summary, row = outcome.summary, rows[outcome.run]
            row.state, row.epoch = "kept" if outcome.kept else "done", f"{summary.best_epoch}/{summary.epochs}"
            row.train, row.test = f"{summary.train_accuracy:.1%}", f"{summary.test_accuracy:.1%}"
            row.val = "" if summary.val_accuracy is None else f"{summary.val_accuracy:.1%}"
            row.seconds = summary.seconds
            view.update(_table(rows))

        yield on_epoch, on_done


def _lines(jobs: Sequence[PlannedRun]) -> tuple[Callable[[PlannedRun, Epoch], None], Callable[[Outcome], None]]:
    done = 0

    def on_done(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if outcome.kept:
            note(f"{outcome.run.folder}: already trained, kept (--overwrite trains it again)")
        elif len(jobs) > 1:
            job = outcome.run
            note(f"[{done}/{len(jobs)}] split {job.split.index}, seed {job.seed}: {describe(outcome)}")

    return lambda job, epoch: None, on_done


def _table(rows: dict[PlannedRun, _Row]) -> Table:
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


OnEpoch = Callable[["PlannedRun", "Epoch"], None]


OnBatch = Callable[["PlannedRun", "BatchProgress"], None]


OnDone = Callable[["Outcome"], None]


@contextmanager
def training_bar(
    jobs: Sequence[PlannedRun], epochs: int, *, silent: bool = False
) -> Iterator[tuple[OnEpoch, OnBatch, OnDone]]:
    """Give the functions to call with each epoch, batch and finished run.

    The bar shows batches, loss, accuracy, learning rate and the time left of a run; each epoch leaves a line.
    """

    def name_of(job: PlannedRun) -> str:
        return f"split {job.split.index}, seed {job.seed}, " if len(jobs) > 1 else ""

    with _bar("{task.fields[state]}", silent=silent) as bar:
        task = bar.add_task("train", total=None, state="")

        def on_epoch(job: PlannedRun, epoch: Epoch) -> None:
            if silent:
                return
            val = "" if epoch.val_accuracy is None else f"; validation {epoch.val_loss:.3f}, {epoch.val_accuracy:.1%}"
            text = (
                f"{name_of(job)}epoch {epoch.epoch}/{epochs}: loss {epoch.train_loss:.3f}, {epoch.train_accuracy:.1%}{val}"
                f"; rate {epoch.learning_rate:.1e}; {epoch.seconds:.1f} s"
            )
            bar.console.print(text, highlight=False, soft_wrap=True)

        def on_batch(job: PlannedRun, now: BatchProgress) -> None:
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
                note(f"{outcome.run.folder}: already trained, kept (--overwrite trains it again)")
            elif len(jobs) > 1:
                note(f"{name_of(outcome.run)}{describe(outcome)}")
            bar.reset(task, total=None, state="")

        yield on_epoch, on_batch, on_done


@contextmanager
def step_bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """Give the function to call with the updates done and their last loss."""
    with _bar("loss {task.fields[loss]:.3f}") as bar:
        task = bar.add_task("range test", total=steps, loss=float("nan"))
        yield lambda step, loss: bar.update(task, completed=step, loss=loss)


def _bar(text: str, *, silent: bool = False) -> RichProgress:
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


@contextmanager
def sweep_table(
    points: Sequence[Point], runs_each: int, *, live: bool | None = None
) -> Iterator[Callable[[Point, Sequence[Outcome]], None]]:
    """Give the function to call with finished runs: a live table in a terminal (`live`), otherwise a line on stderr."""
    made: dict[Point, list[Outcome]] = {point: [] for point in points}
    if not (sys.stderr.isatty() if live is None else live):

        def tell(point: Point, outcomes: Sequence[Outcome]) -> None:
            made[point] += outcomes
            kept = sum(outcome.kept for outcome in outcomes)
            words = f"{len(outcomes) - kept} trained, {kept} kept" if kept else f"{len(outcomes)} trained"
            done = sum(len(own) for own in made.values())
            note(
                f"[{done}/{len(points) * runs_each}] {point.folder.name}: {words}, test video accuracy {_mean(outcomes)}"
            )

        yield tell
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def table() -> Table:
        shown = Table(caption=f"{sum(map(len, made.values()))} of {len(points) * runs_each} runs finished")
        for name in (*(name for name, _ in points[0].values), "runs", "of them kept", "test"):
            shown.add_column(name, justify="right")
        for point, own in made.items():
            kept = sum(outcome.kept for outcome in own)
            values = [str(value) for _, value in point.values]
            shown.add_row(*values, f"{len(own)}/{runs_each}", str(kept or ""), _mean(own) if own else "")
        return shown

    with Live(table(), console=Console(stderr=True), refresh_per_second=4) as view:

        def show(point: Point, outcomes: Sequence[Outcome]) -> None:
            made[point] += outcomes
            view.update(table())

        yield show


def _mean(outcomes: Sequence[Outcome]) -> str:
    return f"{sum(outcome.summary.test_accuracy for outcome in outcomes) / len(outcomes):.1%}"
