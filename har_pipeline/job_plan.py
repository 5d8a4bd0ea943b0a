"""What a job of several runs was asked for, kept as plan.json beside them: an interrupted job is told from a finished one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from har_pipeline.errors import RunError
from har_pipeline.run_folder import RUN_JSON, write_json

PLAN_JSON = "plan.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """folder: of the job. runs: the folders of its runs, relative to it, as `seed0/split1`."""

    folder: Path
    runs: tuple[str, ...]


def write_plan(plan: Plan) -> None:
    """Write plan.json as a whole."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    partial = plan.folder / f".{PLAN_JSON}.{os.getpid()}.partial"
    write_json(partial, {"runs": list(plan.runs)})
    partial.replace(plan.folder / PLAN_JSON)


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
