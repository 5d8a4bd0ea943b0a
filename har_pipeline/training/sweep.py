"""Sweeps: training runs over values of options, over splits and seeds, in worker processes.

Each run is a run folder of `jobs.run_jobs`, in a folder named after the values. Finished runs are kept, so the same
command resumes an interrupted sweep. Workers share the threads; a run is bit-equal to any other with as many threads.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from har_pipeline.core.errors import ExtractionError, HarError, RunError, UsageError
from har_pipeline.core.processes import num_cores, working_on
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.evaluation.run_folder import FROM_PYTHON, Origin
from har_pipeline.features.reader import FeatureReader
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams, available_memory
from har_pipeline.training.axes import FEATURES, PCA, Axis, Value
from har_pipeline.training.data import split_classes
from har_pipeline.training.jobs import Outcome, PlannedRun, finished_run, plan_jobs, run_jobs
from har_pipeline.training.lock import training_lock
from har_pipeline.training.memory import planned_need, require_memory
from har_pipeline.training.options import TrainConfig

# What a full disk, a used-up quota and a file system that became read-only say.
NO_MORE_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of values."""

    # Of the swept axes only.
    values: tuple[tuple[str, Value], ...]
    config: TrainConfig
    feature_set: str
    # Dimensions; None = the features as they are stored.
    pca: int | None
    folder: Path


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker gets: runs of one point with the same features."""

    point: Point
    store: FeatureReader
    feature_set: str
    records: Sequence[VideoRecord]
    runs: Sequence[PlannedRun]
    overwrite: bool
    allow_missing: bool
    origin: Origin


@dataclass(frozen=True, slots=True)
class SweepRuns:
    """What became of a sweep."""

    # The finished runs of each point, points in order.
    runs: Mapping[Point, Sequence[Outcome]]
    # Name of a point -> why some of its runs could not be made.
    failed: Mapping[str, str]


# What a worker finished, and what stopped it, if anything did.
Made = tuple[list[Outcome], str | None]
OnDone = Callable[[Point, Sequence[Outcome]], None]


def plan_points(axes: Sequence[Axis], base: TrainConfig, feature_set: str, out: Path) -> list[Point]:
    """Return every combination of the axes' values, numbers ascending, the last axis fastest.

    feature_set: of all points, unless `features` is an axis. Raises: UsageError if nothing is swept, an axis or a value is
    duplicate, values do not go together, or a head does not read what is swept.
    """
    names = [axis.name for axis in axes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{', '.join(twice)} given twice: give all values at once, such as 1,2,3")
    for axis in axes:
        if len(set(axis.values)) != len(axis.values):
            raise UsageError(f"{axis.name}: duplicate value in {', '.join(map(str, axis.values))}")
    if not axes:
        raise UsageError("nothing is swept: give several values of an option, such as --units 64,128,320")
    swept = {axis.name for axis in axes if len(axis.values) > 1} or set(names)
    points = []
    for combination in itertools.product(*(_ordered(axis.values) for axis in axes)):
        chosen = dict(zip(names, combination, strict=True))
        values = tuple((name, value) for name, value in chosen.items() if name in swept)
        features = str(chosen.pop(FEATURES, feature_set))
        dim = chosen.pop(PCA, None)
        name = point_name(values)
        try:
            config = dataclasses.replace(base, **chosen)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
        if unread := [option for option in swept if option not in (FEATURES, PCA) and not config.reads(option)]:
            raise UsageError(
                f"{', '.join(sorted(unread))} has no effect in {name}: the head {config.head} (schedule {config.schedule}) "
                "does not read it. Sweep it for other heads only, or sweep something else; a residual stack is as wide as "
                "its input: sweep pca or input_projection"
            )
        points.append(Point(values, config, features, None if dim is None else int(dim), out / name))
    return points


def point_name(values: Sequence[tuple[str, Value]]) -> str:
    """Return the folder name of a point, such as `units_64-num_layers_2`."""
    return "-".join(f"{name}_{value}" for name, value in values)


def _ordered(values: tuple[Value, ...]) -> list[Value]:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else list(values)  # type: ignore[type-var]


def run_sweep(
    store: FeatureReader,
    records: Sequence[VideoRecord],
    splits: Sequence[Split],
    points: Sequence[Point],
    *,
    repeats: int = 1,
    folds: bool | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
    origin: Origin = FROM_PYTHON,
    on_done: OnDone = lambda point, outcomes: None,
) -> SweepRuns:
    """Train the runs of all points on all splits with `repeats` seeds each, and return what became of them.

    With `pca` the features are first reduced for each split (`reduce.reduce_features`); the results stay in the store.
    workers: processes, None = one per core on a CPU, one with a GPU; each holds the features of its runs in memory. A
    failed run is reported in `failed` and does not stop the others. folds: as `jobs.plan_jobs`. origin: as
    `jobs.run_jobs`.
    Raises: RunError if another process trains there, a finished run was trained differently, or a worker dies; HarError if
    the features cannot be reduced.
    """
    if untested := [split for split in splits if not split.test]:
        raise RunError(
            f"a sweep compares accuracies, and {untested[0].protocol} has no test part: sweep with another --protocol, and "
            "train the best values with `har train --protocol all`"
        )
    with training_lock(points[0].folder.parent):
        made: dict[Point, list[Outcome]] = {}
        tasks: list[Task] = []
        sets = _feature_sets(store, points, splits, allow_missing)
        streams = {name: FeatureStreams(store, [name]) for name in set(sets.values())}
        order: dict[PlannedRun, int] = {}
        for point in points:
            runs = plan_jobs(splits, point.folder, seed=point.config.seed, repeats=repeats, folds=folds)
            order |= {run: number for number, run in enumerate(runs, start=len(order))}
            made[point] = []
            pending: dict[tuple[int, str], list[PlannedRun]] = {}
            for run in runs:
                name = sets[point.feature_set, point.pca, run.split.index]
                summary = None if overwrite else finished_run(run, point.config, streams[name], records)
                if summary is None:
                    pending.setdefault((run.seed, name), []).append(run)
                else:
                    made[point].append(Outcome(run, summary, True))
            if made[point]:
                on_done(point, made[point])
            for (_, name), group in pending.items():
                tasks.append(Task(point, store, name, records, group, overwrite, allow_missing, origin))
        workers = _affordable_workers(tasks, streams, workers)
        if len(tasks) < workers:
            tasks = [dataclasses.replace(task, runs=[run]) for task in tasks for run in task.runs]
        failed: dict[str, str] = {}
        for task, (outcomes, error) in _finished_tasks(tasks, min(workers, len(tasks))):
            made[task.point] += outcomes
            if error is not None:
                failed[point_name(task.point.values)] = error
            if outcomes:
                on_done(task.point, outcomes)
        return SweepRuns(
            {point: sorted(one, key=lambda outcome: order[outcome.run]) for point, one in made.items()}, failed
        )


def _feature_sets(
    store: FeatureReader, points: Sequence[Point], splits: Sequence[Split], allow_missing: bool
) -> dict[tuple[str, int | None, int], str]:
    """Return the feature set of each (feature_set, pca, split) of the points; missing reductions are computed.

    The largest dimension comes first, so that one that is too large fails before anything is computed.
    """
    kinds = dict.fromkeys((point.feature_set, point.pca) for point in points)
    found: dict[tuple[str, int | None, int], str] = {}
    for (name, dim), split in itertools.product(sorted(kinds, key=lambda kind: -(kind[1] or 0)), splits):
        if dim is None:
            found[name, dim, split.index] = store.resolve(name)
        elif not isinstance(store, FeatureStore):
            raise RunError("a pack cannot be reduced: sweep pca on the feature store that it was made from")
        else:
            options = ReduceOptions(dim=dim, allow_missing=allow_missing)
            try:
                found[name, dim, split.index] = reduce_features(store, name, split, options).feature_set
            except ExtractionError as error:
                raise RunError(f"pca {dim}, {split.protocol} split {split.index}: {error}") from error
    return found


def _affordable_workers(tasks: Sequence[Task], streams: Mapping[str, FeatureStreams], asked: int | None) -> int:
    """Return how many processes train at once: as many as asked for, else as many as the memory allows.

    Raises: RunError if a single run, or as many as asked for, do not fit into it.
    """
    usual = 1
    for task in tasks:
        config, specs = task.point.config, streams[task.feature_set].specs
        split = task.runs[0].split
        need = planned_need(config, specs, split, len(split_classes(task.records, split)))
        try:
            require_memory(need, config, [spec.feature_dim for spec in specs], min(asked or 1, len(tasks)))
        except RunError as error:
            raise RunError(f"{point_name(task.point.values)}: {error}") from error
        usual = max(usual, need.total)
    return (
        asked or min(_usual_workers(tasks[0].point.config.device), max(1, available_memory() // usual)) if tasks else 1
    )


def _usual_workers(device: str) -> int:
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return 1
    return num_cores()


def _finished_tasks(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Made]]:
    """Yield each task and its result, as they finish."""
    if workers <= 1:
        for task in tasks:
            yield task, _work(task)
        return
    threads = max(1, num_cores() // workers)
    try:
        with working_on(tasks, _work, workers, _start_worker, threads) as futures:
            for future in as_completed(futures):
                yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died, perhaps out of memory: finished runs are kept; run the same command again with fewer "
            f"than {workers} --workers"
        ) from error


def _work(task: Task) -> Made:
    """Train the runs of a task; what stops it is returned as text beside the finished runs, so that other tasks go on.

    Raises: OSError if nothing can be written any more: that would stop the others as well.
    """
    finished: list[Outcome] = []
    try:
        run_jobs(
            task.store,
            [task.feature_set],
            task.records,
            task.runs,
            task.point.config,
            overwrite=task.overwrite,
            allow_missing=task.allow_missing,
            locked=True,
            origin=task.origin,
            on_done=finished.append,
        )
    except HarError as error:
        return finished, str(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_MORE_WRITES:
            raise
        first = (str(error).splitlines() or [""])[0]
        return finished, f"{type(error).__name__}: {first}"
    return finished, None


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threadpool_limits(threads)
