"""Progress on stderr: bars and tables in a terminal, a line for each run otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from har_pipeline.cli.output import describe, note
from har_pipeline.core.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.table import Table
    from rich.text import Text

    from har_pipeline.features.engine import Progress
    from har_pipeline.training.history import Epoch
    from har_pipeline.training.jobs import Outcome, PlannedRun
    from har_pipeline.training.networks.fit import BatchProgress
    from har_pipeline.training.sweep import Point

SHOWN_AT_MOST = 25
OnEpoch = Callable[["PlannedRun", "Epoch"], None]
OnBatch = Callable[["PlannedRun", "BatchProgress"], None]
OnDone = Callable[["Outcome"], None]


def _bar(unit: str, *, silent: bool = False) -> Bar:
    """Return a bar whose tasks have a description, a count of `unit`, times, and a `text` of their own at the end."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        disable=silent or not sys.stderr.isatty(),
    )


@contextmanager
def video_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Give the function to call with a stage of the job, the videos it has done and their total."""
    with _bar("videos") as bar:
        task = bar.add_task("", total=None, text="")
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)


@contextmanager
def extraction_bar() -> Iterator[Callable[[Progress], None]]:
    """Give the function to call with an extraction's progress."""
    with _bar("videos") as bar:
        task = bar.add_task("extract", total=None, text="")

        def update(now: Progress) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = now.done / elapsed if elapsed else 0.0
            text = f"{rate:.2f} videos/s, {now.failed} failed, bound by {now.bound_by}"
            bar.update(task, total=now.total, completed=now.already + now.done + now.failed, text=text)

        yield update


@contextmanager
def step_bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """Give the function to call with the batches done and the last one's loss."""
    with _bar("batches") as bar:
        task = bar.add_task("range test", total=steps, text="")
        yield lambda step, loss: bar.update(task, completed=step, text=f"loss {loss:.3f}")


@contextmanager
def training_bar(
    jobs: Sequence[PlannedRun], epochs: int, *, silent: bool = False
) -> Iterator[tuple[OnEpoch, OnBatch, OnDone]]:
    """Give the functions to call with each epoch, which leaves a line, each batch and each finished run."""

    def name_of(job: PlannedRun) -> str:
        return f"split {job.split.index}, seed {job.seed}, " if len(jobs) > 1 else ""

    with _bar("batches", silent=silent) as bar:
        task = bar.add_task("train", total=None, text="")

        def on_epoch(job: PlannedRun, epoch: Epoch) -> None:
            if silent:
                return
            val = "" if epoch.val_accuracy is None else f"; validation {epoch.val_loss:.3f}, {epoch.val_accuracy:.1%}"
            text = (
                f"{name_of(job)}epoch {epoch.epoch}/{epochs}: loss {epoch.train_loss:.3f}, {epoch.train_accuracy:.1%}{val}"
                f"; rate {epoch.learning_rate:.1e}; {epoch.seconds:.1f} s"
            )
            bar.console.print(text, highlight=False, soft_wrap=True, markup=False)

        def on_batch(job: PlannedRun, now: BatchProgress) -> None:
            bar.update(
                task,
                description=f"{name_of(job)}epoch {now.epoch}/{now.epochs}",
                completed=(now.epoch - 1) * now.batches + now.batch,
                total=now.epochs * now.batches,
                text=f"loss {now.loss:.3f}, {now.accuracy:.1%}, rate {now.learning_rate:.1e}",
            )

        def on_done(outcome: Outcome) -> None:
            if silent:
                return
            if outcome.kept:
                _note_kept(outcome)
            elif len(jobs) > 1:
                note(f"{name_of(outcome.run)}{describe(outcome)}")
            bar.reset(task, total=None, text="")

        yield on_epoch, on_batch, on_done


def _note_kept(outcome: Outcome) -> None:
    note(f"{outcome.run.folder}: already trained, kept (--overwrite trains it again)")


@dataclass(slots=True)
class _Row:
    state: str = "waiting"
    epoch: str = ""
    train: str = ""
    val: str = ""
    test: str = ""
    seconds: float = 0.0


@contextmanager
def training_table(
    jobs: Sequence[PlannedRun], epochs: int, *, live: bool | None = None
) -> Iterator[tuple[OnEpoch, OnDone]]:
    """Give the functions to call with each epoch and each finished run. live: None = if stderr is a terminal."""
    if not _is_live(live):
        yield lambda job, epoch: None, _lines(jobs)
        return
    rows = {job: _Row() for job in jobs}
    with _live(lambda: _table(rows)) as refresh:

        def on_epoch(job: PlannedRun, epoch: Epoch) -> None:
            row = rows[job]
            row.state, row.epoch = "training", f"{epoch.epoch}/{epochs}"
            row.train, row.val = f"{epoch.train_accuracy:.1%}", _percent(epoch.val_accuracy)
            row.seconds += epoch.seconds
            refresh()

        def on_done(outcome: Outcome) -> None:
            summary = outcome.summary
            rows[outcome.run] = _Row(
                state="kept" if outcome.kept else "done",
                epoch=f"{summary.best_epoch}/{summary.epochs}",
                train=_percent(summary.train_accuracy),
                val=_percent(summary.val_accuracy),
                test=_percent(summary.test_accuracy),
                seconds=summary.seconds,
            )
            refresh()

        yield on_epoch, on_done


def _lines(jobs: Sequence[PlannedRun]) -> OnDone:
    done = 0

    def on_done(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if outcome.kept:
            _note_kept(outcome)
        elif len(jobs) > 1:
            job = outcome.run
            note(f"[{done}/{len(jobs)}] split {job.split.index}, seed {job.seed}: {describe(outcome)}")

    return on_done


def _table(rows: dict[PlannedRun, _Row]) -> Table:
    items = list(rows.items())
    busy = next((i for i, (_, row) in enumerate(items) if row.state in ("waiting", "training")), len(items) - 1)
    # More lines than a terminal shows: those around the run in training.
    first = max(0, min(busy - SHOWN_AT_MOST // 2, len(items) - SHOWN_AT_MOST))
    finished = sum(row.state in ("done", "kept") for row in rows.values())
    table = _new_table(
        ("split", "seed", "state", "epoch", "train", "val", "test", "seconds"),
        f"{finished} of {len(rows)} runs finished",
    )
    for job, row in items[first : first + SHOWN_AT_MOST]:
        cells = (row.state, row.epoch, row.train, row.val, row.test, f"{row.seconds:.1f}" if row.seconds else "")
        table.add_row(str(job.split.index), str(job.seed), *cells)
    return table


@contextmanager
def sweep_table(
    points: Sequence[Point], runs_each: int, *, live: bool | None = None
) -> Iterator[Callable[[Point, Sequence[Outcome]], None]]:
    """Give the function to call with a point's newly finished runs. live: None = if stderr is a terminal."""
    made: dict[Point, list[Outcome]] = {point: [] for point in points}
    of_all = len(points) * runs_each

    def finished() -> int:
        return sum(map(len, made.values()))

    if not _is_live(live):

        def tell(point: Point, outcomes: Sequence[Outcome]) -> None:
            made[point] += outcomes
            kept = sum(outcome.kept for outcome in outcomes)
            words = f"{len(outcomes) - kept} trained, {kept} kept" if kept else f"{len(outcomes)} trained"
            note(f"[{finished()}/{of_all}] {point.folder.name}: {words}, test video accuracy {_mean(outcomes)}")

        yield tell
        return

    def table() -> Table:
        names = [name for name, _ in points[0].values]
        shown = _new_table((*names, "runs", "of them kept", "test"), f"{finished()} of {of_all} runs finished")
        for point, own in made.items():
            kept = sum(outcome.kept for outcome in own)
            values = [value for _, value in point.values]
            shown.add_row(*map(_text, values), f"{len(own)}/{runs_each}", str(kept or ""), _mean(own) if own else "")
        return shown

    with _live(table) as refresh:

        def show(point: Point, outcomes: Sequence[Outcome]) -> None:
            made[point] += outcomes
            refresh()

        yield show


def _is_live(live: bool | None) -> bool:
    return sys.stderr.isatty() if live is None else live


@contextmanager
def _live(table: Callable[[], Table]) -> Iterator[Callable[[], None]]:
    """Show a table on stderr and give the function that shows it again."""
    from rich.console import Console
    from rich.live import Live

    with Live(table(), console=Console(stderr=True), refresh_per_second=4) as view:
        yield lambda: view.update(table())


def _text(value: object) -> Text:
    """Return a cell of a value of the user's: text, whatever brackets it has."""
    from rich.text import Text

    return Text(printable(str(value)))


def _new_table(names: Sequence[str], caption: str) -> Table:
    from rich.table import Table

    table = Table(caption=caption)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _mean(outcomes: Sequence[Outcome]) -> str:
    return f"{sum(outcome.summary.measured_accuracy for outcome in outcomes) / len(outcomes):.1%}"
