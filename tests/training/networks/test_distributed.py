"""Training in two processes: the same gradients as one, the same numbers everywhere, one that writes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import python_path
from raw_learners import learner_on, only_batch
from raw_sets import drawn_videos, raw_store

from har_pipeline.inference.load import load_run
from har_pipeline.models.convlstm.networks import StatefulNetwork
from har_pipeline.training.networks.distributed import ALONE, World, joined_world
from har_pipeline.training.networks.loop import Learner
from har_pipeline.training.options import StateGradient

HERE = Path(__file__).resolve().parent
LENGTHS = {"0-1": 16, "1-1": 16, "0-2": 17, "1-2": 18, "0-3": 20}

GRADIENTS = """
import itertools, sys
import numpy as np, torch
from torch import nn
from har_pipeline.models.convlstm.networks import StatefulNetwork
from har_pipeline.training.networks.distributed import joined_world
from har_pipeline.training.networks.loop import Learner
from test_distributed import LENGTHS, plain_learner
from raw_learners import only_batch
with joined_world("cpu") as (world, device):
    learner = plain_learner(LENGTHS)
    options = {"precision": "fp32", "state_gradient": sys.argv[2], "world": world}
    learner = Learner(learner.network, learner.frames, 2, **options)
    result = learner.train_batch(only_batch(learner), itertools.repeat(0.0))
    numbers = torch.stack([torch.stack(result.losses).sum().double(), result.correct.double()])
    found = {
        "gradients": [parameter.grad for parameter in learner.network.parameters()],
        "numbers": world.total(numbers),
        "probabilities": torch.from_numpy(learner.probabilities(np.arange(5))),
    }
    torch.save(found, f"{sys.argv[1]}/{world.rank}.pt")
"""


def plain_learner(lengths: dict[str, int]) -> Learner:
    """A stateful network without batch normalisation and dropout: they see a process's own batch only."""
    learner = learner_on(lengths)
    assert isinstance(learner.network, StatefulNetwork)
    for layer in learner.network.recurrent:
        layer.norm = torch.nn.Identity()
    kept = [m for m in learner.network.decision if not isinstance(m, torch.nn.BatchNorm2d | torch.nn.Dropout)]
    learner.network.decision = torch.nn.Sequential(*kept)
    learner.restart()
    return learner


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_two(*command: str) -> list[tuple[str, str]]:
    """Run a Python command in two processes that know of each other; returns their outputs."""
    shared = {**python_path(HERE), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return outputs


@pytest.mark.parametrize("state_gradient", ["window", pytest.param("video", marks=pytest.mark.exhaustive)])
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(
    tmp_path: Path, state_gradient: StateGradient
) -> None:
    # Five videos: three for the first process and two for the second.
    learner = plain_learner(LENGTHS)
    learner.state_gradient = state_gradient
    batch = only_batch(learner)
    assert batch.indices.shape == (5, 2, 8)
    result = learner.train_batch(batch, iter([0.0]))
    wanted = [parameter.grad.clone() for parameter in learner.network.parameters() if parameter.grad is not None]
    assert max(float(gradient.abs().max()) for gradient in wanted) > 1e-3
    run_two("-c", GRADIENTS, str(tmp_path), state_gradient)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for own, one in zip(found["gradients"], wanted, strict=True):
            assert torch.allclose(own, one, rtol=1e-4, atol=1e-7)
        loss, correct = found["numbers"].tolist()
        assert loss == pytest.approx(sum(float(loss) for loss in result.losses), rel=1e-5)
        assert correct == int(result.correct)
        probabilities = learner.probabilities(np.arange(5))
        assert np.allclose(found["probabilities"].numpy(), probabilities, rtol=0, atol=1e-6)


def test_shares_of_a_batch() -> None:
    items = np.arange(5)
    first, second = (World(rank, 2).part(items) for rank in range(2))
    assert (first[0].tolist(), second[0].tolist()) == ([0, 1, 2], [3, 4])
    # The mean over processes of a mean times its factor is the mean over all.
    values = np.array([1.0, 5.0, 2.0, 8.0, 4.0])
    assert sum(values[rows].mean() * factor for rows, factor in (first, second)) / 2 == pytest.approx(values.mean())
    rows, factor = World(1, 2).part(items[:1])
    assert (rows.tolist(), factor) == ([0], 0.0)
    assert ALONE.part(items)[1] == 1.0


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_world("auto") as (world, device):
        assert (world, device) == (ALONE, "auto")
        assert world.share("word") == "word"


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("state_gradient", ["window", "video"])
def test_two_processes_train_one_run(tmp_path: Path, state_gradient: str) -> None:
    lengths = {f"{k}-{i}": 16 + 4 * i for k in range(2) for i in range(6)}
    videos, labels = drawn_videos(lengths)
    raw_store(tmp_path / "frames.zarr", videos)
    rows = [f"{v},{label},nowhere/{v},s{v[2]}" for v, label in labels.items()]
    (tmp_path / "manifest.csv").write_text("video_id,label,depth_path,subject\n" + "\n".join(rows) + "\n")
    command = ["train-video", str(tmp_path / "manifest.csv"), "--protocol", "holdout", "--val-fraction", "0.2"]
    command += ["--width", "0.05", "--epochs", "2", "--batch-size", "2", "-o", str(tmp_path / "run"), "--device", "cpu"]
    command += ["--state-gradient", state_gradient]
    outputs = run_two("-m", "har_pipeline", *command)
    assert "test video accuracy" in outputs[0][0]
    assert outputs[1][0] == ""
    assert "epoch 2/2" in outputs[0][1]
    run = load_run(tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["processes"] == 2
    assert len(run.scores().video_ids) == len(run.split.val) + len(run.split.test)
    assert {path.name for path in tmp_path.iterdir()} == {"frames.zarr", "manifest.csv", "run"}
