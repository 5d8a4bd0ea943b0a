"""What a command was given is checked before anything heavy loads, and light commands never load it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from feature_sets import blobs, feature_store
from har_command import har

from har_pipeline.core.errors import ExtractionError
from har_pipeline.features.store import FeatureStore
from har_pipeline.models.net_names import net_names

# Runs commands one after another, each as `har` does, and tells of each what it wrote, its exit code, and if torch is loaded.
CODE = """
import contextlib, io, json, sys
from har_pipeline.cli import main
answers = {}
for command in json.load(sys.stdin):
    sys.argv = ["har", *command.split()]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    answers[command] = (f"{text.getvalue()}{code}", 1 if isinstance(code, str) else code, "torch" in sys.modules)
print(json.dumps(answers))
"""
WRONG = [
    ("manifest build folder nowhere -o out.csv", 1, "nowhere"),
    ("manifest check nowhere.csv", 1, "nowhere.csv"),
    ("splits show nowhere.csv", 1, "nowhere.csv"),
    ("splits show m.csv --protocol kth", 2, "unknown protocol 'kth'; did you mean 'kth_original'?"),
    ("splits write m.csv -o splits --protocol kth", 2, "unknown protocol 'kth'; did you mean 'kth_original'?"),
    ("features list nowhere.zarr", 1, "not a feature store"),
    ("features show s.zarr --features vgg", 1, "starts with 'vgg'"),
    ("features verify s.zarr --features vgg", 1, "starts with 'vgg'"),
    ("features pack s.zarr --features vgg", 1, "starts with 'vgg'"),
    ("features reduce nowhere.zarr --manifest m.csv --dim 2", 1, "not a feature store"),
    ("features reduce s.zarr --manifest nowhere.csv --dim 2", 1, "nowhere.csv"),
    ("features reduce s.zarr --manifest m.csv --dim 2 --features vgg", 1, "starts with 'vgg'"),
    ("features encode nowhere.zarr --manifest m.csv", 1, "not a feature store"),
    ("features encode s.zarr --manifest nowhere.csv", 1, "nowhere.csv"),
    ("features encode s.zarr --manifest m.csv --features vgg", 1, "starts with 'vgg'"),
    ("features encode s.zarr --manifest m.csv --gaussians 0", 2, "--gaussians"),
    ("extract nowhere.csv s.zarr", 1, "nowhere.csv"),
    ("extract m.csv s.zarr --extractor vgg", 2, "unknown extractor 'vgg'; did you mean 'vgg16'?"),
    ("extract m.csv videos", 1, "choose another path"),
    ("extract m.csv s.zarr --shard 3/2", 2, "--shard"),
    ("extract m.csv s.zarr --root nowhere", 1, "nowhere is not a folder"),
    ("extract m.csv s.zarr --weights nowhere.pth", 2, "no such file"),
    ("extract m.csv s.zarr --extractor c3d --mean-cube nowhere.npy", 2, "no such file"),
    ("flow videos -o out.mp4", 1, "is a folder, not a video file"),
    ("flow videos/running/a.avi -o out.txt", 2, "out.txt: give a video a name that ends in .mp4 or .avi"),
    ("export run -o model.txt", 2, "model.txt: give a name that ends in .onnx"),
    ("frames m.csv none.zarr", 1, "no row of the manifest has a depth_path"),
    ("features list none.zarr", 1, "none.zarr is not a feature store"),  # that job left none
    ("train m.csv empty.zarr", 1, "empty.zarr holds no feature set; make one with `har extract`"),
    ("train m.csv s.zarr -o m.csv", 2, "is a file: name a folder"),
    ("splits write m.csv -o m.csv", 2, "is a file: name a folder"),
    ("synth m.csv", 2, "is a file: name a folder"),
    ("flow nowhere.mp4 -o out.mp4", 1, "nowhere.mp4"),
    ("frames nowhere.csv s.zarr", 1, "nowhere.csv"),
    ("frames m.csv videos --stream rgb", 1, "choose another path"),
    ("train nowhere.csv s.zarr", 1, "nowhere.csv"),
    ("train m.csv nowhere.zarr", 1, "not a feature store"),
    ("train m.csv s.zarr --features vgg", 1, "starts with 'vgg'"),
    ("train m.csv s.zarr --protocol kth", 2, "unknown protocol 'kth'; did you mean 'kth_original'?"),
    ("train m.csv s.zarr --split 7", 2, "--split must be all or one of"),
    ("train m.csv s.zarr --split-file nowhere.json", 1, "nowhere.json"),
    ("train m.csv s.zarr --head vote --num-layers 2", 2, "--num-layers belongs to"),
    ("train-video nowhere.csv", 1, "nowhere.csv"),
    ("train-video m.csv --protocol kth", 2, "unknown protocol 'kth'; did you mean 'kth_original'?"),
    ("train-video m.csv --protocol column --store videos", 1, "not a feature store"),
    ("train-video m.csv --protocol column --store s.zarr --features vgg", 1, "start with 'vgg'"),
    ("lr-range nowhere.csv", 1, "nowhere.csv"),
    ("lr-range m.csv --protocol column --store s.zarr --features vgg", 1, "start with 'vgg'"),
    ("sweep nowhere.csv s.zarr --units 2,4", 1, "nowhere.csv"),
    ("sweep m.csv nowhere.zarr --units 2,4", 1, "not a feature store"),
    ("sweep m.csv s.zarr --units 2,4 --features vgg", 1, "starts with 'vgg'"),
    ("sweep m.csv s.zarr --units 2,4 --set features=vgg", 1, "starts with 'vgg'"),
    ("fuse run", 2, "give two runs or more"),
    ("sweep m.csv s.zarr --set units", 2, "write NAME=VALUE"),
    ("sweep m.csv s.zarr --set unit=2,4", 2, "'unit' cannot be swept; did you mean 'units'?"),
    ("sweep m.csv s.zarr --set dropout=much", 2, "'much' is not float"),
    ("sweep m.csv s.zarr --head lstm,telepathy", 2, "'telepathy' is not one of"),
    ("train-video m.csv --protocol xsub", 1, "xsub: running-0: subject must be 1 to 40"),
    ("lr-range m.csv --protocol xsub", 1, "xsub: running-0: subject must be 1 to 40"),
    ("sweep m.csv s.zarr --dropout 0,0.5", 2, "--dropout is swept as --set dropout=VALUE,VALUE"),
    ("sweep m.csv s.zarr --seeds 3", 2, "No such option: --seeds"),
    # One thing given in the place of another.
    ("train s.zarr m.csv", 1, "s.zarr is a feature store, not a manifest (a CSV file)"),
    ("sweep s.zarr m.csv --units 2", 1, "s.zarr is a feature store, not a manifest"),
    ("extract s.zarr m.csv", 1, "s.zarr is a feature store, not a manifest"),
    ("splits show videos", 1, "videos is a folder, not a manifest (a CSV file); create a manifest of it with"),
    ("train videos/running/a.avi s.zarr", 1, "a.avi is a video file, not a manifest"),
    ("train m.csv m.csv", 1, "m.csv is a manifest, not a feature store"),
    ("extract m.csv run", 1, "run is a run folder, not a feature store: choose another path"),
    ("train m.csv run", 1, "run is a run folder, not a feature store"),
    ("features list run", 1, "run is a run folder, not a feature store"),
    ("features pack m.csv", 1, "m.csv is a manifest, not a feature store"),
    ("evaluate s.zarr", 1, "s.zarr is not a run folder but a feature store; make one with"),
    ("compare s.zarr m.csv", 1, "s.zarr is not a run folder but a feature store"),
    ("predict videos/running/a.avi --run m.csv", 1, "m.csv is not a run folder but a manifest"),
    ("train m.csv s.zarr --split-file m.csv", 1, "m.csv: not a split file but a manifest"),
    ("manifest build folder m.csv -o o.csv", 1, "m.csv is a manifest, not a folder"),
    ("manifest build folder videos -o videos", 2, "videos is a folder: name a file, such as videos/manifest.csv"),
    ("splits write m.csv -o s.zarr", 2, "s.zarr is a feature store: name another folder"),
    ("synth s.zarr", 2, "s.zarr is a feature store: name another folder"),
    ("flow videos/running/a.avi -o videos", 2, "videos is a folder: name a file"),
    ("extract depth.csv d.zarr", 1, "name depth (depth_path) and no colour videos (path)"),
    ("extract depth.csv d.zarr", 1, "`har frames depth.csv d.zarr` prepares"),
    ("extract depth.csv d.zarr --extractor idt", 1, "`har frames depth.csv d.zarr` prepares"),
    # Names that resemble another.
    ("manifest build kht videos -o o.csv", 2, "'utd_mhad'. Did you mean 'kth'?"),
    ("train m.csv s.zarr --head lstmm", 2, "Did you mean 'lstm'?"),
    ("train m.csv s.zarr --protocol hold-outs", 2, "unknown protocol 'hold-outs'; did you mean 'holdout'?"),
    ("train m.csv s.zarr --features dravn", 1, "did you mean 'drawn"),
    ("evaluate run --part tests", 2, "'tests' is not one of 'test', 'val'"),
    ("evaluate run --groups ucf10", 1, "groups ucf10: no such file; did you mean 'ucf101'?"),
    ("extract m.csv s.zarr --extractor idt --layer hoof", 2, "idt has no layer 'hoof'"),
    ("manifest bild", 2, "Did you mean 'build'?"),
    ("train m.csv s.zarr --epoch 3", 2, "--epochs"),
]
LIGHT = [
    "features list s.zarr",
    "features show s.zarr",
    "splits show m.csv",
    "splits write m.csv -o out",
    "manifest build folder videos -o o.csv",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    features, labels = blobs(("running", "walking"), 4, dim=3)
    feature_store(folder / "s.zarr", features)
    rows = [f"{v},{label},videos/{v}.avi,s{v[-1]},{'test' if v[-1] == '0' else 'train'}" for v, label in labels.items()]
    (folder / "m.csv").write_text("video_id,label,path,subject,split\n" + "\n".join(rows) + "\n")
    (folder / "depth.csv").write_text("video_id,label,depth_path\na,run,a.mat\n")
    FeatureStore(folder / "empty.zarr", create=True)
    (folder / "run").mkdir()
    (folder / "run/run.json").write_text("{}")
    (folder / "videos/running").mkdir(parents=True)
    (folder / "videos/running/a.avi").touch()
    return folder


@pytest.fixture(scope="module")
def answers(work: Path) -> dict[str, tuple[str, int, bool]]:
    commands = json.dumps([*(command for command, _, _ in WRONG), *LIGHT])
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=work, input=commands, capture_output=True, text=True, check=True
    )
    return {command: tuple(answer) for command, answer in json.loads(done.stdout).items()}


@pytest.mark.parametrize(("command", "code", "says"), WRONG)
def test_a_wrong_name_is_reported_before_torch_loads(
    answers: dict[str, tuple[str, int, bool]], command: str, code: int, says: str
) -> None:
    text, found, torch = answers[command]
    assert says in " ".join(text.replace("│", " ").split())
    assert (found, torch) == (code, False)


@pytest.mark.parametrize("command", LIGHT)
def test_listing_commands_load_no_torch(answers: dict[str, tuple[str, int, bool]], command: str) -> None:
    assert answers[command][1:] == (0, False)


def test_the_names_checked_early_are_those_of_the_nets() -> None:
    from har_pipeline.models.extractors import all_nets

    assert list(net_names()) == sorted(all_nets())


def test_a_decoder_is_looked_for_where_files_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, or on those of a cluster, whose workers say what is missing there."""

    def asked(*_args: object) -> NoReturn:
        raise ExtractionError("the cluster was asked")

    (tmp_path / "m.csv").write_text("video_id,path,label\na,a.avi,x\n")
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setattr("har_pipeline.cli.extract.pool_of", asked)
    command = ["extract", "m.csv", "s.zarr", "--weights", "random", "--decoder", "decord"]
    assert "decord is not installed" in har(*command, cwd=tmp_path, code=1).stderr
    assert "the cluster was asked" in har(*command, "--engine", "ray", cwd=tmp_path, code=1).stderr
