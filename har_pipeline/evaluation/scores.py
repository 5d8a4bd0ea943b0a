"""Scores: the class probabilities of videos in files, stacked, checked and selected."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.tables import is_number, write_csv

COLUMNS = ("video_id", "label", "split", "fold", "seed")
# Columns that follow from the others, for people; files of older versions and of others lack them.
DERIVED = ("predicted", "correct")
_WORDS = {True: "true", False: "false"}


def predicted_classes(scores: Scores) -> list[str]:
    """Return the most probable class of each video; among equals the first."""
    return [scores.classes[k] for k in scores.probabilities.argmax(axis=1)]


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores as CSV: a row per video, with one probability column per class.

    Before them video_id, label, split (train, val or test), fold, seed, predicted (the most probable class) and correct
    (`true` or `false`). Probabilities are written in full, so that reading gives the same float64 back.
    """
    predicted = predicted_classes(scores)
    correct = [_WORDS[said == label] for said, label in zip(predicted, scores.labels, strict=True)]
    rows = zip(scores.video_ids, scores.labels, scores.part, scores.fold, scores.seed, predicted, correct, strict=True)
    cells = ([*row, *map(repr, own.tolist())] for row, own in zip(rows, scores.probabilities, strict=True))
    write_csv(path, [*COLUMNS, *DERIVED, *scores.classes], cells, exact=True)


def read_scores(path: Path) -> Scores:
    """Read what `write_scores` wrote, with or without the columns `DERIVED`.

    Raises: RunError naming the file and row if it is missing or malformed, or a row's `predicted` or `correct` is not what
    its label and probabilities say.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); is the run complete?") from error
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path}: not a table of scores ({error}); train the run again") from error
    if not rows or tuple(rows[0][: len(COLUMNS)]) != COLUMNS:
        raise RunError(f"{path}: the first columns must be {', '.join(COLUMNS)}")
    first = len(COLUMNS) + (len(DERIVED) if _has_derived(rows) else 0)
    classes, body = tuple(rows[0][first:]), rows[1:]
    probabilities = np.empty((len(body), len(classes)))
    folds, seeds = [], []
    for number, row in enumerate(body):
        try:
            if len(row) != len(rows[0]):
                raise ValueError(f"{len(row)} columns instead of {len(rows[0])}")
            probabilities[number] = [float(value) for value in row[first:]]
            folds.append(int(row[3]))
            seeds.append(int(row[4]))
        except ValueError as error:
            raise RunError(f"{path}, line {number + 2}: {error}") from error
    try:
        scores = Scores(
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
    if first > len(COLUMNS):
        for number, (row, predicted) in enumerate(zip(body, predicted_classes(scores), strict=True)):
            # Spreadsheets write TRUE.
            said = (row[first - 2], row[first - 1].lower())
            wanted = (predicted, _WORDS[predicted == row[1]])
            if said != wanted:
                raise RunError(
                    f"{path}, line {number + 2}: predicted, correct are {', '.join(said)}, but the label and the probabilities "
                    f"say {', '.join(wanted)}; correct them, or leave both columns out"
                )
    return scores


def _has_derived(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the columns after `COLUMNS` are `DERIVED`: they may be classes of these names, with numbers below."""
    place = slice(len(COLUMNS), len(COLUMNS) + len(DERIVED))
    return tuple(rows[0][place]) == DERIVED and not any(is_number(cell) for row in rows[1:2] for cell in row[place][1:])


def stack_scores(parts: Sequence[Scores]) -> Scores:
    """Return the rows of several scores, one after the other; a video may be in several folds.

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

    def joined(name: str) -> tuple[Any, ...]:
        return tuple(value for scores in parts for value in getattr(scores, name))

    return Scores(
        classes=classes,
        probabilities=np.concatenate([scores.probabilities for scores in parts]),
        **{name: joined(name) for name in ("video_ids", "labels", "part", "fold", "seed")},
    )


def concat_scores(parts: Sequence[Scores]) -> Scores:
    """Return the rows of several scores to be pooled: the folds of a protocol, or repeats with other seeds.

    Raises: RunError as `stack_scores` and `check_unique` do.
    """
    joined = stack_scores(parts)
    check_unique(joined)
    return joined


def check_unique(scores: Scores) -> None:
    """Check that no video is duplicate: as a test video in a seed, else in a part of a fold and seed.

    Raises: RunError naming the video.
    """
    seen: set[tuple[object, ...]] = set()
    rows = zip(scores.video_ids, scores.part, scores.fold, scores.seed, strict=True)
    for video_id, part, fold, seed in rows:
        key = (video_id, part, seed) if part == "test" else (video_id, part, seed, fold)
        if key in seen:
            raise RunError(f"duplicate {video_id} in the {part} scores of seed {seed} (again in fold {fold})")
        seen.add(key)


def select_part(scores: Scores, part: str) -> Scores:
    """Return the rows of `train`, `val` or `test`. Raises: RunError if there are none."""
    rows = [row for row, value in enumerate(scores.part) if value == part]
    if not rows:
        raise RunError(f"there are no {part} scores; there are: {', '.join(sorted(set(scores.part))) or 'none'}")
    return scores.select(rows)
