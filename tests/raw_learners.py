"""Learners of raw-video networks on drawn frames."""

from __future__ import annotations

import numpy as np
import torch
from raw_sets import SIZE, drawn_videos, table_of

from har_pipeline.features.table import FeatureTable
from har_pipeline.models.convlstm.networks import build_network
from har_pipeline.training.batches import Frames
from har_pipeline.training.networks.loop import Learner, VideoBatch, arrange


def frames_of(table: FeatureTable) -> Frames:
    return Frames(table, (1, SIZE, SIZE), torch.device("cpu"))


def learner_on(lengths: dict[str, int], model: str = "convlstm-stateful") -> Learner:
    torch.manual_seed(0)
    network = build_network(model, 2, width=0.05)  # type: ignore[arg-type]
    return Learner(network, frames_of(table_of(drawn_videos(lengths)[0])), 2, precision="fp32")


def only_batch(learner: Learner) -> VideoBatch:
    rows = np.arange(len(learner.frames.lengths))
    (batch,) = arrange(learner.network, learner.frames.lengths, rows, 100)
    return batch
