"""Nets of timm and transformers on the command line: extract, train, predict."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import transformers
from har_command import har
from safetensors.torch import save_file
from video_files import make_video

from har_pipeline.features.store import FeatureStore

FEW = ("--num-clips", "2", "--workers", "1", "--json")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short videos of two classes, a VideoMAE in a folder, and a resnet18 in a file."""
    folder = tmp_path_factory.mktemp("backbones_cli")
    rows = ["video_id,label,path,split"]
    for number in range(4):
        make_video(folder / f"{number}.avi", 12, seed=number)
        rows.append(f"v{number},{'ab'[number % 2]},{number}.avi,{'train' if number < 2 else 'test'}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.VideoMAEConfig(**sizes, image_size=32, num_frames=4)
    transformers.VideoMAEForVideoClassification(config).save_pretrained(folder / "videomae")
    square = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    transformers.VideoMAEImageProcessor(**square).save_pretrained(folder / "videomae")
    save_file(timm.create_model("resnet18").state_dict(), folder / "resnet18.safetensors")
    return folder


def chain(work: Path, extractor: str, *weights: str) -> tuple[str, str, list[dict[str, object]]]:
    """Return the feature set, the run, and what it says of a video."""
    made = har("extract", "manifest.csv", "store.zarr", "--extractor", extractor, *weights, *FEW, cwd=work)
    name = json.loads(made.stdout)["feature_set"]
    run = f"run-{name}"
    fast = ("--protocol", "column", "--epochs", "1", "--head", "mean_pool", "-o", run)
    har("train", "manifest.csv", "store.zarr", "--features", name, *fast, cwd=work)
    return name, run, predicted(work, run)


def predicted(work: Path, run: str, *options: str) -> list[dict[str, object]]:
    shown = har("predict", "3.avi", "--run", run, *options, "--json", cwd=work).stdout
    found: list[dict[str, object]] = json.loads(shown)
    return found


def test_a_videomae_from_a_folder_is_extracted_trained_and_predicted_with(work: Path, tmp_path: Path) -> None:
    name, run, first = chain(work, "hf:videomae")
    assert name.startswith("hf-videomae-rgb-")
    spec = FeatureStore(work / "store.zarr").spec(name)
    assert (spec.layer, spec.resize, spec.feature_dim, spec.clips.clip_len) == ("fc_norm", "short36-center32", 32, 4)
    (listed,) = json.loads(har("models", "hf:videomae", "--json", cwd=work).stdout)
    assert spec.weights == f"sha256:{listed['sha256']}"
    # The folder elsewhere is the same feature set, and is found there; once it is gone, the line says what to give.
    shutil.move(work / "videomae", tmp_path / "moved")
    again = har("extract", "manifest.csv", "store.zarr", "--extractor", f"hf:{tmp_path / 'moved'}", *FEW, cwd=work)
    assert json.loads(again.stdout)["feature_set"] == name
    assert json.loads(again.stdout)["already"] == 4
    assert predicted(work, run) == first
    shutil.move(tmp_path / "moved", work / "videomae")
    error = har("predict", "3.avi", "--run", run, cwd=work, code=1).stderr
    assert f"nor at {tmp_path / 'moved'}, where they were used last: give the folder with --weights FOLDER" in error
    assert predicted(work, run, "--weights", "videomae") == first
    card = har("card", run, cwd=work).stdout
    assert "Extractor: hf-videomae, layer fc_norm" in card
    assert "Licence of the weights: not recorded" in card


def test_a_model_of_timm_is_extracted_trained_and_predicted_with(work: Path) -> None:
    name, run, first = chain(work, "timm:resnet18", "--weights", "resnet18.safetensors")
    assert name.startswith("timm-resnet18-rgb-")
    spec = FeatureStore(work / "store.zarr").spec(name)
    assert (spec.layer, spec.resize, spec.feature_dim) == ("pooled", "short235-middle224", 512)
    assert predicted(work, run, "--weights", "resnet18.safetensors") == first


def test_random_weights_of_timm_are_drawn_again(work: Path) -> None:
    name, _, _ = chain(work, "timm:resnet18", "--weights", "random")
    assert FeatureStore(work / "store.zarr").spec(name).weights == "random:0"


def test_what_there_is_not_is_one_line(work: Path) -> None:
    def error(*arguments: str, code: int) -> str:
        return " ".join(har(*arguments, cwd=work, code=code).stderr.replace("│", " ").split())

    extract = ("extract", "manifest.csv", "new.zarr", "--extractor")
    assert "did you mean 'resnet18'?" in error(*extract, "timm:resnt18", code=2)
    assert "unknown extractor 'timm:'; choose from: c3d," in error(*extract, "timm:", code=2)
    assert "./videomea is absent, neither a folder" in error(*extract, "hf:./videomea", code=1)
    assert "takes clips of 4 to 4 frames, not 8" in error(*extract, "hf:videomae", "--clip-len", "8", code=2)
    assert "reads rgb, not flow" in error(*extract, "hf:videomae", "--stream", "flow", code=2)
    assert "omit --weights random" in error(*extract, "hf:videomae", "--weights", "random", code=2)


def test_har_models_shows_them(work: Path) -> None:
    (shown,) = json.loads(har("models", "hf:videomae", "--json", cwd=work).stdout)
    assert (shown["net"], shown["default_layer"], shown["input"]) == ("hf-videomae", "fc_norm", "4x32x32")
    text = har("models", "timm:resnet18", cwd=work).stdout
    assert "layers: pooled 512 (default), logits 1,000, conv1 64," in text
    assert re.search(r", and \d+ more$", text, re.MULTILINE)
    (fetched,) = json.loads(har("models", "fetch", "hf:videomae", "--json", cwd=work).stdout)
    assert Path(fetched["path"]).name == "videomae"
    assert fetched["sha256"] == shown["sha256"]  # as it stands in the spec of features
    assert f"from videomae, sha256 {shown['sha256']}" in har("models", "hf:videomae", cwd=work).stdout
