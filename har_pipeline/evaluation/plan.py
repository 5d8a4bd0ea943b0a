"""What a job of several runs was asked for, kept as plan.json beside them: an interrupted job is told from a finished one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import write_json
from har_pipeline.evaluation.run_folder import RUN_JSON

PLAN_JSON = "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """folder: of the job. runs: the folders of its runs, relative to it, as `seed0/split1`."""

    folder: Path
    runs: tuple[str, ...]


def write_plan(plan: Plan) -> None:
    """Write plan.json as a whole.

    Raises: RunError if the folder holds runs of folds or repeats that are not planned, or is a run itself: results would mix.
    """
    if (plan.folder / RUN_JSON).exists():
        raise RunError(f"{plan.folder} holds a single run: choose another --out, or move it away")
    if others := [name for name in finished_runs(plan.folder) if name not in plan.runs]:
        raise RunError(
            f"{plan.folder} holds runs that are not of this job ({', '.join(others[:5])}{' ...' * (len(others) > 5)}): choose "
            "another --out, or move them away"
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_json(plan.folder / PLAN_JSON, {"runs": list(plan.runs)})


def finished_runs(folder: Path) -> list[str]:
    """Return the folders of folds and repeats below `folder` that hold a run, relative to it, by name."""
    patterns = ("split*", "seed*", "seed*/split*")
    there = {file.parent for pattern in patterns for file in folder.glob(f"{pattern}/{RUN_JSON}")}
    return sorted(run.relative_to(folder).as_posix() for run in there)


def planned_runs(folder: Path) -> tuple[str, ...] | None:
    """Return the runs that a folder was asked for, relative to it: a job, or one seed of a job; None if that is not known.

    Raises: RunError if plan.json cannot be read.
    """
    own = folder.absolute()
    for base, prefix in ((own, ""), (own.parent, f"{own.name}/")):
        path = base / PLAN_JSON
        try:
            runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} cannot be read ({error}); run the same training command again to replace it"
            ) from error
        return tuple(name.removeprefix(prefix) for name in runs if name.startswith(prefix)) or None
    return None


def unfinished_runs(folder: Path) -> list[str]:
    """Return a sentence if runs that a job or one seed of it was asked for are not there; nothing if none is known to be."""
    runs = planned_runs(folder) or ()
    missing = [name for name in runs if not (folder / name / RUN_JSON).is_file()]
    if not missing:
        return []
    shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
    return [
        f"{len(missing)} of {len(runs)} runs are missing ({shown}): the job was interrupted or still runs; run the same "
        "training command again"
    ]


def no_run_error(path: Path) -> RunError:
    """Return why a folder without any run cannot be read: its job or run is not finished, or it is something else."""
    if missing := unfinished_runs(path):
        return RunError(f"{path}: {missing[0]}")
    if path.with_name(f".{path.name}.partial").exists():
        return RunError(f"the training of {path} is not finished: run the same training command again to go on")
    return RunError(
        f"{path} is no run folder (no {RUN_JSON}, no split0 or seed0); make one with `har train` or `har train-video`"
    )


def no_single_run_error(folder: Path, use: str) -> RunError:
    """Return why a folder cannot be read as one run; of several runs below it, one is named. use: what reads one."""
    if runs := finished_runs(folder):
        return RunError(f"{folder} is no single run: {use}, such as {folder}/{runs[0]}")
    return no_run_error(folder)


def merge_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what is noted of several runs, each text once; what not all of them say begins with their names."""
    saying: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for text in dict.fromkeys(texts):
            saying.setdefault(text, []).append(name)
    return [text if len(names) == len(notes) else f"{', '.join(names)}: {text}" for text, names in saying.items()]
