"""The 3D-ConvNet of Baccouche 2011 as an extractor: the values of C3, 120 for each clip of 9 frames around a person.

It has no published weights. `har train-video --model convnet3d` learns them, and `network.safetensors` of its run is the file
to give: its header names the windows that the net was trained on, and the split, which becomes part of the feature spec, so
that a head can be trained on the features with that split only.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.records import ClipSpec
from har_pipeline.models.convnet3d.net import CLIP_LEN, DESCRIPTOR, ConvNet3D
from har_pipeline.models.extractors.base import Input, Net, Preprocess, Weights
from har_pipeline.models.extractors.weights import load_strictly, read_state_dict

# Frames are grey: three equal channels.
GREY = Preprocess(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), local_contrast=True)


class Descriptors(ConvNet3D):
    """The net up to C3; (B, 1, 9, 54, 34) -> (B, 120)."""

    def __init__(self) -> None:
        super().__init__(num_classes=1)
        self.n1 = self.n2 = nn.Identity()  # type: ignore[assignment]

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return (B, 120) of normalised clips (B, 1, 9, 54, 34)."""
        return self.descriptors(clips)


def _load(module: nn.Module, path: Path) -> None:
    neurons = ("n1.", "n2.")
    state = {key: value for key, value in read_state_dict(path).items() if not key.startswith(neurons)}
    load_strictly(module, state, path)


def _none_published() -> NoReturn:
    raise WeightsError(
        "convnet3d has no published weights: train it with `har train-video MANIFEST --model convnet3d -o RUN`, and give "
        "--weights RUN/network.safetensors"
    )


NET = Net(
    name="convnet3d",
    source="Baccouche et al. 2011, 3D-ConvNet",
    inputs={
        "rgb": Input(
            # As the clips that vote, see `convlstm.windows.voting_indices`.
            clips=ClipSpec(sampling="dense", num_clips=None, clip_len=CLIP_LEN, clip_stride=4),
            clip_lens=(CLIP_LEN, CLIP_LEN),
            resize="short60-person34x54",
            weights="trained",
        )
    },
    layers={"c3": DESCRIPTOR},
    default_layer="c3",
    gmacs=0.03,
    weights={
        "trained": Weights(
            url="har train-video --model convnet3d",
            sha256="",
            licence="none published",
            trained_on="your training videos, of one split",
            preprocess=GREY,
            packaged=_none_published,
        )
    },
    build=lambda layer, stream: Descriptors(),
    load=_load,
    file_preprocess=lambda path, stream: GREY,
    bf16_is_close=False,  # so small that fp32 is as fast
)
