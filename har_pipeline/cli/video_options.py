"""Options that `har train-video` and `har lr-range` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.cli.frames import RawStreamChoice
from har_pipeline.models.config import NetworkName
from har_pipeline.training.configs import LongVideos, StateGradient, VideoPrecision

TRAINING, NETWORK, VIDEOS = "Training", "Network", "Videos"

Manifest = Annotated[Path, typer.Argument(help="Manifest CSV.")]
Model = Annotated[
    NetworkName,
    typer.Option(
        help="convlstm-stateless: one clip of 30 frames; convlstm-stateful: windows of 8, the state goes on.",
        rich_help_panel=NETWORK,
    ),
]
Width = Annotated[
    float,
    typer.Option(help="Times the paper's filters in every layer; results are labelled so.", rich_help_panel=NETWORK),
]
StreamOption = Annotated[
    RawStreamChoice, typer.Option(help="depth: the manifest's depth_path; rgb: its path.", rich_help_panel=VIDEOS)
]
Store = Annotated[
    Path | None,
    typer.Option(
        help="Store (or pack) of raw frames; what is missing is prepared into it. By default frames.zarr beside OUT.",
        rich_help_panel=VIDEOS,
    ),
]
Features = Annotated[
    str, typer.Option(help="Start of the name of the raw-frame set, if there are several.", rich_help_panel=VIDEOS)
]
Long = Annotated[
    LongVideos,
    typer.Option(help="Stateful, above 300 frames: cut to 208, or whole: all windows.", rich_help_panel=VIDEOS),
]
StateGradientOption = Annotated[
    StateGradient,
    typer.Option(
        help="Stateful: `window`, the paper's: cut off at each window; `video`: back to the video's start, one update.",
        rich_help_panel=TRAINING,
    ),
]
MemoryFrames = Annotated[
    int | None,
    typer.Option(
        help="Let the cells begin with a memory of up to so many frames, as 208; by default a few, as in Keras.",
        min=2,
        rich_help_panel=NETWORK,
    ),
]
Augment = Annotated[
    float,
    typer.Option(
        help="Move and scale the frames of each training video at random by up to this share, as 0.15; the paper does not.",
        min=0,
        rich_help_panel=TRAINING,
    ),
]
AllowMissing = Annotated[
    bool, typer.Option(help="Leave out videos whose frames cannot be had.", rich_help_panel=VIDEOS)
]
SplitFile = Annotated[Path | None, typer.Option(help="A split from `har splits write` instead of a protocol.")]
ValFraction = Annotated[float, typer.Option(help="Share of the training subjects kept for validation.", min=0, max=0.9)]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Videos of an update; 12 stateless, 6 stateful. Of each process.", min=1, rich_help_panel=TRAINING
    ),
]
PrecisionOption = Annotated[
    VideoPrecision, typer.Option(help="auto: bf16 where the device has it.", rich_help_panel=TRAINING)
]
