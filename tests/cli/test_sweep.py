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


@pytest.mark.parametrize(
    ("heads", "more", "told"), [("svm,lstm", [], True), ("svm,lstm", ["false"], False), ("svm,linear", [], False)]
)
def test_heads_of_unlike_scaling_are_told(tmp_path: Path, heads: str, more: list[str], told: bool) -> None:
    """Otherwise a comparison of res_lstm with stacked_lstm would be one of plain with scaled features as well."""
    features, labels = blobs(("running", "walking"), 6, dim=4)
    feature_store(tmp_path / "store.zarr", features)
    rows = [f"{v},{label},videos/{v}.avi,s{v[-1]}" for v, label in labels.items()]
    (tmp_path / "manifest.csv").write_text("video_id,label,path,subject\n" + "\n".join(rows) + "\n")
    command = ["sweep", str(tmp_path / "manifest.csv"), str(tmp_path / "store.zarr"), "-o", str(tmp_path / "out")]
    command += [text for value in more for text in ("--set", f"standardise={value}")]
    result = CliRunner().invoke(app, [*command, "--head", heads, "--workers", "1", "--device", "cpu", "--json"])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    line = "NOTE: features are scaled for svm and plain for lstm, the default of each; --set standardise=false: plain for all"
    assert (line in result.stderr) == told
    assert ("features are scaled" in result.stderr) == told


def test_feature_sets_are_swept_by_set_as_well(tmp_path: Path) -> None:
    """A note that holds for one of them names it."""
    features, labels = blobs(("running", "walking"), 6, dim=4)
    one_step = {video_id: rows[:1] for video_id, rows in features.items()}
    for name, rows, weights in (("many", features, "a"), ("one", one_step, "b")):
        store, made = feature_store(tmp_path / "store.zarr", rows, weights="sha256:" + weights * 64)
        store.give_name(made, name)
    rows = [f"{v},{label},videos/{v}.avi,s{v[-1]}" for v, label in labels.items()]
    (tmp_path / "manifest.csv").write_text("video_id,label,path,subject\n" + "\n".join(rows) + "\n")
    command = ["sweep", str(tmp_path / "manifest.csv"), str(tmp_path / "store.zarr"), "-o", str(tmp_path / "out")]
    options = ["--set", "features=many,one", "--set", "epochs=1", "--workers", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    notes = [line for line in result.stderr.splitlines() if "sequence of one step" in line]
    assert [line.split(": ")[:2] for line in notes] == [["NOTE", "features_one"]]
