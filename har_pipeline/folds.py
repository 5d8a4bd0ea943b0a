"""The folds of a protocol as one result: each fold's measures, their mean, and all test videos pooled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.categories import Grouping
from har_pipeline.errors import RunError
from har_pipeline.evaluate import Evaluation, evaluate_run, evaluate_scores, write_evaluation
from har_pipeline.run_folder import RUN_JSON, read_run, write_json
from har_pipeline.scores import concat_scores, select_part


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldsEvaluation:
    """Measures over folds, in [0, 1]. pooled: over all videos together, None where a video is tested in several folds."""

    folds: Mapping[int, Evaluation]
    mean_top1: float
    sd_top1: float
    mean_class: float
    pooled: Evaluation | None

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as a plain nested dict, ready for JSON."""
        return {
            "folds": {str(i): evaluation.to_dict() for i, evaluation in self.folds.items()},
            "mean_top1": self.mean_top1,
            "sd_top1": self.sd_top1,
            "mean_class": self.mean_class,
            "pooled": self.pooled.to_dict() if self.pooled else None,
        }


def summarise_folds(folds: Mapping[int, Evaluation], pooled: Evaluation | None) -> FoldsEvaluation:
    """Return the folds with their mean, and their sample standard deviation, which is 0 for a single one."""
    top1 = np.array([evaluation.top1.value for evaluation in folds.values()])
    return FoldsEvaluation(
        folds=folds,
        mean_top1=float(top1.mean()),
        sd_top1=float(top1.std(ddof=1)) if len(top1) > 1 else 0.0,
        mean_class=float(np.mean([evaluation.mean_class.value for evaluation in folds.values()])),
        pooled=pooled,
    )


def fold_folders(folder: Path) -> list[Path]:
    """Return the run folders `split<i>` inside a folder, by number."""
    found = [path for path in folder.glob("split*") if (path / RUN_JSON).is_file() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def evaluate_folds(folder: Path, *, part: str = "test", grouping: Grouping | None = None) -> FoldsEvaluation:
    """Evaluate every fold of a folder and write each one's files, and the pooled ones and folds.json into the folder.

    Pooling needs folds of the same classes that test each video once, as leave-one-group-out does.
    Raises: RunError if there is no fold.
    """
    folders = fold_folders(folder)
    if not folders:
        raise RunError(f"{folder} holds no folds (split0/run.json ...); make them with `har train --split all`")
    folds = {int(path.name[5:]): evaluate_run(path, part=part, grouping=grouping) for path in folders}
    scores = [select_part(read_run(path).scores(), part) for path in folders]
    ids = [video_id for one in scores for video_id in one.video_ids]
    poolable = len(ids) == len(set(ids)) and len({one.classes for one in scores}) == 1
    notes = sorted({text for evaluation in folds.values() for text in evaluation.notes})
    result = summarise_folds(
        folds, evaluate_scores(concat_scores(scores), notes=notes, grouping=grouping) if poolable else None
    )
    if result.pooled is not None:
        write_evaluation(result.pooled, folder)
    write_json(folder / "folds.json", result.to_dict())
    return result
