"""Model cards: what a stranger needs to know of a run, read from its folder without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from har_command import har
from paths import python_path
from run_files import change_info
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.report.card import model_card
from har_pipeline.training.options import TrainConfig

SECTIONS = [
    "Intended use",
    "Classes",
    "Training data",
    "Results",
    "How the features were made",
    "How it was trained",
    "Limits",
    "How to use it",
]


def trained(folder: Path, labels: tuple[str, ...] = ("box", "wave"), *, weights: str = "sha256:" + "0" * 64) -> Path:
    features, named = blobs([f"class{number}" for number in range(len(labels))], 4)
    store, name = feature_store(folder / "s.zarr", features, weights=weights)
    records = manifest({video_id: labels[int(label[-1])] for video_id, label in named.items()})
    split = split_of([v for v in named if v[-1] in "012"], [v for v in named if v[-1] == "3"])
    config = TrainConfig(head="lstm", units=4, epochs=2, device="cpu", seed=5)
    train_split(store, name, records, split, config, folder / "run")
    return folder / "run"


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def test_a_card_has_its_sections_and_the_numbers_of_the_evaluation(tmp_path: Path) -> None:
    run = trained(tmp_path)
    before = sorted(path.name for path in run.iterdir())
    card = model_card(run)
    assert sorted(path.name for path in run.iterdir()) == before
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
    found = evaluate(run, write=False)
    assert found.top1 is not None
    assert f"Video accuracy: {found.top1.describe()}" in section(card, "Results")
    assert "| box | 1 | " in section(card, "Results")
    assert "box, wave." in section(card, "Classes")
    assert "6 training, 0 validation, 2 test videos" in section(card, "Training data")
    assert "no person and no group (such as a scene) is in both" in section(card, "Training data")
    how = section(card, "How it was trained")
    assert "- Seed: 5" in how
    assert "| --units | 4 | " in how
    assert "torch" in how
    limits = section(card, "Limits")
    assert "few videos: 3.0 of a class" in limits
    assert "tested on 2 videos only" in limits
    assert "Licence of the weights: unknown" in card
    assert "har predict video.mp4 --run run" in card


def test_weights_are_named_with_their_licence(tmp_path: Path) -> None:
    run = trained(tmp_path)
    info = json.loads((run / "run.json").read_text())
    spec = {**info["feature_spec"], "extractor": "i3d"}
    change_info(run, format=3, feature_spec=spec)
    assert "Licence of the weights: Apache-2.0" in model_card(run)
    assert "if they are published ones" in model_card(run)
    rows = json.loads((Path(sys.modules["har_pipeline"].__path__[0]) / "models/extractors/nets.json").read_text())
    one = next(row for row in rows if row["net"] == "r3d_18")
    spec = {**info["feature_spec"], "extractor": "r3d_18", "weights": f"sha256:{one['sha256']}".ljust(71, "0")}
    change_info(run, format=3, feature_spec=spec)
    assert f"Licence of the weights: {one['licence']}; trained on {one['trained_on']}" in model_card(run)


def test_random_weights_and_a_missing_test_part_are_limits(tmp_path: Path) -> None:
    run = trained(tmp_path, weights="random:0")
    assert "random weights: the predictions mean nothing" in section(model_card(run), "Limits")
    features, labels = blobs(["a", "b"], 3)
    feature_store(tmp_path / "all.zarr", features)
    lines = [f"{video_id},{label},{video_id}.avi" for video_id, label in labels.items()]
    (tmp_path / "m.csv").write_text("\n".join(["video_id,label,path", *lines]))
    har("train", "m.csv", "all.zarr", "--head", "mean_pool", "--protocol", "all", "-o", "final", cwd=tmp_path)
    card = model_card(tmp_path / "final")
    assert "how often it is right is not known" in section(card, "Limits")
    assert "Its accuracy is not known" in section(card, "Results")
    assert "Held out" not in card


def test_names_of_classes_stay_text(tmp_path: Path) -> None:
    card = model_card(trained(tmp_path, ("<script>|*x*", "läuft_weg")))
    assert "<script>" not in card
    assert r"\<script\>\|\*x\*" in card
    assert "läuft_weg" in card


def test_a_card_of_folds_is_of_all_of_them(tmp_path: Path) -> None:
    features, labels = blobs(["a", "b"], 4)
    feature_store(tmp_path / "s.zarr", features)
    lines = [f"{video_id},{label},{video_id}.avi,g{video_id[-1]}" for video_id, label in labels.items()]
    (tmp_path / "m.csv").write_text("\n".join(["video_id,label,path,group", *lines]))
    options = "--head mean_pool --device cpu --protocol leave_one_group_out --split all -o job"
    har(*f"train m.csv s.zarr {options}".split(), cwd=tmp_path)
    card = model_card(tmp_path / "job")
    assert "4 runs of one job" in card
    assert "- Mean over the 4 folds: " in card
    assert "| a | 4 | " in card
    limits = section(card, "Limits").splitlines()
    assert len(limits) == len(set(limits)) + limits.count("") - 1


def test_the_command_writes_or_prints_and_loads_no_torch(tmp_path: Path) -> None:
    trained(tmp_path)
    printed = har("card", "run", cwd=tmp_path).stdout
    assert "written: run/CARD.md" in har("card", "run", "-o", "run/CARD.md", cwd=tmp_path).stdout
    assert (tmp_path / "run/CARD.md").read_text(encoding="utf-8") == printed
    assert "nothing" in har("card", "nothing", cwd=tmp_path, code=1).stderr
    code = "import sys; from har_pipeline.report.card import model_card; model_card('run'); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=python_path(), check=False)
    assert done.returncode == 0
    with pytest.raises(RunError, match="does not exist"):
        model_card(tmp_path / "nothing")
