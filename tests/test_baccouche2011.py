"""The experiment of Baccouche 2011, whole, on a few short videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from experiments import load
from video_files import make_video

from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.evaluation.run_folder import read_run


@pytest.mark.slow
@pytest.mark.usefixtures("pictures_drawn")
def test_both_stages_on_every_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load("baccouche2011")
    records = [
        VideoRecord(
            video_id=f"p{person}{label}",
            label=label,
            subject=f"person{person:02d}",
            path=make_video(tmp_path / f"p{person}{label}.avi", 12, seed=person),
        )
        for person in range(4)
        for label in "ab"
    ]
    write_manifest(tmp_path / "m.csv", records, root=tmp_path)
    monkeypatch.setattr(pipeline, "SPLITS", 2)
    net = dataclasses.replace(pipeline.NET, epochs=1, device="cpu")
    lstm = dataclasses.replace(pipeline.LSTM, epochs=1, device="cpu")
    result = pipeline.run(tmp_path / "m.csv", tmp_path / "out", False, 0.5, net, lstm)
    assert (result["videos"], result["people"]) == (8, 4)
    for system in ("3D-ConvNet + Voting", "3D-ConvNet + soft voting", "3D-ConvNet + LSTM", "Harris-3D + LSTM"):
        assert len(result[system]["splits"]) == 2
        assert result[system]["low"] <= result[system]["mean"] <= result[system]["high"]
    assert (tmp_path / "out" / "figure2.png").stat().st_size > 5_000
    heads = [read_run(tmp_path / "out" / "lstm" / f"split{number}") for number in range(2)]
    nets = [read_run(tmp_path / "out" / "convnet3d" / f"split{number}") for number in range(2)]
    for head, net_run in zip(heads, nets, strict=True):
        assert head.split == net_run.split
        assert head.spec.trained_on is not None
        assert head.spec.trained_on.split == head.split.index
    assert heads[0].feature_set != heads[1].feature_set
    assert pipeline.run(tmp_path / "m.csv", tmp_path / "out", False, 0.5, net, lstm) == result
