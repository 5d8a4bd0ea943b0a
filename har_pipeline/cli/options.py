"""Options that several commands share; imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.models.config import NetworkName
from har_pipeline.training.configs import LongVideos, StateGradient, VideoPrecision

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")]


Workers = Annotated[int | None, typer.Option(help="Decoding processes; by default a fitting number.", min=1)]


Seed = Annotated[int, typer.Option(help="Seed of everything random in this command.", min=0)]


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


Protocol = Annotated[str, typer.Option(help="How videos are split; `har splits show --help` lists the protocols.")]


NumFolds = Annotated[int, typer.Option(help="Folds of group_kfold.", min=2)]


TestFraction = Annotated[float, typer.Option(help="Test share of holdout.", min=0.01, max=0.9)]


Column = Annotated[str, typer.Option(help="Manifest column that the protocol `column` reads.")]


Root = Annotated[
    Path | None, typer.Option(help="Folder that the manifest's paths are relative to; its own by default.")
]


class RawStreamChoice(StrEnum):
    """Streams that raw-video networks read."""

    depth = "depth"
    rgb = "rgb"


class Dtype(StrEnum):
    """Types that features are stored in."""

    float16 = "float16"
    float32 = "float32"


class Precision(StrEnum):
    """Arithmetic of a net."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class DecoderChoice(StrEnum):
    """Decoders."""

    auto = "auto"
    decord = "decord"
    pyav = "pyav"


class StreamChoice(StrEnum):
    """Streams that nets read."""

    rgb = "rgb"
    flow = "flow"


def given_options(ctx: typer.Context | None, names: Iterable[str]) -> list[str]:
    """Return those of a command's parameters that were given on the command line, as they were written."""
    given = [name for name in names if ctx and getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in given]


def option_error(error: ValueError, names: Iterable[str]) -> typer.BadParameter:
    """Return the usage error of a refused value, its fields `names` written as options: `--batch-size`, not `batch_size`.

    Words of the language, as in `the published schedule`, stay: a field is followed by what it must be or belongs to.
    """
    fields = re.compile(rf"(?<![\w-])({'|'.join(names)})(?=( and \w+)? (?:must|belongs?|takes|keeps)\b|=)")
    return typer.BadParameter(fields.sub(lambda found: f"--{found[1].replace('_', '-')}", str(error)))


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


def parse_shard(text: str) -> tuple[int, int]:
    """Return (k, n) from `k/n`. Raises: typer.BadParameter if it is not of that form."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise typer.BadParameter(f"{text!r}: give k/n with 1 <= k <= n, as in 2/4")
    return int(parts[0]), int(parts[1])
