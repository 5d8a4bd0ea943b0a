"""Progress on stderr: bars and tables in a terminal, elsewhere a line now and then, never none for more than half a minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from har_pipeline.cli.output import note
from har_pipeline.core.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from har_pipeline.features.job import Progress
    from har_pipeline.training.history import Epoch
    from har_pipeline.training.jobs import Outcome, PlannedRun
    from har_pipeline.training.networks.fit import BatchProgress
    from har_pipeline.training.sweep import Point

SHOWN_AT_MOST = 25
# A job that takes no longer says nothing; then a line comes at least so often, with room for a late thread.
QUIET_S, EVERY_S = 5.0, 25.0
OnEpoch = Callable[["PlannedRun", "Epoch"], None]
OnBatch = Callable[["PlannedRun", "BatchProgress"], None]
OnDone = Callable[["Outcome"], None]


class Update(Protocol):
    """Tells how far a stage of a job is."""

    def __call__(
        self, stage: str, done: float, total: int | None, text: str = "", already: float | None = None
    ) -> None:
        """Take the items done of a stage, a part of one counting as a fraction, and their total, None if unknown.

        text: what else there is to say. already: those that were done before, and say nothing of the speed; None: those
        of the stage's first call.
        """


class Pace:
    """How far a job is, how fast it goes, and how long its stage will take."""

    def __init__(self, unit: str, stage: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.unit, self.clock = unit, clock
        self._begin(stage)

    def _begin(self, stage: str) -> None:
        self.stage, self.began = stage, self.clock()
        self.done = 0.0
        self.already: float | None = None  # not known before the first call
        self.total: int | None = None
        self.text = ""

    def update(self, stage: str, done: float, total: int | None, text: str = "", already: float | None = None) -> None:
        """Take what `Update` says."""
        if stage != self.stage:
            self._begin(stage)
        if already is not None:
            self.already = already
        elif self.already is None:
            self.already, self.began = done, self.clock()
        self.done, self.total, self.text = done, total, text

    def speed(self) -> str:
        """Return the items per time and the time left, as far as they are known: `2.1/s, 17 s left`."""
        elapsed, gained = self.clock() - self.began, self.done - (self.already or 0)
        if gained <= 0 or elapsed <= 0 or (self.total is not None and self.done >= self.total):
            return f"{duration(elapsed)} so far" if elapsed >= 1 else ""
        rate = gained / elapsed
        if self.total is None:
            return _per_time(rate)
        return f"{_per_time(rate)}, {duration((self.total - self.done) / rate)} left"

    def line(self) -> str:
        """Return a line on the stage: `render: 12 of 48 videos, 2.1/s, 17 s left`."""
        of_all = "" if self.total is None else f" of {self.total:,}"
        count = "" if self.already is None else f"{int(self.done):,}{of_all} {self.unit}"
        return f"{self.stage}: {', '.join(filter(None, (count, self.speed(), self.text)))}"


def duration(seconds: float) -> str:
    """Return a time in words that are as exact as people need: `17 s`, `4 min`, `2 h 10 min`, `3 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60 / 24:.0f} days"


def _per_time(rate: float) -> str:
    for seconds, word in ((1, "s"), (60, "min")):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f}/{word}"
    return f"{rate * 3600:.1f}/h"


class Lines:
    """Says how far a job is where there is no terminal: after `QUIET_S`, when a stage begins, and every `EVERY_S`."""

    def __init__(self, pace: Pace, write: Callable[[str], None] = note) -> None:
        self.pace, self.write = pace, write
        self._began = pace.clock()
        self._said: tuple[float, str] | None = None  # when, and of which stage
        self._lock = threading.Lock()

    def update(self, stage: str, done: float, total: int | None, text: str = "", already: float | None = None) -> None:
        """Take what `Update` says."""
        self.pace.update(stage, done, total, text, already)
        self.tick()

    def tick(self) -> None:
        """Write a line if one is due."""
        with self._lock:
            now, stage = self.pace.clock(), self.pace.stage
            if self._said is None:
                due = now - self._began >= QUIET_S
            else:
                silent = now - self._said[0]
                due = silent >= EVERY_S or (stage != self._said[1] and silent >= QUIET_S)
            if due:
                self._said = (now, stage)
                self.write(self.pace.line())

    def say(self, text: str) -> None:
        """Write a line of the caller's, after which the next one can wait."""
        with self._lock:
            self._said = (self.pace.clock(), self.pace.stage)
            self.write(text)

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Write lines in this context while nobody calls, too."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(1.0):
                self.tick()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def progress_bar(unit: str, stage: str, *, silent: bool = False) -> Iterator[tuple[Update, Callable[[str], None]]]:
    """Give the function to call with the progress of a job's stages, and one that prints a line above the bar.

    unit: what is counted; stage: the first one's name. silent: neither shows anything.
    """
    pace = Pace(unit, stage)
    if silent:
        yield pace.update, lambda text: None
        return
    console = _terminal()
    if console is None:
        lines = Lines(pace)
        with lines.ticking():
            yield lines.update, lines.say
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=console,
        redirect_stdout=sys.stdout.isatty(),  # else results would go to stderr
    ) as bar:
        task = bar.add_task(stage, total=None, text="")

        def update(stage: str, done: float, total: int | None, text: str = "", already: float | None = None) -> None:
            if stage != pace.stage:
                bar.reset(task)
            pace.update(stage, done, total, text, already)
            shown = printable(", ".join(filter(None, (pace.speed(), text))))
            bar.update(task, description=stage, completed=done, total=total, text=shown)

        yield update, lambda text: bar.console.print(printable(text), highlight=False, soft_wrap=True, markup=False)


@contextmanager
def told_while_waiting(what: str) -> Iterator[None]:
    """Say that something goes on which tells nothing of its progress, such as a download; in a terminal that is seen."""
    if _terminal() is not None:
        yield
        return
    with Lines(Pace("", what)).ticking():
        yield


@contextmanager
def video_bar(unit: str = "videos") -> Iterator[Callable[[str, int, int | None], None]]:
    """Give the function to call with a stage of the job, the videos (or others of the unit) it has done and their total."""
    with progress_bar(unit, "start") as (update, _):
        yield update


@contextmanager
def extraction_bar() -> Iterator[Callable[[Progress], None]]:
    """Give the function to call with an extraction's progress."""
    with progress_bar("videos", "extract") as (update, _):

        def tell(now: Progress) -> None:
            finished = now.already + now.done + now.failed
            text = f"{now.failed} failed, bound by {now.bound_by}"
            update("extract", finished, now.total, f"{now.clips:,} clips, {text}" if now.clips else text, now.already)

        yield tell


@contextmanager
def step_bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """Give the function to call with the batches done and the last one's loss."""
    with progress_bar("batches", "range test") as (update, _):
        update("range test", 0, steps)
        yield lambda step, loss: update("range test", step, steps, f"loss {loss:.3f}")


@contextmanager
def training_bar(
    jobs: Sequence[PlannedRun], epochs: int, report: OnDone, *, silent: bool = False
) -> Iterator[tuple[OnEpoch, OnBatch, OnDone]]:
    """Give the functions to call with each epoch, which leaves a line, each batch and each finished run.

    report: called with each finished run, to print its result. silent: nothing is shown, nor reported.
    """
    several = len(jobs) > 1
    finished = kept = 0

    def name_of(job: PlannedRun) -> str:
        return f"split {job.split.index}, seed {job.seed}, " if several else ""

    with progress_bar("runs" if several else "batches", "train", silent=silent) as (update, say):

        def on_epoch(job: PlannedRun, epoch: Epoch) -> None:
            val = "" if epoch.val_accuracy is None else f"; validation {epoch.val_loss:.3f}, {epoch.val_accuracy:.1%}"
            say(
                f"{name_of(job)}epoch {epoch.epoch}/{epochs}: loss {epoch.train_loss:.3f}, {epoch.train_accuracy:.1%}{val}"
                f"; rate {epoch.learning_rate:.1e}; {epoch.seconds:.1f} s"
            )

        def on_batch(job: PlannedRun, now: BatchProgress) -> None:
            done, of_all = (now.epoch - 1) * now.batches + now.batch, now.epochs * now.batches
            where = f"{name_of(job)}epoch {now.epoch}/{now.epochs}"
            text = f"{where}: loss {now.loss:.3f}, {now.accuracy:.1%}, rate {now.learning_rate:.1e}"
            if several:
                update("train", finished + done / of_all, len(jobs), text, kept)
            else:
                update("train", done, of_all, text)

        def on_done(outcome: Outcome) -> None:
            nonlocal finished, kept
            finished += 1
            kept += outcome.kept
            if several:
                update("train", finished, len(jobs), "", kept)
            if not silent:
                report(outcome)

        yield on_epoch, on_batch, on_done


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
    jobs: Sequence[PlannedRun], epochs: int, report: OnDone, *, live: bool | None = None
) -> Iterator[tuple[OnEpoch, OnDone]]:
    """Give the functions to call with each epoch and each finished run. live: None = if stderr is a terminal.

    report: called with each finished run, to print its result; once the table is gone, where there is one.
    """
    several = len(jobs) > 1
    pace = Pace("runs" if several else "epochs", "train")
    rows = {job: _Row() for job in jobs}
    outcomes: list[Outcome] = []

    def kept() -> int:
        return sum(outcome.kept for outcome in outcomes)

    def of_epoch(job: PlannedRun, epoch: Epoch) -> tuple[str, float, int, str, float]:
        where = f"split {job.split.index}, seed {job.seed}, epoch {epoch.epoch}/{epochs}"
        text = f"{where if several else ''}{', ' * several}loss {epoch.train_loss:.3f}, {epoch.train_accuracy:.1%}"
        if several:
            return "train", len(outcomes) + min(epoch.epoch / epochs, 1), len(jobs), text, kept()
        return "train", epoch.epoch, epochs, text, 0

    def of_run() -> tuple[str, float, int, str, float]:
        return "train", len(outcomes), len(jobs), "", kept()

    if not _is_live(live):
        lines = Lines(pace)

        def finish(outcome: Outcome) -> None:
            outcomes.append(outcome)
            report(outcome)
            if several:
                lines.update(*of_run())

        with lines.ticking():
            yield lambda job, epoch: lines.update(*of_epoch(job, epoch)), finish
        return
    try:
        with _live(lambda: _table(rows, pace)) as refresh:

            def on_epoch(job: PlannedRun, epoch: Epoch) -> None:
                row = rows[job]
                row.state, row.epoch = "training", f"{epoch.epoch}/{epochs}"
                row.train, row.val = f"{epoch.train_accuracy:.1%}", _percent(epoch.val_accuracy)
                row.seconds += epoch.seconds
                pace.update(*of_epoch(job, epoch))
                refresh()

            def on_done(outcome: Outcome) -> None:
                outcomes.append(outcome)
                summary = outcome.summary
                rows[outcome.run] = _Row(
                    state="kept" if outcome.kept else "done",
                    epoch=f"{summary.best_epoch}/{summary.epochs}",
                    train=_percent(summary.train_accuracy),
                    val=_percent(summary.val_accuracy),
                    test=_percent(summary.test_accuracy),
                    seconds=summary.seconds,
                )
                if several:
                    pace.update(*of_run())
                refresh()

            yield on_epoch, on_done
    finally:
        for outcome in outcomes:
            report(outcome)


def _table(rows: dict[PlannedRun, _Row], pace: Pace) -> Table:
    items = list(rows.items())
    busy = next((i for i, (_, row) in enumerate(items) if row.state in ("waiting", "training")), len(items) - 1)
    # More lines than a terminal shows: those around the run in training.
    first = max(0, min(busy - SHOWN_AT_MOST // 2, len(items) - SHOWN_AT_MOST))
    finished = sum(row.state in ("done", "kept") for row in rows.values())
    counted = f"{finished} of {len(rows)} runs finished"
    if len(rows) == 1 and pace.total is not None:
        counted = f"{pace.done:.0f} of {pace.total:,} epochs"
    table = _new_table(
        ("split", "seed", "state", "epoch", "train", "val", "test", "seconds"),
        ", ".join(filter(None, (counted, pace.speed()))),
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
    pace = Pace("runs", "sweep")

    def add(point: Point, outcomes: Sequence[Outcome]) -> tuple[str, float, int, str, float]:
        made[point] += outcomes
        kept = sum(outcome.kept for own in made.values() for outcome in own)
        return "sweep", sum(map(len, made.values())), of_all, "", kept

    if not _is_live(live):
        lines = Lines(pace)

        def tell(point: Point, outcomes: Sequence[Outcome]) -> None:
            pace.update(*add(point, outcomes))
            kept = sum(outcome.kept for outcome in outcomes)
            words = f"{len(outcomes) - kept} trained, {kept} kept" if kept else f"{len(outcomes)} trained"
            lines.say(
                f"[{pace.done:.0f}/{of_all}] {point.folder.name}: {words}, test video accuracy {_mean(outcomes)}"
                f"{'; ' * bool(pace.speed())}{pace.speed()}"
            )

        with lines.ticking():
            yield tell
        return

    def table() -> Table:
        names = [name for name, _ in points[0].values]
        caption = ", ".join(filter(None, (f"{pace.done:.0f} of {of_all} runs finished", pace.speed())))
        shown = _new_table((*names, "runs", "of them kept", "test"), caption)
        for point, own in made.items():
            kept = sum(outcome.kept for outcome in own)
            values = [value for _, value in point.values]
            shown.add_row(*map(_text, values), f"{len(own)}/{runs_each}", str(kept or ""), _mean(own) if own else "")
        return shown

    with _live(table) as refresh:

        def show(point: Point, outcomes: Sequence[Outcome]) -> None:
            pace.update(*add(point, outcomes))
            refresh()

        yield show


def _terminal() -> Console | None:
    """Return the console of stderr, None if that is no terminal, or one that cannot move its cursor."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return None if console.is_dumb_terminal else console


def _is_live(live: bool | None) -> bool:
    return _terminal() is not None if live is None else live


@contextmanager
def _live(table: Callable[[], Table]) -> Iterator[Callable[[], None]]:
    """Show a table on stderr, until the end of the context, and give the function that shows it again."""
    from rich.console import Console
    from rich.live import Live

    with Live(
        get_renderable=table,
        console=Console(stderr=True),
        refresh_per_second=4,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as view:
        yield view.refresh


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
