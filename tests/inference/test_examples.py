"""Pictures of scored videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from video_files import make_video, read_number

from har_pipeline.core.records import Scores, VideoRecord
from har_pipeline.evaluation.plots import Example
from har_pipeline.inference import examples
from har_pipeline.inference.examples import right_and_wrong, save_examples


def drawn(ids: list[str], labels: list[str], probabilities: list[list[float]]) -> Scores:
    count = len(ids)
    return Scores(
        video_ids=tuple(ids),
        labels=tuple(labels),
        classes=("box", "run", "wave"),
        probabilities=np.array(probabilities),
        part=("test",) * count,
        fold=(0,) * count,
        seed=(0,) * count,
    )


def test_right_and_wrong_rows_are_spread_over_the_ids() -> None:
    ids = [f"v{number:02d}" for number in range(19, -1, -1)]
    # The upper ten are right.
    rows = [[0.5, 0.3, 0.2] if video_id >= "v10" else [0.3, 0.5, 0.2] for video_id in ids]
    right, wrong = right_and_wrong(drawn(ids, ["box"] * 20, rows), 4)
    assert right.video_ids == ("v10", "v13", "v16", "v19")
    assert wrong.video_ids == ("v00", "v03", "v06", "v09")
    everything, nothing = right_and_wrong(drawn(["a", "b"], ["box"] * 2, [[0.5, 0.3, 0.2]] * 2), 4)
    assert (everything.video_ids, nothing.video_ids) == (("a", "b"), ())


@pytest.mark.parametrize("truth", [False, True])
@pytest.mark.usefixtures("pictures_drawn")
def test_frames_come_from_the_videos_own_range(truth: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KTH's sequences are parts of files."""
    path = make_video(tmp_path / "v.avi", 40, codec="ffv1")
    records = [
        VideoRecord(video_id="whole", label="run", path=path),
        VideoRecord(video_id="part", label="box", path=path, start_frame=10, end_frame=20),
    ]
    scores = drawn(["part", "whole"], ["box", "run"], [[0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    shown: list[Example] = []
    monkeypatch.setattr(examples, "save_topk_bars", lambda path, found: shown.extend(found))
    save_examples(tmp_path / "x.png", scores, records, top=2, truth=truth)
    assert [read_number(frame) for frame in shown[0].frames] == [10, 13, 16, 19]
    assert read_number(shown[1].frames[0]) == 0
    assert [one.best for one in shown] == [[("run", 0.7), ("box", 0.2)], [("wave", 0.6), ("run", 0.3)]]
    assert [one.truth for one in shown] == (["box", "run"] if truth else [None, None])
    monkeypatch.undo()
    save_examples(tmp_path / "x.png", scores, records, truth=truth)
    assert (tmp_path / "x.png").stat().st_size > 5000
