"""The runs of a job: which were planned (plan.json), which are there, which are missing, and whether they are of one job."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import RunError, first_few
from har_pipeline.core.files import write_json
from har_pipeline.core.kinds import what_is
from har_pipeline.core.records import FeatureSpec, Split
from har_pipeline.evaluation.run_folder import (
    RUN_JSON,
    RunRecord,
    differing_options,
    json_sha256,
    read_run,
    recover_run,
    sealed,
    split_info,
)

PLAN_JSON = "plan.json"

# Options that a job's runs need not share, and what the fit of a fold has of its split.
OF_ONE_RUN = ("seed", "device")
OF_ONE_SPLIT = ("protocol", "split", "train_ids_sha256")

# Protocols whose folds test every video once: a video that none tests means that a fold is missing.
PARTITIONS = ("leave_one_group_out", "leave_one_subject_out", "group_kfold")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job is to make."""

    folder: Path  # of the job
    runs: tuple[str, ...]  # folders of its runs, relative to it, such as `seed0/split1`
    splits_sha256: str = ""  # of its splits, see the function


def splits_sha256(splits: Iterable[Split]) -> str:
    """Return one hash over the ids of several splits; a split that is given again does not count again."""
    hashes = {(split.protocol, split.index, split_info(split)["ids_sha256"]) for split in splits}
    return json_sha256(sorted(hashes))


def _shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that all runs of a job share."""
    return {name: value for name, value in options.items() if name not in OF_ONE_RUN}


def _shared_specs(specs: Sequence[FeatureSpec]) -> list[dict[str, Any]]:
    """Return what all runs of a job share of their features' specs: each fold has a fit, or a trained net, of its own."""
    found = []
    for spec in specs:
        values = spec.to_dict()
        for kind in ("reduction", "encoding", "trained_on"):
            if of_split := values.get(kind):
                values[kind] = {name: value for name, value in of_split.items() if name not in OF_ONE_SPLIT}
        if spec.trained_on is not None:
            del values["weights"]
        found.append(values)
    return found


def job_sha256(options: Mapping[str, Any], specs: Sequence[FeatureSpec], splits: str) -> str:
    """Return what identifies a job: one hash over what its runs share, and over its splits (as `splits_sha256` has it)."""
    return json_sha256([_shared_options(options), _shared_specs(specs), splits])


def join_job(run: RunRecord, job: str) -> None:
    """Note in run.json that a finished run is one of a job, which would have made the same."""
    if run.job != job:
        info = {**run.info, "job": job}
        write_json(run.path / RUN_JSON, sealed(info) if "sha256" in info else info)


def require_one_job(runs: Sequence[RunRecord]) -> None:
    """Check that runs are folds or repeats of one job. Those of older versions do not tell: their options are compared.

    Raises: RunError naming two runs and what differs.
    """
    first = runs[0]
    for run in runs[1:]:
        differing = [] if run.kind == first.kind else [f"kind ({run.kind}, not {first.kind})"]
        found, wanted = (_shared_options(one.info.get("options", {})) for one in (run, first))
        # An option that one of them does not know had no effect on it.
        known = found.keys() & wanted.keys()
        differing += differing_options({name: found[name] for name in known}, {name: wanted[name] for name in known})
        if run.older_rules != first.older_rules:
            differing.append(f"the version that trained it: {first_few(run.older_rules or first.older_rules, '; ')}")
        if _shared_specs([one.spec for one in run.streams]) != _shared_specs([one.spec for one in first.streams]):
            names = (", ".join(stream.feature_set for stream in one.streams) for one in (run, first))
            differing.append("features ({}, not {})".format(*names))
        if not differing and run.job and first.job and run.job != first.job:
            differing.append("the splits of its job")
        if differing:
            raise RunError(
                f"{run.path} and {first.path} are not runs of one job: the first differs in {first_few(differing, '; ')}. Move "
                "one of them to a folder of its own, or train it again with --overwrite"
            )


def write_plan(plan: Plan, job: str = "") -> None:
    """Write plan.json atomically. job: as `job_sha256` returns it.

    Raises: RunError if the folder holds unplanned folds or repeats, or is a run itself: results would mix.
    """
    if (plan.folder / RUN_JSON).exists():
        raise RunError(f"{plan.folder} holds a single run: choose another --out, or move it away")
    if others := [name for name in finished_runs(plan.folder) if name not in plan.runs]:
        raise RunError(
            f"{plan.folder} holds runs that are not of this job ({first_few(others)}): choose "
            "another --out, or move them away"
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_json(plan.folder / PLAN_JSON, {"job": job, "runs": list(plan.runs)})


def finished_runs(folder: Path) -> list[str]:
    """Return the folders of finished folds and repeats below `folder`, relative to it, sorted."""
    patterns = ("split*", "seed*", "seed*/split*")
    there = {file.parent for pattern in patterns for file in folder.glob(f"{pattern}/{RUN_JSON}")}
    return sorted(run.relative_to(folder).as_posix() for run in there)


def planned_runs(folder: Path) -> tuple[str, ...] | None:
    """Return the planned runs of a job, or of one seed of a job, relative to its folder; None without a plan.

    Raises: RunError if plan.json cannot be read.
    """
    own = folder.absolute()
    for base, prefix in ((own, ""), (own.parent, f"{own.name}/")):
        path = base / PLAN_JSON
        try:
            runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
            if not isinstance(runs, list) or not all(isinstance(name, str) for name in runs):
                raise ValueError("runs must be a list of folders")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                f"{path} cannot be read ({error}); run the same training command again to replace it"
            ) from error
        return tuple(name.removeprefix(prefix) for name in runs if name.startswith(prefix)) or None
    return None


def unfinished_runs(folder: Path) -> list[str]:
    """Return a sentence if planned runs of a job, or of one seed of it, are missing; else nothing."""
    runs = planned_runs(folder) or ()
    missing = [name for name in runs if not (folder / name / RUN_JSON).is_file()]
    if not missing:
        return []
    return [
        f"{len(missing)} of {len(runs)} runs are missing ({first_few(missing)}): the job was interrupted or still runs; run "
        "the same training command again"
    ]


def fold_folders(folder: Path) -> dict[int, Path]:
    """Return index -> folder of the runs `split<i>` inside a folder, sorted."""
    return {index: path for index, path in _numbered(folder, "split") if (path / RUN_JSON).is_file()}


def repeat_folders(folder: Path) -> dict[int, Path]:
    """Return seed -> folder of those `seed<k>` inside a folder that hold a run or folds, sorted."""
    found = _numbered(folder, "seed")
    return {seed: path for seed, path in found if (path / RUN_JSON).is_file() or fold_folders(path)}


def _numbered(folder: Path, name: str) -> list[tuple[int, Path]]:
    numbers = ((path.name.removeprefix(name), path) for path in folder.glob(f"{name}*"))
    return sorted((int(number), path) for number, path in numbers if number.isdigit())


def unfinished_folds(folder: Path) -> list[str]:
    """Return a sentence if folds are missing in a folder, nothing if none is known to be.

    Without a plan they are noticed only if each video should be tested once (`PARTITIONS`).
    """
    if planned_runs(folder) is not None:
        return unfinished_runs(folder)
    runs = [read_run(path) for path in fold_folders(folder).values()]
    tested = {video_id for run in runs for video_id in run.split.test}
    learned = {video_id for run in runs for video_id in (*run.split.train, *run.split.val)}
    if not (learned - tested and all(run.split.protocol in PARTITIONS for run in runs)):
        return []
    videos = f"{len(learned - tested)} of {len(learned | tested)} videos"
    return [f"folds are missing: {videos} are tested by none of the {len(runs)} folds"]


def unfinished(folder: Path) -> list[str]:
    """Return what is known to be missing in a job: repeats or folds; nothing for a single run or a finished job."""
    if planned_runs(folder) is not None:
        return unfinished_runs(folder)
    repeats = repeat_folders(folder).values()
    return [f"{path.name}: {text}" for path in repeats for text in unfinished_folds(path)] or unfinished_folds(folder)


def no_run_error(path: Path) -> RunError:
    """Return the error for a folder without any run: its job or run is not finished, or it is something else."""
    if missing := unfinished_runs(path):
        return RunError(f"{path}: {missing[0]}")
    own = path.absolute()
    if own.with_name(f".{own.name}.partial").exists():
        return RunError(f"the training of {path} is not finished: run the same training command again to continue")
    if not path.exists():
        return RunError(f"{path} does not exist; make a run with `har train` or `har train-video`")
    if (found := what_is(path)) != "a folder":
        return RunError(f"{path} is not a run folder but {found}; make one with `har train` or `har train-video`")
    return RunError(
        f"{path} is not a run folder (no {RUN_JSON}, no split0 or seed0); make one with `har train` or `har train-video`"
    )


def require_single_run(folder: Path, use: str) -> None:
    """Check that a folder is a single run. use: what needs one. Raises: RunError, which names a run of a job."""
    recover_run(folder)
    if (folder / RUN_JSON).exists():
        return
    if runs := finished_runs(folder):
        raise RunError(f"{folder} is not a single run: {use}, such as {folder}/{runs[0]}")
    raise no_run_error(folder)


def merge_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the notes of several runs without duplicates; a note that not all share begins with the runs' names."""
    saying: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for text in dict.fromkeys(texts):
            saying.setdefault(text, []).append(name)
    return [text if len(names) == len(notes) else f"{', '.join(names)}: {text}" for text, names in saying.items()]
