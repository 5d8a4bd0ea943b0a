"""Options of training on raw video: the published defaults, and what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from har_pipeline.models.config import NetworkName
from har_pipeline.models.convlstm.networks import NETWORKS
from har_pipeline.training.options import VideoTrainConfig


def test_defaults_are_the_published_ones() -> None:
    stateless, stateful = (VideoTrainConfig(model=name) for name in NETWORKS)
    assert get_args(NetworkName) == (*NETWORKS, "convnet3d")
    assert (stateless.videos_per_batch, stateful.videos_per_batch) == (12, 6)
    assert (stateless.num_epochs, stateless.main_epochs) == (75, 48)
    assert (stateful.num_epochs, stateful.main_epochs) == (25, 25)
    assert stateless.rate(3.5) == pytest.approx(9.8e-4)
    assert [stateless.rate(done, 1) for done in (47, 48, 74)] == [1e-5, 1e-4, 1e-4]
    assert [stateful.rate(done) for done in (0, 3, 7, 14, 18)] == [9e-5, 3e-5, 8e-6, 4e-6, 2e-6]


def test_fewer_epochs_run_through_the_whole_schedule() -> None:
    stateless = VideoTrainConfig(model="convlstm-stateless", epochs=25)
    assert stateless.main_epochs == 16
    assert stateless.rate(3.5 / 3) == pytest.approx(9.8e-4)
    assert [stateless.rate(done) for done in (15.5, 16, 24)] == [1e-5, 2e-4, 2e-4]
    stateful = VideoTrainConfig(epochs=5)
    assert [stateful.rate(done) for done in (0, 0.6, 1.4, 2.8, 4.4)] == [9e-5, 3e-5, 8e-6, 4e-6, 1e-6]
    assert VideoTrainConfig(model="convlstm-stateless", epochs=1).main_epochs == 1


def test_plain_schedules() -> None:
    constant = VideoTrainConfig(schedule="constant", learning_rate=1e-3, epochs=4)
    assert {constant.rate(done / 2) for done in range(8)} == {1e-3}
    cycle = VideoTrainConfig(schedule="one-cycle", learning_rate=1e-3, epochs=10, model="convlstm-stateless")
    assert cycle.rate(3) == pytest.approx(1e-3)
    assert cycle.main_epochs == 10
    assert VideoTrainConfig(schedule="constant").rate(0) == 9e-5
    assert VideoTrainConfig(schedule="constant", model="convlstm-stateless").rate(0) == 9.8e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "convlstm"}, "model must be one of"),
        ({"width": 0.0}, "width must be above 0"),
        ({"width": 1e9}, "width must be above 0 and at most 8"),
        ({"learning_rate": float("inf"), "schedule": "constant"}, "learning_rate must be above 0"),
        ({"model": "convlstm-stateless", "long_videos": "whole"}, "long_videos belongs to convlstm-stateful"),
        ({"patience": 9}, "cycle_epochs and patience belong to"),
        (
            {"model": "convlstm-stateless", "schedule": "constant", "cycle_epochs": 3.0},
            "cycle_epochs and patience belong",
        ),
        ({"model": "convlstm-stateless", "frame_step": 2}, "frame_step belongs to convlstm-stateful"),
        ({"norm_over": "video"}, "norm_over=video needs state_gradient=video"),
        ({"window_loss": "vote"}, "window_loss=vote needs state_gradient=video"),
        ({"clip": "whole"}, "clip belongs to convlstm-stateless"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 1e-3}, "learning_rate belongs to"),
        ({"schedule": "constant", "learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"precision": "fp16"}, "precision must be one of"),
        ({"long_videos": "all"}, "long_videos must be one of"),
        ({"memory_frames": 1}, "memory_frames must be at least 2"),
        ({"state_gradient": "none"}, "state_gradient must be one of"),
        ({"model": "convlstm-stateless", "state_gradient": "video"}, "state_gradient belongs to convlstm-stateful"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoTrainConfig(**values)


def test_options_survive_a_dict() -> None:
    config = VideoTrainConfig(width=0.25, schedule="one-cycle", learning_rate=1e-3, epochs=3, seed=4)
    assert VideoTrainConfig(**config.to_dict()) == config
