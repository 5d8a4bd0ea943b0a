"""Runs read for fusion, and what a fusion writes: its table, and scores that can be evaluated and fused again."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Scores
from har_pipeline.fusion import Member
from har_pipeline.fusion_table import ROW_NAMES, Fusion
from har_pipeline.job_plan import merge_notes, no_run_error
from har_pipeline.run_folder import RUN_JSON, SCORES, read_run, write_json
from har_pipeline.scores import read_scores, stack_scores, write_scores

FUSION_JSON, LEARNED_JSON, TABLE_CSV = "fusion.json", "learned_from.json", "fusion.csv"


def run_folders(path: Path) -> list[Path]:
    """Return the folder itself if it is a run, or else the runs one or two levels below it (folds, and repeats)."""
    if (path / RUN_JSON).is_file():
        return [path]
    found = [file.parent for pattern in (f"*/{RUN_JSON}", f"*/*/{RUN_JSON}") for file in path.glob(pattern)]
    # Names that begin with a dot are runs in the making.
    return sorted(folder for folder in found if not any(p.startswith(".") for p in folder.relative_to(path).parts))


def load_members(paths: Sequence[Path]) -> list[Member]:
    """Return the runs of several paths, named by as much of the ends of their paths as tells them apart.

    Raises: RunError as `load_member` does, or if a path is given twice.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise RunError("the same run is given twice")
    return [load_member(path, _name(own, resolved)) for path, own in zip(paths, resolved, strict=True)]


def _name(path: Path, others: Sequence[Path]) -> str:
    """Return the shortest end of a path that no other has and that is no line of a fusion's table."""
    for depth in range(1, len(path.parts)):
        parts = path.parts[-depth:]
        name = "/".join(parts)
        if name not in ROW_NAMES and not any(other != path and other.parts[-depth:] == parts for other in others):
            return name
    return str(path)


def load_member(path: Path, name: str) -> Member:
    """Return a run with all its folds and repeats, ready to be fused.

    path: a run folder, a folder of folds or repeats, a folder that `har fuse` wrote, or one that holds a scores.csv.
    Raises: RunError if it is none of these, or the classes differ between folds.
    """
    runs = [read_run(folder) for folder in run_folders(path)]
    if not runs:
        if not (path / SCORES).is_file():
            raise no_run_error(path)
        return Member(name=name, scores=read_scores(path / SCORES), learned_from=_read_learned(path / LEARNED_JSON))
    learned: dict[int, frozenset[str]] = {}
    for run in runs:
        ids = frozenset(run.split.train) | frozenset(run.split.val)
        learned[run.split.index] = learned.get(run.split.index, frozenset()) | ids
    # A run of mid fusion is of no single stream, such as `rgb+flow`.
    streams = {"+".join(stream.spec.stream for stream in run.streams) for run in runs}
    try:
        scores = stack_scores([run.scores() for run in runs])
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    stream = min(streams) if len(streams) == 1 else ""
    notes = merge_notes({str(run.path.relative_to(path)): run.notes for run in runs})
    return Member(name=name, scores=scores, learned_from=learned, stream=stream, notes=tuple(notes))


def write_fusion(folder: Path, table: Fusion, scores: Scores, members: Sequence[Member]) -> None:
    """Write fusion.json, fusion.csv (the table), scores.csv and learned_from.json, which a later fusion checks.

    Raises: RunError if the folder holds a run of `har train`.
    """
    if (folder / RUN_JSON).exists():
        raise RunError(f"{folder} holds a run: choose another folder for the fusion")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FUSION_JSON, table.to_dict())
    write_scores(folder / SCORES, scores)
    folds = sorted({fold for member in members for fold in member.learned_from})
    learned = {
        str(fold): sorted(frozenset().union(*(member.learned_from.get(fold, frozenset()) for member in members)))
        for fold in folds
    }
    write_json(folder / LEARNED_JSON, learned)
    with open(folder / TABLE_CSV, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["name", "kind", "top1", "low_95", "high_95", "sd_repeats", "nll", "best_only", "this_only", "p_value"]
        )
        for row in table.rows:
            test = dataclasses.astuple(row.against_best) if row.against_best else ("", "", "")
            blank = ["" if value is None else value for value in (row.sd, row.nll)]
            writer.writerow([row.name, row.kind, *dataclasses.astuple(row.top1), *blank, *test])


def _read_learned(path: Path) -> dict[int, frozenset[str]]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {int(fold): frozenset(ids) for fold, ids in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: malformed ({error}); fuse again") from error
