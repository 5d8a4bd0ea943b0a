"""What commands on results load: wrong paths are reported before anything heavy is imported, and no run needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from train_split import train_split
from video_files import make_video

from har_pipeline.training.options import TrainConfig

HEAVY = ["torch", "matplotlib", "zarr", "scipy", "sklearn"]
OTHER_NETS = ["torchvision", "torch._dynamo", "torch._inductor", "timm", "transformers", "pytorchvideo"]

# Runs the commands given as JSON one after the other and prints for each: exit code, stderr, heavy modules loaded so far.
SCRIPT = """
import contextlib, io, json, sys
from har_pipeline.cli import main

found, (commands, heavy) = [], map(json.loads, sys.argv[1:])
for command in commands:
    sys.argv = ["har", *command]
    code, err = 0, io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    found.append((code, err.getvalue(), [name for name in heavy if name in sys.modules]))
print(json.dumps(found))
"""


def run_all(commands: list[list[str]], cwd: Path, heavy: list[str] = HEAVY) -> list[tuple[int | str, str, list[str]]]:
    """Return (exit code or message, stderr, heavy modules loaded) after each command, all in one process."""
    call = [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(heavy)]
    done = subprocess.run(call, cwd=cwd, capture_output=True, text=True, check=True)
    return [(code, err, loaded) for code, err, loaded in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `a` and `b`, a manifest, and a folder without runs, `empty`."""
    folder = tmp_path_factory.mktemp("light")
    features, labels = blobs(["x", "y"], 4)
    store, name = feature_store(folder / "store.zarr", features)
    split = split_of([v for v in labels if v[-1] in "01"], [v for v in labels if v[-1] in "23"])
    for run in ("a", "b"):
        train_split(store, name, manifest(labels), split, TrainConfig(head="mean_pool", device="cpu"), folder / run)
    (folder / "m.csv").write_text("video_id,label,path\nv,x,v.avi\n")
    (folder / "empty").mkdir()
    return folder


def test_wrong_paths_are_reported_before_anything_heavy_is_loaded(work: Path) -> None:
    wrong = {
        ("evaluate", "nothing"): "nothing does not exist",
        ("evaluate", "m.csv"): "m.csv is not a run folder",
        ("evaluate", "empty"): "empty is not a run folder",
        ("evaluate", "a", "--groups", "nothing.csv"): "groups nothing.csv: no such file",
        ("evaluate", "nothing", "--time", "--manifest", "m.csv"): "nothing does not exist",
        ("evaluate", "a", "--live", "--manifest", "nothing.csv"): "nothing.csv",
        ("fuse", "nothing", "a"): "nothing does not exist",
        ("fuse", "a", "nothing"): "nothing does not exist",
        ("compare", "a", "nothing"): "nothing does not exist",
        ("compare", "empty", "a"): "empty is not a run folder",
        ("compare", "a", "b", "--groups", "nothing.csv"): "groups nothing.csv: no such file",
        ("predict", "v.avi", "--run", "nothing"): "nothing does not exist",
        ("predict", "v.avi", "--run", "empty"): "empty is not a run folder",
        ("predict", "--live", "v.avi", "--run", "nothing"): "nothing does not exist",
        ("predict", "--live", "nothing.avi", "--run", "a"): "nothing.avi: does not exist",
    }
    found = run_all([list(command) for command in wrong], work)
    for (command, says), (message, _, loaded) in zip(wrong.items(), found, strict=True):
        assert says in str(message), command
        assert str(message).startswith("error: "), command
        assert "\n" not in str(message), command
        assert not loaded, command


def test_help_imports_no_command_and_a_command_only_its_own(work: Path) -> None:
    ours = [f"har_pipeline.{name}" for name in ("cli.extract", "cli.train", "cli.splits", "training", "datasets")]
    for words in (["--help"], ["--version"], ["nothing"], []):
        (_, _, loaded), *_ = run_all([words], work, ["numpy", *ours])
        assert not loaded, words
    (code, _, loaded), *_ = run_all([["splits", "show", "--help"]], work, ["numpy", *ours])
    assert (code, loaded) == (0, ["har_pipeline.cli.splits", "har_pipeline.datasets"])


def test_runs_are_evaluated_fused_and_compared_without_torch(work: Path) -> None:
    commands = [["evaluate", "a"], ["fuse", "a", "b"], ["compare", "a", "b"], ["evaluate", "fusion"]]
    for code, err, loaded in run_all(commands, work):
        assert code == 0, err
        assert not {"torch", "zarr", "sklearn"} & set(loaded)


def test_nets_are_listed_without_torch(work: Path) -> None:
    commands = [["models"], ["models", "i3d"], ["models", "--json"], ["models", "nothing"]]
    *found, (code, err, loaded) = run_all(commands, work)
    for ended, _, held in found:
        assert (ended, held) == (0, [])
    assert (code, loaded) == (2, [])
    assert "unknown extractor 'nothing'" in err


def test_extraction_imports_no_library_that_its_net_does_not_need(tmp_path: Path) -> None:
    """torchvision, and torch._dynamo, which it pulls in, take nearly as long as torch itself."""
    (tmp_path / "m.csv").write_text("video_id,label,path\nv,x,v.avi\n")
    make_video(tmp_path / "v.avi", 4)
    extract = ["extract", "m.csv", "s.zarr", "--num-clips", "2", "--device", "cpu"]
    for code, err, loaded in run_all([extract, extract], tmp_path, OTHER_NETS):
        assert (code, loaded) == (0, []), err


def test_what_nets_are_is_known_without_their_libraries() -> None:
    """As an extraction needs it that finds everything there."""
    script = f"""
import sys
from har_pipeline import all_nets, build_extractor
for net in all_nets().values():
    for stream in net.inputs:
        build_extractor(net.name, stream=stream, weights="random", device="cpu", at_once=False)
print([name for name in {OTHER_NETS} if name in sys.modules])
build_extractor("r3d_18", weights="random", device="cpu")
print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True"]
