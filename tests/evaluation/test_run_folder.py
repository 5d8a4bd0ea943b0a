"""Run folders as they are read."""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_sets import blobs, feature_store, manifest, split_of
from malice import malicious_pickle
from paths import python_path
from run_files import change_info
from safetensors.torch import load_file, save
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.evaluation.run_folder import free_run_path, lasting_run_folder, new_run_folder
from har_pipeline.inference.load import load_run
from har_pipeline.training.options import TrainConfig


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    features, labels = blobs(("boxing", "running"), 4)
    store, name = feature_store(tmp_path / "store.zarr", features)
    split = split_of([v for v in labels if int(v[-1]) < 3], [v for v in labels if int(v[-1]) == 3])
    config = TrainConfig(units=4, epochs=1, device="cpu")
    train_split(store, name, manifest(labels), split, config, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_of_an_older_version_loads_with_the_defaults_of_what_it_lacks(run_dir: Path) -> None:
    options = json.loads((run_dir / "run.json").read_text())["options"]
    of_old = ("head", "units", "epochs", "batch_size", "optimizer", "learning_rate", "output", "dropout", "seed")
    change_info(run_dir, options={name: options[name] for name in of_old})
    run = load_run(run_dir)
    assert (run.config.temporal_jitter, run.config.mid_fusion) == (0, None)
    # The names of its weights.
    assert {"encoder.lstm.weight_ih_l0", "classifier.bias"} <= run.head.state_dict().keys()
    assert run.streams[0].feature_set == run.feature_set


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_steps": None}, ""),
        ({"num_steps": 1}, ""),
        ({"num_steps": 2}, "num_steps 2 took other clips: an older version rounded their places"),
        ({"mid_fusion": "hidden", "standardise": True}, ""),
        (
            {"mid_fusion": "input", "fusion_op": "product"},
            "scaled, if at all, each stream: an older .* before their product",
        ),
        (
            {"mid_fusion": "hidden", "fusion_op": "product", "standardise": True},
            "each stream: an older version did so before",
        ),
    ],
)
def test_a_run_of_an_older_version_with_other_rules_says_so_and_does_not_predict(
    run_dir: Path, changes: dict[str, Any], told: str
) -> None:
    info = json.loads((run_dir / "run.json").read_text())
    change_info(run_dir, options={**info["options"], **changes}, format=2)
    assert any("older version" in note for note in evaluate(run_dir).notes) == bool(told)
    # Such weights are not of two streams, whatever is said of them.
    says = f"{told}.*; train it again" if told else "two or more feature sets|2 streams|mid fusion needs"
    with pytest.raises(RunError, match=says) if told or "mid_fusion" in changes else contextlib.nullcontext():
        load_run(run_dir)
    change_info(run_dir, options=info["options"], format=3)
    assert not any("older version" in note for note in evaluate(run_dir).notes)
    load_run(run_dir)


def test_options_that_do_not_fit_the_weights_are_an_error(run_dir: Path) -> None:
    options = json.loads((run_dir / "run.json").read_text())["options"]
    change_info(run_dir, options={**options, "mid_fusion": "input"}, format=3)
    with pytest.raises(RunError, match="two or more feature sets"):
        load_run(run_dir)
    change_info(run_dir, options={**options, "head": "gru"})
    with pytest.raises(RunError, match="not the weights of this run"):
        load_run(run_dir)
    change_info(run_dir, options={**options, "head": "telepathy"})
    with pytest.raises(RunError, match="malformed"):
        load_run(run_dir)


def test_what_a_killed_process_left_is_removed_and_a_living_ones_folder_stays(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from har_pipeline.evaluation.run_folder import lasting_run_folder, new_run_folder\n"
        "with new_run_folder(Path(sys.argv[1]), overwrite=True) as folder:\n"
        "    (folder / 'head.safetensors').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    for name in ("run", "run2"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False, env=python_path())
    (other,) = tmp_path.glob(".run2.partial-*")
    (tmp_path / ".run.partial-notes").mkdir()
    with (
        new_run_folder(tmp_path / "run", overwrite=False) as folder,
        new_run_folder(tmp_path / "run", overwrite=False) as second,
    ):
        (folder / "run.json").write_text("{}")
        assert {path.name for path in tmp_path.iterdir()} == {
            folder.name,
            second.name,
            other.name,
            ".run.partial-notes",
        }
    assert {path.name for path in tmp_path.iterdir()} == {"run", other.name, ".run.partial-notes"}


def test_a_file_that_a_kill_left_half_written_is_not_part_of_the_finished_run(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from har_pipeline.core.files import new_file\n"
        "from har_pipeline.evaluation.run_folder import lasting_run_folder\n"
        "with lasting_run_folder(Path(sys.argv[1]), {}, overwrite=False) as folder:\n"
        "    with new_file(folder / 'checkpoint.pt') as partial:\n"
        "        partial.write_text('half')\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False, env=python_path())
    assert len(list((tmp_path / ".run.partial").glob(".checkpoint.partial-*"))) == 1
    with lasting_run_folder(tmp_path / "run", {}, overwrite=False) as folder:
        (folder / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_an_unfinished_run_of_a_version_with_fewer_options_goes_on_with_their_defaults(tmp_path: Path) -> None:
    def start(options: dict[str, Any], defaults: dict[str, Any]) -> None:
        job, path = {"options": options}, tmp_path / "run"
        with lasting_run_folder(path, job, overwrite=False, defaults=defaults) as folder:
            (folder / "checkpoint.pt").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start({"epochs": 3}, {"epochs": 5})
    with pytest.raises(RunError, match=r"differs in new \(off, not on\)"):
        start({"epochs": 3, "new": "on"}, {"epochs": 5, "new": "off"})
    with pytest.raises(RunError, match=r"differs in epochs \(3, not 5\)"):
        start({"epochs": 5, "new": "off"}, {"epochs": 5, "new": "off"})
    with pytest.raises(KeyboardInterrupt):
        start({"epochs": 3, "new": "off"}, {"epochs": 5, "new": "off"})


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_without_its_run_file_is_left_and_the_way_out_is_named(run_dir: Path, overwrite: bool) -> None:
    (run_dir / "run.json").unlink()
    before = sorted(path.name for path in run_dir.iterdir())
    with (
        pytest.raises(RunError, match=r"no run\.json.*delete the folder.*--overwrite replaces runs only"),
        new_run_folder(run_dir, overwrite=overwrite),
    ):
        pass
    assert sorted(path.name for path in run_dir.iterdir()) == before


FILES = ["run.json", "split.json", "head.safetensors", "scores.csv", "history.csv"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_noticed_and_runs_of_older_versions_are_read(run_dir: Path, name: str) -> None:
    whole = (run_dir / name).read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 12))
    for place in places:
        (run_dir / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        # A wrong hash in run.json is found with the file that it is of.
        with pytest.raises(RunError, match="run/" if name == "run.json" else rf"run/.*{re.escape(name)}"):  # noqa: PT012 - whichever reads it first
            evaluate(run_dir)
            load_run(run_dir)
    (run_dir / name).write_bytes(whole)
    change_info(run_dir)
    load_run(run_dir)
    evaluate(run_dir)


BIG = 10**9


@pytest.mark.parametrize(
    "changes",
    [
        {"units": BIG},
        {"num_layers": BIG},
        {"num_layers": 5},
        {"input_projection": BIG},
        {"num_steps": 10**12},
        {"units": 5.0},
        {"head": "res_lstm"},
        {"head": "res_lstm", "num_layers": BIG},
        {"head": "attention", "units": BIG},
    ],
)
def test_a_strangers_numbers_are_compared_with_the_weights_before_anything_is_built(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    options = json.loads((run_dir / "run.json").read_text())["options"]
    change_info(run_dir, options={**options, **changes})
    _refused_unbuilt(run_dir, monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [{"classes": [f"c{k}" for k in range(50_000)]}, {"feature_dim": BIG}, {"feature_dim": "8"}, {"feature_dim": 0}],
)
def test_a_strangers_classes_and_features_too(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    spec = json.loads((run_dir / "run.json").read_text())["feature_spec"]
    if "feature_dim" in changes:
        changes = {"feature_spec": {**spec, **changes}}
    change_info(run_dir, **changes)
    _refused_unbuilt(run_dir, monkeypatch)


def _refused_unbuilt(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def real(module: object, state: object, **_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", real)
    with pytest.raises(RunError, match="run"):
        load_run(run_dir)


ODD = {
    "empty": b"",
    "text": b"these are no weights\n" * 20,
    "zip": b"PK\x05\x06" + bytes(18),
    "long header": (2**40).to_bytes(8, "little") + b"{}",
    "lying header": (72).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[1000000000,9],"data_offsets":[0,36000000000]}}'[:72].ljust(72),
    "overlap": (73).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[100000],"data_offsets":[0,4]}}'.ljust(73)
    + bytes(4),
}


@pytest.mark.parametrize("kind", [*ODD, "nan", "type", "names", "pickle"])
def test_odd_weights_are_an_error_that_names_the_file(run_dir: Path, tmp_path: Path, kind: str) -> None:
    path = run_dir / "head.safetensors"
    state = load_file(path)
    if kind == "nan":
        state["classifier.weight"][0, 0] = float("nan")
    elif kind == "type":
        state["classifier.weight"] = state["classifier.weight"].to(torch.int32)
    elif kind == "names":
        state = {f"{name}.{number}": value.clone() for number in range(9) for name, value in state.items()}
    path.write_bytes(ODD.get(kind, save(state)))
    if kind == "pickle":
        path.write_bytes(malicious_pickle(tmp_path / "ran"))
    with pytest.raises(RunError, match=r"head\.safetensors: damaged, or changed after the training"):
        load_run(run_dir)
    change_info(run_dir)
    with pytest.raises(RunError, match=r"head\.safetensors: (?!damaged)") as caught:
        load_run(run_dir)
    assert len(str(caught.value).splitlines()) == 1
    if kind == "names":
        assert "6 missing (" in str(caught.value) or "missing (" in str(caught.value)
        assert str(caught.value).count("encoder") < 11
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_a_run_is_unpickled(run_dir: Path, tmp_path: Path, name: str) -> None:
    content = malicious_pickle(tmp_path / "ran")
    with contextlib.suppress(FileExistsError):
        pickle.loads(content)
    (tmp_path / "ran").rmdir()
    change_info(run_dir)
    (run_dir / name).write_bytes(content)
    with pytest.raises(RunError):  # noqa: PT012 - whichever reads it first
        load_run(run_dir)
        evaluate(run_dir)
    assert not (tmp_path / "ran").exists()


KILLED = """
import os, sys
from pathlib import Path
from har_pipeline.evaluation import run_folder
name, manager = sys.argv[1], sys.argv[2]
path, renames = Path(name), []
own = Path.rename
def rename(self, target):
    done = own(self, target)
    if self.absolute() == path.absolute() or self.name.endswith(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return done
Path.rename = rename
context = (
    run_folder.new_run_folder(path, overwrite=True)
    if manager == "new"
    else run_folder.lasting_run_folder(path, {}, overwrite=True)
)
with context as folder:
    (folder / "run.json").write_text('{"new": 1}')
"""


@pytest.mark.parametrize("manager", ["new", "lasting", "lasting until named"])
@pytest.mark.parametrize("reader", [functools.partial(free_run_path, overwrite=False), evaluate, load_run])
def test_a_kill_between_the_two_renames_loses_neither_run(
    run_dir: Path, manager: str, reader: Callable[[Path], object]
) -> None:
    manager, _, early = manager.partition(" ")
    before = [] if early else [(run_dir / "run.json").read_text()]
    if early:
        shutil.rmtree(run_dir)
    arguments = [str(run_dir), manager, ".partial" if early else "no such name"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, env=python_path())
    assert done.returncode == -9
    assert not run_dir.exists()
    with contextlib.suppress(RunError):  # the new one is no run that can be read
        reader(run_dir)
    assert (run_dir / "run.json").read_text() in ('{"new": 1}', *before)
    assert not {"job.json", "lock"} & {path.name for path in run_dir.iterdir()}
