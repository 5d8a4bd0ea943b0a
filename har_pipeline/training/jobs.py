"""Several training runs as one job: every fold of a protocol, repeated with several seeds; what is finished is kept.

One split, one seed: the run folder itself. Folds: `split<i>`. Repeats: `seed<k>`, and `seed<k>/split<i>` with both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_pipeline.core.errors import RunError, first_few
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.evaluation.plan import Plan, job_sha256, join_job, splits_sha256, write_plan
from har_pipeline.evaluation.run_folder import (
    FROM_PYTHON,
    HEAD,
    RUN_JSON,
    VIDEO,
    Origin,
    RunSummary,
    features_sha256,
    free_run_path,
    labels_sha256,
    read_run,
    recover_run,
    split_info,
)
from har_pipeline.features.frames import frame_shape
from har_pipeline.features.reader import FeatureReader
from har_pipeline.features.table import FeatureStreams
from har_pipeline.models.device import pick_device
from har_pipeline.training.data import load_training_data, split_classes
from har_pipeline.training.heads.train import check_validation, train_head
from har_pipeline.training.history import Epoch
from har_pipeline.training.lock import training_lock
from har_pipeline.training.memory import planned_need, require_memory
from har_pipeline.training.networks.distributed import ALONE, World
from har_pipeline.training.networks.fit import BatchProgress
from har_pipeline.training.networks.train import train_network
from har_pipeline.training.options import TrainConfig, VideoTrainConfig
from har_pipeline.training.threads import Threads, training_threads


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a job."""

    split: Split
    seed: int
    folder: Path
    # All runs of the job; None for a run that stands alone.
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    run: PlannedRun
    summary: RunSummary
    # It was finished before.
    kept: bool


def plan_jobs(
    splits: Sequence[Split], out: Path, *, seed: int = 0, repeats: int = 1, folds: bool | None = None
) -> list[PlannedRun]:
    """Return the runs of all splits with the seeds `seed`, `seed + 1` ..., all folds of a seed together.

    folds: whether each split has its own folder; None = if there are several. Raises: RunError if repeats is below 1.
    """
    if repeats < 1:
        raise RunError(f"--repeats must be at least 1, not {repeats}")
    several = len(splits) > 1 if folds is None else folds
    found = []
    for number in range(seed, seed + repeats):
        base = out / f"seed{number}" if repeats > 1 else out
        found += [(split, number, base / f"split{split.index}" if several else base) for split in splits]
    plan = Plan(out, tuple(folder.relative_to(out).as_posix() for _, _, folder in found), splits_sha256(splits))
    alone = not several and repeats == 1
    return [PlannedRun(split, number, folder, None if alone else plan) for split, number, folder in found]


def finished_run(
    run: PlannedRun, config: TrainConfig | VideoTrainConfig, streams: FeatureStreams, records: Sequence[VideoRecord]
) -> RunSummary | None:
    """Return the summary of a finished run, None if there is none.

    Labels and features are compared where the run tells what it learned from; runs of older versions do not.
    Raises: RunError if it was trained with other options, features, videos or labels: a job must not mix the two; or if
    it is damaged.
    """
    recover_run(run.folder)
    if not (run.folder / RUN_JSON).exists():
        return None
    if isinstance(config, TrainConfig):
        config = config.for_features(streams.specs)
    found = read_run(run.folder)
    info = found.info
    if found.kind != (VIDEO if isinstance(config, VideoTrainConfig) else HEAD):
        raise RunError(f"{run.folder} holds a run of another command: choose another --out")
    try:
        before = type(config)(**{**info["options"], "device": config.device}).to_dict()
        ids, summary = info["split"]["ids_sha256"], {**info["summary"], "path": run.folder}
        for name in ("missing", "notes"):
            summary[name] = tuple(summary[name])
        kept = RunSummary(**summary)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.folder}: {RUN_JSON} is malformed ({error!r}); replace the run with --overwrite"
        ) from error
    wanted = dataclasses.replace(config, seed=run.seed).to_dict()
    differing = [f"{name}: {before[name]} != {wanted[name]}" for name in wanted if before[name] != wanted[name]]
    differing += found.older_rules
    names = tuple(stream.feature_set for stream in found.streams)
    if names != streams.names:
        differing.append(f"features: {', '.join(names)} != {', '.join(streams.names)}")
    if ids != split_info(run.split)["ids_sha256"]:
        differing.append("the videos of the split")
    else:
        hashes = {"labels": labels_sha256(records, run.split)}
        if names == streams.names:
            hashes["features"] = features_sha256(streams.checksums, run.split)
        for what, sha256 in hashes.items():
            if info.get(f"{what}_sha256", sha256) != sha256:
                differing.append(f"the {what} of the videos")
    if differing:
        raise RunError(
            f"{run.folder} was trained differently ({first_few(differing, '; ')}): replace it with --overwrite, or choose "
            "another --out"
        )
    return kept


def run_jobs(
    store: FeatureReader,
    feature_sets: Sequence[str],
    records: Sequence[VideoRecord],
    runs: Sequence[PlannedRun],
    config: TrainConfig | VideoTrainConfig,
    *,
    overwrite: bool = False,
    allow_missing: bool = False,
    tensorboard: bool = False,
    locked: bool = False,
    origin: Origin = FROM_PYTHON,
    world: World = ALONE,
    on_epoch: Callable[[PlannedRun, Epoch], None] = lambda run, epoch: None,
    on_batch: Callable[[PlannedRun, BatchProgress], None] = lambda run, progress: None,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
    on_threads: Callable[[Threads], None] = lambda threads: None,
) -> list[Outcome]:
    """Train the runs of `plan_jobs` one after the other and return what became of each, in their order.

    config: of heads, or of networks on raw frames; its seed is that of each run. feature_sets: names or unique starts of
    names; several are the streams of mid fusion. Runs that are finished are kept unless `overwrite`, so that an
    interrupted job resumes at the unfinished fold. The features are read once for all folds of the same classes; each run
    is what `train_head` or `train_network` alone would make. tensorboard: of heads. Several processes
    may each make a part of the planned runs at the same time. locked: the caller holds the `training_lock` of the job's
    folder, or of one above. origin: what the runs are made by; the store's path is added. world, on_batch: of networks; all
    processes but the first return the runs that were kept only. On a CPU, where the caller has not chosen, they take as many
    threads as there are free cores, see `threads`; on_threads: called with them.
    Raises: RunError if another process trains there, and as `train_head`, `train_network`, `finished_run` and
    `load_training_data`; FeatureMismatchError before anything is trained if features were fitted on other training videos
    than those of any run.
    """
    with contextlib.ExitStack() as stack:
        if world.first and not locked:
            for folder in _folders_to_lock(runs):
                stack.enter_context(training_lock(folder))
        origin = dataclasses.replace(origin, store=store.path)
        streams = FeatureStreams(store, feature_sets)
        device = pick_device(config.device)
        if isinstance(config, VideoTrainConfig):
            frame_shape(streams.specs[0])
        else:
            config = config.for_features(streams.specs)
        finished = {run: None if overwrite else finished_run(run, config, streams, records) for run in runs}
        pending = [run for run in runs if finished[run] is None]
        for run in pending:
            _require_possible(run, config, streams, records, overwrite=overwrite)
        splits = [run.split for run in pending]
        spill_dir = pending[0].folder.parent if pending else None
        folds = load_training_data(streams, records, splits, allow_missing=allow_missing, spill_dir=spill_dir)
        jobs = _write_plans(finished, config, streams)

        def train(run: PlannedRun) -> RunSummary | None:
            own, tell = dataclasses.replace(config, seed=run.seed), functools.partial(on_epoch, run)
            job = jobs[run.plan] if run.plan is not None else ""
            # The data of a fold are not bound here: they are freed before those of the next fold are read.
            if isinstance(own, VideoTrainConfig):
                progress = functools.partial(on_batch, run)
                return train_network(
                    next(folds),
                    own,
                    run.folder,
                    overwrite=overwrite,
                    job=job,
                    origin=origin,
                    locked=True,
                    world=world,
                    on_epoch=tell,
                    on_batch=progress,
                )
            return train_head(
                next(folds),
                own,
                run.folder,
                overwrite=overwrite,
                tensorboard=tensorboard,
                job=job,
                origin=origin,
                on_epoch=tell,
            )

        if pending and (threads := stack.enter_context(training_threads(device))) is not None:
            on_threads(threads)
        outcomes = []
        for run, kept in finished.items():
            with _naming(run.folder):
                summary = kept or train(run)
            if summary is not None:
                outcomes.append(Outcome(run, summary, kept is not None))
                on_done(outcomes[-1])
        return outcomes


def _require_possible(
    run: PlannedRun,
    config: TrainConfig | VideoTrainConfig,
    streams: FeatureStreams,
    records: Sequence[VideoRecord],
    *,
    overwrite: bool,
) -> None:
    """Check that a run may be written, can be validated, and fits into the memory. Raises: RunError otherwise."""
    free_run_path(run.folder, overwrite=overwrite)
    if isinstance(config, TrainConfig):
        check_validation(run.split, config)
    need = planned_need(config, streams.specs, run.split, len(split_classes(records, run.split)))
    require_memory(need, config, [spec.feature_dim for spec in streams.specs])


def _write_plans(
    finished: Mapping[PlannedRun, RunSummary | None], config: TrainConfig | VideoTrainConfig, streams: FeatureStreams
) -> dict[Plan, str]:
    """Write down the jobs of runs, and return plan -> the job's hash. finished: run -> its summary, if it is finished."""
    plans = [run.plan for run in finished if run.plan]
    jobs = {plan: job_sha256(config.to_dict(), streams.specs, plan.splits_sha256) for plan in plans}
    for plan, job in jobs.items():
        write_plan(plan, job)
    for run, kept in finished.items():
        if kept is not None and run.plan is not None:
            join_job(read_run(run.folder), jobs[run.plan])
    return jobs


def _folders_to_lock(runs: Sequence[PlannedRun]) -> list[Path]:
    """Return the folder of a whole job, but of a part of one those of its runs: other processes may make the others."""
    whole = bool(runs) and runs[0].plan is not None and len(runs) == len(runs[0].plan.runs)
    return [runs[0].plan.folder] if whole and runs[0].plan else [run.folder for run in runs]


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Give an error of the system that names no file, as that of a full disk, the name of a folder."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error
