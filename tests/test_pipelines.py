"""Each experiment, whole, on a small tree with the data set's own file names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from video_files import make_video

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PIPELINES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kth_tree(root: Path) -> list[str]:
    for person in (1, 2, 3, 11):
        for k, action in enumerate(("boxing", "walking", "running")):
            make_video(root / action / f"person{person:02d}_{action}_d1_uncomp.avi", 5, seed=10 * k + person)
    return []


def ucf11_tree(root: Path) -> list[str]:
    for group in (1, 2, 3):
        for k, label in enumerate(("biking", "diving")):
            for clip in (1, 2):
                path = root / label / f"v_{label}_{group:02d}" / f"v_{label}_{group:02d}_{clip:02d}.mpg"
                make_video(path, 6, codec="mpeg1video", seed=10 * k + group)
    return []


def hmdb51_tree(root: Path) -> list[str]:
    lists = root.parent / "lists"
    lists.mkdir()
    for k, label in enumerate(("wave", "pour")):
        names = [f"film{i}_{label}_u_nm_np1_fr_med_0.avi" for i in range(6)]
        for i, name in enumerate(names):
            make_video(root / label / name, 5, seed=10 * k + i)
        for number in (1, 2, 3):
            lines = [f"{name} {2 if i % 3 == number - 1 else 1} " for i, name in enumerate(names)]
            (lists / f"{label}_test_split{number}.txt").write_text("\n".join(lines) + "\n")
    return ["--splits", str(lists)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "tree", "folds"), [("kth", kth_tree, 1), ("ucf11", ucf11_tree, 3), ("hmdb51", hmdb51_tree, 3)]
)
def test_orozco2020(dataset: str, tree: object, folds: int, tmp_path: Path) -> None:
    pipeline = load("orozco2020")
    more = tree(tmp_path / "data")  # type: ignore[operator]
    published = pipeline.PAPER[dataset][1]
    command = [dataset, str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--extractor", "efficientnet_lite0"]
    command += ["--units", "4", str(published), "--epochs", "2", "--device", "cpu", *more]
    options = pipeline.parse(command)
    result = pipeline.run(options)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert [row["units"] for row in stored["sweep"]] == [4, published]
    assert all(row["folds"] == folds and 0 <= row["accuracy"] <= 1 for row in stored["sweep"])
    assert stored["ours at the published n_u"] == stored["sweep"][1]["accuracy"]
    assert stored["without features"] == []
    assert (tmp_path / "out" / "units.png").stat().st_size > 5000
    assert "Orozco 2020" in (tmp_path / "out" / "report.html").read_text()
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("run.json")}
    assert len(runs) == 2 * folds
    pipeline.run(options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("run.json")} == runs


@pytest.mark.slow
def test_synthetic_demo(tmp_path: Path) -> None:
    result = load("synthetic_demo").run(tmp_path / "out", 2, 0.0, "cpu")
    assert set(result["accuracy"]) == {"mean_pool", "lstm", "lstm_flow", "product"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
