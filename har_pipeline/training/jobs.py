"""Several training runs as one job: every fold of a protocol, repeated with several seeds; what is finished is kept.

One split, one seed: the run folder itself. Folds: `split<i>`. Repeats: `seed<k>`, and `seed<k>/split<i>` with both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.evaluation.plan import Plan, write_plan
from har_pipeline.evaluation.run_folder import (
    HEAD,
    RUN_JSON,
    VIDEO,
    RunSummary,
    features_sha256,
    labels_sha256,
    read_run,
    split_info,
)
from har_pipeline.features.reduce import require_same_training_videos
from har_pipeline.features.table import FeatureTable
from har_pipeline.training.configs import TrainConfig, VideoTrainConfig
from har_pipeline.training.data import (
    TrainSource,
    load_training_features,
    resolve_streams,
    run_classes,
    stored_checksums,
)
from har_pipeline.training.heads.train import classes_of, train_head
from har_pipeline.training.history import Epoch
from har_pipeline.training.networks.distributed import ALONE, World
from har_pipeline.training.networks.train import train_video


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a job: its split, its seed, its folder; plan: all runs of the job, None of a run that stands alone."""

    split: Split
    seed: int
    folder: Path
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run; kept: it was finished before."""

    job: Job
    summary: RunSummary
    kept: bool


def plan_jobs(
    splits: Sequence[Split], out: Path, *, seed: int = 0, repeats: int = 1, folds: bool | None = None
) -> list[Job]:
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
    plan = Plan(out, tuple(folder.relative_to(out).as_posix() for _, _, folder in found))
    alone = not several and repeats == 1
    return [Job(split, number, folder, None if alone else plan) for split, number, folder in found]


def finished_run(
    job: Job,
    config: TrainConfig | VideoTrainConfig,
    feature_sets: Sequence[str],
    records: Sequence[VideoRecord],
    checksums: Callable[[], Mapping[str, str]],
) -> RunSummary | None:
    """Return what a finished run says of itself, None if it is not there.

    checksums: gives those of the videos' features, asked for only if a run is there. Labels and features are compared
    where the run tells what it learned from; runs of older versions do not.
    Raises: RunError if it was trained with other options, features, videos or labels: a job must not mix the two; or if
    it is damaged.
    """
    if not (job.folder / RUN_JSON).exists():
        return None
    run = read_run(job.folder)
    info = run.info
    if run.kind != (VIDEO if isinstance(config, VideoTrainConfig) else HEAD):
        raise RunError(f"{job.folder} holds a run of another command: choose another --out")
    try:
        before = type(config).from_dict({**info["options"], "device": config.device}).to_dict()
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{job.folder}: {RUN_JSON} is malformed ({error!r}); replace the run with --overwrite"
        ) from error
    wanted = dataclasses.replace(config, seed=job.seed).to_dict()
    differing = [f"{name}: {before[name]} != {wanted[name]}" for name in wanted if before[name] != wanted[name]]
    names = [stream.feature_set for stream in run.streams]
    if names != list(feature_sets):
        differing.append(f"features: {', '.join(names)} != {', '.join(feature_sets)}")
    if info["split"]["ids_sha256"] != split_info(job.split)["ids_sha256"]:
        differing.append("the videos of the split")
    else:
        differing += _other_data(info, labels_sha256(records, job.split), "labels")
        if names == list(feature_sets):
            differing += _other_data(info, features_sha256(checksums(), job.split), "features")
    if differing:
        raise RunError(
            f"{job.folder} was trained differently ({'; '.join(differing)}): replace it with --overwrite, or choose "
            "another --out"
        )
    summary = {**info["summary"], "path": job.folder}
    for name in ("missing", "notes"):
        summary[name] = tuple(summary[name])
    return RunSummary(**summary)


def finished_runs(
    store: TrainSource,
    names: Sequence[str],
    records: Sequence[VideoRecord],
    jobs: Sequence[Job],
    config: TrainConfig | VideoTrainConfig,
    *,
    overwrite: bool,
) -> dict[Job, RunSummary | None]:
    """Return for each job what its finished run says of itself; None for all with `overwrite`.

    names: full names of the feature sets. Raises: RunError as `finished_run`.
    """
    checksums = functools.cache(functools.partial(stored_checksums, store, names))
    return {job: None if overwrite else finished_run(job, config, names, records, checksums) for job in jobs}


def _other_data(info: Mapping[str, Any], sha256: str, what: str) -> list[str]:
    return [f"the {what} of the videos"] if info.get(f"{what}_sha256", sha256) != sha256 else []


def run_jobs(
    store: TrainSource,
    feature_sets: Sequence[str],
    records: Sequence[VideoRecord],
    jobs: Sequence[Job],
    config: TrainConfig,
    *,
    manifest_sha256: str = "",
    overwrite: bool = False,
    allow_missing: bool = False,
    tensorboard: bool = False,
    on_epoch: Callable[[Job, Epoch], None] = lambda job, epoch: None,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Train the runs of `plan_jobs` one after the other and return what became of each, in their order.

    Runs that are there already are kept unless `overwrite`, so that an interrupted job goes on at the unfinished fold.
    The features are read once for all folds of the same classes. Each run is what `train_head` alone would make.
    Raises: RunError as `train_head`, and as `finished_run`; FeatureMismatchError before anything is trained if features
    were reduced on other training videos than those of any job.
    """
    names = resolve_streams(store, feature_sets)
    finished = finished_runs(store, names, records, jobs, config, overwrite=overwrite)
    pending = [job for job in jobs if finished[job] is None]
    for name in names:
        spec = store.spec(name)
        for job in pending:
            require_same_training_videos(name, spec, job.split)
    classes = [classes_of(records, job.split, config) for job in pending]
    table = shared_table(store, names, records, pending, classes, allow_missing)

    def train(job: Job) -> RunSummary:
        return train_head(
            store,
            names,
            records,
            job.split,
            dataclasses.replace(config, seed=job.seed),
            job.folder,
            manifest_sha256=manifest_sha256,
            on_epoch=functools.partial(on_epoch, job),
            overwrite=overwrite,
            allow_missing=allow_missing,
            tensorboard=tensorboard,
            table=table,
        )

    return train_unfinished(finished, train, on_done)


def train_unfinished(
    finished: Mapping[Job, RunSummary | None],
    train: Callable[[Job], RunSummary | None],
    on_done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Train the jobs that `finished` has no summary of, in its order; a job whose `train` returns None is left out.

    What was planned is written first.
    """
    for plan in {job.plan for job in finished if job.plan is not None}:
        write_plan(plan)
    outcomes = []
    for job, kept in finished.items():
        summary = kept or train(job)
        if summary is not None:
            outcomes.append(Outcome(job, summary, kept is not None))
            on_done(outcomes[-1])
    return outcomes


def shared_table(
    store: TrainSource,
    names: Sequence[str],
    records: Sequence[VideoRecord],
    jobs: Sequence[Job],
    classes: Sequence[tuple[str, ...]],
    allow_missing: bool,
) -> FeatureTable | None:
    """Return the features of all videos of the jobs, None if there is one job only or their classes differ.

    classes: of each job.
    """
    if len(jobs) < 2 or len(set(classes)) > 1:
        return None
    ids = {video_id: None for job in jobs for part in ("train", "val", "test") for video_id in getattr(job.split, part)}
    jobs[0].folder.parent.mkdir(parents=True, exist_ok=True)
    return load_training_features(
        store,
        names,
        records,
        list(ids),
        classes[0],
        allow_missing=allow_missing,
        spill_dir=jobs[0].folder.parent,
    )


def run_video_jobs(
    store: TrainSource,
    feature_set: str,
    records: Sequence[VideoRecord],
    jobs: Sequence[Job],
    config: VideoTrainConfig,
    *,
    manifest_sha256: str = "",
    overwrite: bool = False,
    allow_missing: bool = False,
    world: World = ALONE,
    on_epoch: Callable[..., None] = lambda job, epoch: None,
    on_batch: Callable[..., None] = lambda job, progress: None,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Train the runs of `jobs.plan_jobs` one after the other; as `jobs.run_jobs`, and each as `train_video` alone.

    on_epoch, on_batch: called with the job and an `Epoch`, or a `BatchProgress`. In all processes but the first the
    result holds the runs that were kept only.
    """
    name = store.resolve(feature_set)
    finished = finished_runs(store, [name], records, jobs, config, overwrite=overwrite)
    pending = [job for job in jobs if finished[job] is None]
    classes = [run_classes(records, job.split) for job in pending]
    table = shared_table(store, [name], records, pending, classes, allow_missing)

    def train(job: Job) -> RunSummary | None:
        return train_video(
            store,
            name,
            records,
            job.split,
            dataclasses.replace(config, seed=job.seed),
            job.folder,
            manifest_sha256=manifest_sha256,
            on_epoch=functools.partial(on_epoch, job),
            on_batch=functools.partial(on_batch, job),
            overwrite=overwrite,
            allow_missing=allow_missing,
            table=table,
            world=world,
        )

    return train_unfinished(finished, train, on_done)
