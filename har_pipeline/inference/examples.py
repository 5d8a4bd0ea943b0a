"""Pictures of scored videos: frames above, the most probable classes below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from har_pipeline.core.records import Scores, VideoRecord
from har_pipeline.evaluation.plots import Example, save_topk_bars
from har_pipeline.inference.predict import sample_frames

FRAMES = 4


def save_examples(
    path: Path, scores: Scores, records: Sequence[VideoRecord], *, top: int = 3, truth: bool = False
) -> None:
    """Draw, for each row of the scores, four frames of the video and its `top` most probable classes as bars (PNG).

    records: with the videos' files. truth: show the true class as well. Raises: VideoError if a file cannot be read.
    Source: Orozco 2020, figure 7; with the truth Lakhal 2018, figure 4.
    """
    by_id = {record.video_id: record for record in records}
    examples = []
    for video_id, label, probabilities in zip(scores.video_ids, scores.labels, scores.probabilities, strict=True):
        record = by_id[video_id]
        assert record.path is not None
        frames = sample_frames(record.path, FRAMES, record)
        order = np.argsort(-probabilities, kind="stable")[:top]
        best = [(scores.classes[k], float(probabilities[k])) for k in order]
        examples.append(Example(frames, best, video_id, label if truth else None))
    save_topk_bars(path, examples)


def right_and_wrong(scores: Scores, count: int) -> tuple[Scores, Scores]:
    """Return up to `count` rows whose most probable class is right, and as many that are wrong; each spread over all ids."""
    order = sorted(range(len(scores.video_ids)), key=lambda row: scores.video_ids[row])
    said = scores.probabilities.argmax(axis=1)
    right = [row for row in order if scores.classes[said[row]] == scores.labels[row]]
    wrong = [row for row in order if row not in set(right)]
    return scores.select(_spread(right, count)), scores.select(_spread(wrong, count))


def _spread(rows: Sequence[int], count: int) -> list[int]:
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in places]
