"""Training on raw video: what a learner begins with."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from raw_sets import SIZE, drawn_videos, table_of

from har_pipeline.features.table import FeatureTable
from har_pipeline.training.networks.fit import make_learner
from har_pipeline.training.options import VideoTrainConfig

LENGTHS = {"0-1": 24, "1-1": 26, "0-2": 40, "1-2": 44, "0-3": 24, "1-3": 24}
SHAPE = (1, SIZE, SIZE)
LONG = VideoTrainConfig(
    width=0.05,
    batch_size=2,
    schedule="constant",
    learning_rate=2e-3,
    epochs=4,
    memory_frames=40,
    device="cpu",
    precision="fp32",
)


@pytest.fixture(scope="module")
def table() -> FeatureTable:
    return table_of(drawn_videos(LENGTHS)[0])


def test_cells_begin_with_the_memory_that_was_asked_for(table: FeatureTable) -> None:
    plain = make_learner(table, SHAPE, 2, dataclasses.replace(LONG, memory_frames=None)).network
    long = make_learner(table, SHAPE, 2, LONG).network
    for (name, one), two in zip(plain.named_parameters(), long.parameters(), strict=True):
        assert torch.equal(one, two) != name.endswith("convlstm.bias")
