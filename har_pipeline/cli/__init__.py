"""The command line `har`: parses, calls the library, prints. Heavy imports are inside the commands.

A command's module is imported when it is called. `har --help` imports none: the line of each command is in commands.json,
which `docs/generate.py` writes.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from har_pipeline import __version__
from har_pipeline.cli.options import App, Command
from har_pipeline.core.errors import errors_as_lines
from har_pipeline.core.text import printable
from har_pipeline.core.threads import let_idle_threads_sleep

COMMANDS_JSON = Path(__file__).parent / "commands.json"

# Command or group -> its module here and what it is there; in the order of `har --help`.
COMMANDS = {
    "synth": "synth.synth",
    "extract": "extract.extract",
    "flow": "extract.flow",
    "points": "extract.points",
    "frames": "frames.frames",
    "train": "train.train",
    "train-video": "train_video.train_video",
    "lr-range": "train_video.lr_range",
    "sweep": "sweep.sweep",
    "evaluate": "evaluate.evaluate",
    "report": "report.report",
    "predict": "predict.predict",
    "card": "card.card",
    "export": "export.export",
    "fuse": "fuse.fuse",
    "compare": "fuse.compare",
    "manifest": "manifest.manifest_app",
    "splits": "splits.splits_app",
    "features": "features.features_app",
    "models": "models.models_app",
}


def app_of(names: Iterable[str] = tuple(COMMANDS)) -> App:
    """Return an app of the commands of these names, their modules imported."""
    whole = App(add_completion=False)
    for name in names:
        module_name, own = COMMANDS[name].split(".")
        module = import_module(f"{__name__}.{module_name}")
        found = getattr(module, own)
        if isinstance(found, typer.Typer):
            whole.add_typer(found, name=name)
        else:
            # A module may have a kind of command of its own.
            whole.command(name, cls=getattr(module, "Command", Command))(found)
    return whole


def first_paragraphs() -> dict[str, str]:
    """Return command -> what `har --help` says of it: the content of commands.json, from the commands themselves."""
    found = typer.main.get_group(app_of()).commands
    return {name: (found[name].help or "").split("\n\n")[0] for name in COMMANDS}


class _Commands(TyperGroup):
    """The commands of `har`: until one is called, its name and its line are known."""

    def __init__(self, **settings: Any) -> None:
        lines = json.loads(COMMANDS_JSON.read_text(encoding="utf-8"))
        settings["commands"] = {name: TyperCommand(name, help=lines.get(name)) for name in COMMANDS}
        super().__init__(**settings)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that is called, imported, with its name and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            command = typer.main.get_group(app_of([name])).commands[name]
        return name, command, rest


app = App(
    name="har",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Human action recognition: videos -> CNN features in a Zarr store -> temporal heads.\n\n"
    "The usual way: har manifest build folder VIDEOS -o manifest.csv; har extract manifest.csv store.zarr; "
    "har train manifest.csv store.zarr --features eff -o run; har evaluate run; har predict new.mp4 --run run",
)


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
    let_idle_threads_sleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a label is shown even where the terminal's encoding lacks it
    with errors_as_lines():
        app()
