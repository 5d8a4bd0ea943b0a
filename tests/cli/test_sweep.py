"""What `har sweep` writes above its plot."""

from __future__ import annotations

from pathlib import Path

import pytest
from feature_sets import blobs, feature_store
from typer.testing import CliRunner

from har_pipeline.cli import app


@pytest.mark.parametrize(("split", "title"), [("1", "group_kfold, split 1"), ("all", "group_kfold, splits 0 to 2")])
def test_the_plot_names_protocol_and_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, title: str
) -> None:
    features, labels = blobs(("running", "walking"), 6, dim=4)
    feature_store(tmp_path / "store.zarr", features)
    rows = [f"{v},{label},videos/{v}.avi,s{v[-1]}" for v, label in labels.items()]
    (tmp_path / "manifest.csv").write_text("video_id,label,path,subject\n" + "\n".join(rows) + "\n")
    titles: list[object] = []
    monkeypatch.setattr(
        "har_pipeline.training.sweep_table.save_sweep_curves", lambda *given, **words: titles.append(words["title"])
    )
    command = ["sweep", str(tmp_path / "manifest.csv"), str(tmp_path / "store.zarr"), "-o", str(tmp_path / "out")]
    options = ["--protocol", "group_kfold", "--num-folds", "3", "--split", split, "--set", "logistic_c=1,2"]
    result = CliRunner().invoke(app, [*command, *options, "--head", "mean_pool", "--workers", "1", "--device", "cpu"])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    assert titles == [title]
