"""The memory that a training is said to take, against what PyTorch keeps."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_sets import blobs, feature_store, manifest, split_of

from har_pipeline.core.errors import RunError
from har_pipeline.models.convlstm.networks import build_network
from har_pipeline.models.heads import build_head
from har_pipeline.training import memory
from har_pipeline.training.axes import parse_axis
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.memory import head_need, network_need, require_memory
from har_pipeline.training.options import TrainConfig, VideoTrainConfig
from har_pipeline.training.sweep import plan_points, run_sweep

# Estimates of activations are at least what is kept, and at most this many times as much.
FACTOR = 3.0


class Kept:
    """Counts the bytes that autograd keeps, each storage once; parameters are not activations."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.own = {value.untyped_storage().data_ptr() for value in module.state_dict(keep_vars=True).values()}
        self.found: dict[int, int] = {}

    def pack(self, value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.found[storage.data_ptr()] = storage.nbytes()
        return value

    @property
    def total(self) -> int:
        return sum(self.found.values())


HEADS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"head": "gru"},
    {"head": "bilstm", "num_layers": 2},
    {"head": "attention"},
    {"head": "attentive"},
    {"head": "attentive", "num_layers": 4},
    {"head": "attentive", "input_projection": 64, "num_layers": 2},
    {"head": "res_lstm", "num_layers": 4},
    {"head": "stacked_lstm", "dropout": 0.5},
    {"head": "res_lstm", "input_projection": 32},
    {"head": "vote"},
    {"mid_fusion": "input", "fusion_op": "concat"},
    {"mid_fusion": "hidden"},
    {"head": "linear"},
]


@pytest.mark.parametrize("options", HEADS)
def test_heads(options: dict[str, Any]) -> None:
    config = TrainConfig(units=96, batch_size=10, **{"optimizer": "adam", **options})
    dims = [64, 64] if config.mid_fusion else [128]
    clips, classes = 24, 7
    head = build_head(config.head_config, dims, classes)
    need = head_need(config, dims, classes, videos=50, clips=clips)
    parameters = sum(value.numel() for value in head.parameters())
    assert need.parameters == parameters
    assert need.weights == 4 * parameters
    assert need.features == 4 * 50 * clips * 128
    if config.head == "linear":
        return
    assert (need.gradients, need.optimiser) == (4 * parameters, 8 * parameters)
    kept, features = Kept(head), torch.randn(10, clips, 128)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value):
        loss = head(features, torch.full((10,), clips)).sum()
    # Copies of the batch are there beside what is kept.
    copies = memory.COPIES * features.nbytes
    assert kept.total <= need.activations <= FACTOR * kept.total + copies, (kept.total, need.activations)
    loss.backward()


@pytest.mark.parametrize(
    "options",
    [
        {"model": "convlstm-stateless", "width": 0.5},
        {"model": "convlstm-stateful", "width": 0.5},
        {"model": "convlstm-stateful", "width": 0.25, "state_gradient": "video"},
    ],
)
def test_networks(options: dict[str, Any]) -> None:
    config = VideoTrainConfig(batch_size=2, **options)
    network = build_network(config.model, 3, width=config.width)
    windows = 2 if config.state_gradient == "video" else 1
    need = network_need(config, (1, 64, 64), 3, videos=20, frames=windows * network.clip_len)
    parameters = sum(value.numel() for value in network.parameters())
    assert need.parameters == parameters
    assert (need.gradients, need.optimiser) == (4 * parameters, 8 * parameters)
    kept, state = Kept(network), None
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda value: value):
        for _ in range(windows):
            _, state = network(torch.rand(2, network.clip_len, 1, 64, 64), state)
    assert kept.total <= need.activations <= FACTOR * kept.total, (kept.total, need.activations)


def test_the_paper_s_stack_on_25088_values_is_refused_with_its_numbers(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 8 * 10**9)
    monkeypatch.setattr("har_pipeline.features.table.FeatureStreams.read", lambda *_, **__: pytest.fail("was read"))
    features, labels = blobs(("boxing", "running"), 4, dim=25088)
    store, name = feature_store(tmp_path / "store.zarr", features)
    split = split_of([v for v in labels if int(v[-1]) < 3], [v for v in labels if int(v[-1]) == 3])
    config = TrainConfig(head="res_lstm", device="cpu")
    message = (
        r"res_lstm on 25,088 values a clip would take about (\d+)\.\d GB \(weights 40\.3 GB, gradients 40\.3 GB, optimiser "
        r"40\.3 GB, .*8\.0 GB are free \(cpu\): reduce the features \(`har features reduce`\), or --input-projection, or a "
        r"smaller --batch-size or --num-layers"
    )
    with pytest.raises(RunError, match=message):
        run_jobs(store, [name], manifest(labels), plan_jobs([split], tmp_path / "run"), config)
    points = plan_points([parse_axis("head", "svm,res_lstm")], dataclasses.replace(config), name, tmp_path / "sweep")
    with pytest.raises(RunError, match=rf"head_res_lstm: {message}"):
        run_sweep(store, manifest(labels), [split], points)
    assert not (tmp_path / "sweep").exists()


def test_an_svm_on_fisher_vectors_of_10_000_videos_takes_no_copies_of_them() -> None:
    """The means, a few matrices of 10,000 x 10,000; not 16 bytes more for each of their values."""
    dim, videos = 109_056, 10_000
    need = head_need(TrainConfig(head="svm"), [dim], 101, videos=videos, clips=1)
    assert need.optimiser == 4 * videos * dim + 40 * videos**2
    assert head_need(TrainConfig(head="svm"), [dim], 101, videos=60, clips=1).optimiser == 7 * 4 * 60 * dim


def test_what_fits_is_let_through_and_a_gpu_has_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(device="cpu")
    need = head_need(config, [4096], 10, videos=1000, clips=40)
    monkeypatch.setattr(memory, "available_memory", lambda: need.total)
    require_memory(need, config, [4096])
    with pytest.raises(RunError, match=r"2 processes with lstm .* each, and .*: fewer --workers, or reduce"):
        require_memory(need, config, [4096], workers=2)
    monkeypatch.setattr(memory, "available_memory", lambda: 10**15)
    monkeypatch.setattr(memory, "pick_device", lambda choice: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**6, 10**9))
    with pytest.raises(RunError, match=re.escape("0.0 GB are free (cuda)")):
        require_memory(need, config, [4096])


def test_many_layers_are_counted_without_building_them() -> None:
    config = TrainConfig(head="stacked_lstm", num_layers=10**6, device="cpu")
    dim = 64
    assert head_need(config, [dim], 3, 10, 5).parameters == 10**6 * (8 * dim * dim + 8 * dim) + 3 * dim
    assert np.isfinite(head_need(config, [dim], 3, 10, 5).total)
