"""`har synth`: the rendered data set."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.cli import options
from har_pipeline.cli.output import print_json, say
from har_pipeline.cli.progress import video_bar


class Scenario(StrEnum):
    """Scenarios of the synthetic data set; Typer takes no list of a Literal."""

    d1 = "d1"
    d2 = "d2"
    d3 = "d3"
    d4 = "d4"


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; existing files of the same names are replaced.")],
    subjects: Annotated[int, typer.Option(help="People; each does 6 actions in 4 scenarios.", min=1, max=25)] = 6,
    depth: Annotated[bool, typer.Option(help="Also write 16-bit depth frames, named as in NTU RGB+D.")] = False,
    flow: Annotated[bool, typer.Option(help="Also write the exact optical flow.")] = False,
    scenario: Annotated[
        list[Scenario] | None,
        typer.Option(help="Render only this scenario. Repeat for several. Default: all."),
    ] = None,
    decided_early: Annotated[
        bool, typer.Option(help="Render videos of 180 to 240 frames that show the action in their first third only.")
    ] = False,
    seed: options.Seed = 0,
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Render the synthetic data set: people doing KTH's six actions, as video files with a manifest."""
    options.check_folder(out)
    from har_pipeline.synthetic.dataset import write_dataset

    with video_bar() as update:
        manifest = write_dataset(
            out,
            num_subjects=subjects,
            seed=seed,
            depth=depth,
            flow=flow,
            decided_early=decided_early,
            scenarios=[choice.value for choice in scenario] if scenario else None,
            workers=workers,
            on_progress=lambda done, total: update("render", done, total),
        )
    videos = subjects * 6 * (len(set(scenario)) if scenario else 4)
    if as_json:
        print_json({"manifest": str(manifest), "videos": videos, "seed": seed})
    else:
        follow = f", or har frames {shlex.quote(str(manifest))} store.zarr --fps 25" if depth else ""
        say(f"{videos} videos; next: har extract {shlex.quote(str(manifest))} store.zarr{follow}")
