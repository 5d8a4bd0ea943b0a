"""The command line `har`: parses, calls the library, prints. Heavy imports are inside the commands."""

from __future__ import annotations

import io
import logging
import sys
from typing import Annotated

import typer

from har_pipeline import __version__
from har_pipeline.cli import (
    card,
    evaluate,
    export,
    extract,
    features,
    frames,
    fuse,
    manifest,
    models,
    predict,
    report,
    splits,
    sweep,
    synth,
    train,
    train_video,
)
from har_pipeline.cli.options import App
from har_pipeline.core.errors import errors_as_lines
from har_pipeline.core.text import printable

app = App(
    name="har",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Human action recognition: videos -> CNN features in a Zarr store -> temporal heads.\n\n"
    "The usual way: har manifest build folder VIDEOS -o manifest.csv; har extract manifest.csv store.zarr; "
    "har train manifest.csv store.zarr --features eff -o run; har evaluate run; har predict new.mp4 --run run",
)
app.add_typer(manifest.manifest_app, name="manifest")
app.add_typer(splits.splits_app, name="splits")
app.add_typer(features.features_app, name="features")
app.add_typer(models.models_app, name="models")
app.command("synth")(synth.synth)
app.command("extract")(extract.extract)
app.command("flow")(extract.flow)
app.command("points")(extract.points)
app.command("frames")(frames.frames)
app.command("train")(train.train)
app.command("train-video")(train_video.train_video)
app.command("lr-range")(train_video.lr_range)
app.command("sweep", cls=sweep.Command)(sweep.sweep)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("predict")(predict.predict)
app.command("card")(card.card)
app.command("export")(export.export)
app.command("fuse")(fuse.fuse)
app.command("compare")(fuse.compare)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"har {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _Lines(logging.Formatter):
    """Shows the control characters of file names, as `output.note` does."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def main() -> None:
    """Run the command line; what the user can mend becomes one line on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a label is shown even where the terminal's encoding lacks it
    with errors_as_lines():
        app()
