"""Options of training a head: the paper's defaults, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from har_pipeline.training.options import TrainConfig


@pytest.mark.parametrize(
    "change",
    [
        {"units": 0},
        {"epochs": 0},
        {"dropout": 1.0},
        {"input_dropout": -0.1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"patience": 0},
        {"head": "transformer"},
        {"optimizer": "lion"},
        {"output": "relu"},
        {"output": "sigmoid", "head": "mean_pool"},
        {"num_layers": 0},
        {"num_layers": 2, "head": "vote"},
        {"input_projection": 0},
        {"input_projection": 8, "head": "mean_pool"},
        {"mid_fusion": "output"},
        {"mid_fusion": "hidden", "head": "vote"},
        {"mid_fusion": "hidden", "fusion_op": "product", "standardise": True},
        {"fusion_op": "max"},
        {"readout": "first"},
        {"readout": "steps", "head": "attention"},
        {"readout": "steps", "mid_fusion": "hidden"},
        {"forget_gate": False, "head": "gru"},
        {"forget_gate": False, "num_layers": 2},
        {"vote": "hard"},
        {"schedule": "cyclic"},
        {"schedule_epochs": 0},
        {"schedule_factor": 1.0},
        {"label_smoothing": 1.0},
        {"clip_norm": 0.0},
        {"epochs": 2.5},
        {"average_last": 1.5},
        {"average_last": 0.5, "patience": 3},
        {"class_weights": "inverse"},
        {"temporal_jitter": -0.1},
        {"temporal_crop": 1.0},
        {"temporal_crop": 0.5, "temporal_jitter": 0.5},
        {"precision": "fp8"},
    ],
)
def test_options_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainConfig(**change)


def test_defaults_are_those_of_the_paper() -> None:
    config = TrainConfig()
    assert (config.head, config.epochs, config.batch_size) == ("lstm", 50, 25)
    assert (config.optimizer, config.learning_rate, config.output) == ("rmsprop", 1e-3, "softmax")
    assert (config.dropout, config.weight_decay, config.patience) == (0, 0, None)


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({}, False),
        ({"head": "vote"}, True),
        ({"head": "gru"}, False),
        ({"head": "bilstm"}, False),
        ({"head": "res_lstm"}, False),
        ({"head": "stacked_lstm"}, True),
        ({"head": "attention"}, True),
        ({"head": "stacked_lstm", "mid_fusion": "hidden", "fusion_op": "product"}, False),
        ({"head": "mean_pool"}, True),
        ({"head": "linear"}, True),
        ({"head": "svm"}, True),
        ({"head": "svm", "mid_fusion": "input", "fusion_op": "product"}, True),
        ({"standardise": True}, True),
        ({"head": "mean_pool", "standardise": False}, False),
        ({"mid_fusion": "hidden", "fusion_op": "sum", "standardise": True}, True),
    ],
)
def test_features_are_scaled_as_asked_or_by_head(options: dict[str, Any], scales: bool) -> None:
    config = TrainConfig(**options)
    assert config.scales_features is scales
    # What a run keeps is what was done, so that a job does not go on otherwise after a change of the defaults.
    assert config.to_dict()["standardise"] is scales


@pytest.mark.parametrize(("name", "value"), [("units", "a"), ("units", float("nan")), ("learning_rate", "1e-3")])
def test_values_that_are_no_numbers_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a (whole )?number"):
        TrainConfig(**{name: value})  # type: ignore[arg-type]
