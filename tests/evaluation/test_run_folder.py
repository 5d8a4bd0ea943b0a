"""Run folders as they are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from paths import python_path
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.evaluation.run_folder import lasting_run_folder, new_run_folder
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


def change(run_dir: Path, **values: object) -> None:
    info = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**info, **values}))


def test_a_run_of_an_older_version_loads_with_the_defaults_of_what_it_lacks(run_dir: Path) -> None:
    options = json.loads((run_dir / "run.json").read_text())["options"]
    of_old = ("head", "units", "epochs", "batch_size", "optimizer", "learning_rate", "output", "dropout", "seed")
    change(run_dir, options={name: options[name] for name in of_old})
    run = load_run(run_dir)
    assert (run.config.temporal_jitter, run.config.mid_fusion) == (0, None)
    # The names of its weights.
    assert {"encoder.lstm.weight_ih_l0", "classifier.bias"} <= run.head.state_dict().keys()
    assert run.streams[0].feature_set == run.feature_set


def test_options_that_do_not_fit_the_weights_are_an_error(run_dir: Path) -> None:
    options = json.loads((run_dir / "run.json").read_text())["options"]
    change(run_dir, options={**options, "head": "gru"})
    with pytest.raises(RunError, match="not the weights of this run"):
        load_run(run_dir)
    change(run_dir, options={**options, "mid_fusion": "input"})
    with pytest.raises(RunError, match="two or more feature sets"):
        load_run(run_dir)
    change(run_dir, options={**options, "head": "telepathy"})
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
