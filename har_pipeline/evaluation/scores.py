"""Scores files: the class probabilities of videos, joined by video id and never by position."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Scores

COLUMNS = ("video_id", "label", "split", "fold", "seed")


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores as CSV: video_id, label, split (train, val or test), fold, seed, one probability column per class.

    Probabilities are written in full, so that reading gives the same float64 back.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *scores.classes])
        rows = zip(scores.video_ids, scores.labels, scores.part, scores.fold, scores.seed, strict=True)
        for row, probabilities in zip(rows, scores.probabilities, strict=True):
            writer.writerow([*row, *(repr(float(value)) for value in probabilities)])


def read_scores(path: Path) -> Scores:
    """Read what `write_scores` wrote. Raises: RunError naming the file and row if it is missing or malformed."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); is the run complete?") from error
    if not rows or tuple(rows[0][: len(COLUMNS)]) != COLUMNS:
        raise RunError(f"{path}: the first columns must be {', '.join(COLUMNS)}")
    classes, body = tuple(rows[0][len(COLUMNS) :]), rows[1:]
    probabilities = np.empty((len(body), len(classes)))
    folds, seeds = [], []
    for number, row in enumerate(body):
        try:
            if len(row) != len(rows[0]):
                raise ValueError(f"{len(row)} columns instead of {len(rows[0])}")
            probabilities[number] = [float(value) for value in row[len(COLUMNS) :]]
            folds.append(int(row[3]))
            seeds.append(int(row[4]))
        except ValueError as error:
            raise RunError(f"{path}, line {number + 2}: {error}") from error
    try:
        return Scores(
            video_ids=tuple(row[0] for row in body),
            labels=tuple(row[1] for row in body),
            classes=classes,
            probabilities=probabilities,
            part=tuple(row[2] for row in body),
            fold=tuple(folds),
            seed=tuple(seeds),
        )
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error


def stack_scores(parts: Sequence[Scores]) -> Scores:
    """Return the rows of several scores, one after the other; a video may stand in several folds.

    Raises: RunError if there is none or the classes differ.
    """
    if not parts:
        raise RunError("no scores to join")
    classes = parts[0].classes
    for scores in parts[1:]:
        if scores.classes != classes:
            differing = sorted(set(classes) ^ set(scores.classes))
            raise RunError(
                f"scores of different classes cannot be joined (differing: {differing[:5] or 'their order'})"
            )
    return Scores(
        video_ids=tuple(value for scores in parts for value in scores.video_ids),
        labels=tuple(value for scores in parts for value in scores.labels),
        classes=classes,
        probabilities=np.concatenate([scores.probabilities for scores in parts]),
        part=tuple(value for scores in parts for value in scores.part),
        fold=tuple(value for scores in parts for value in scores.fold),
        seed=tuple(value for scores in parts for value in scores.seed),
    )


def concat_scores(parts: Sequence[Scores]) -> Scores:
    """Return the rows of several scores to be pooled: the folds of a protocol, or repeats with other seeds.

    Raises: RunError as `stack_scores` does, or if a video stands twice in one part of one seed.
    """
    joined = stack_scores(parts)
    check_unique(joined)
    return joined


def check_unique(scores: Scores) -> None:
    """Raise RunError if a video stands twice as a test video of one seed, or twice in one part of one fold and seed.

    A video may be a validation or training video of several folds, but a test video of one only.
    """
    seen: set[tuple[object, ...]] = set()
    rows = zip(scores.video_ids, scores.part, scores.fold, scores.seed, strict=True)
    for video_id, part, fold, seed in rows:
        key = (video_id, part, seed) if part == "test" else (video_id, part, seed, fold)
        if key in seen:
            raise RunError(f"{video_id} stands twice in the {part} scores of seed {seed} (again in fold {fold})")
        seen.add(key)


def select_part(scores: Scores, part: str) -> Scores:
    """Return the rows of `train`, `val` or `test`. Raises: RunError if there are none."""
    rows = [row for row, value in enumerate(scores.part) if value == part]
    if not rows:
        raise RunError(f"there are no {part} scores; there are: {', '.join(sorted(set(scores.part))) or 'none'}")
    return scores.select(rows)
