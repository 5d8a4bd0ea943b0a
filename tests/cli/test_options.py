"""Options made from the fields of a config."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import pytest
import typer
from typer.testing import CliRunner

from har_pipeline.cli.options import Command, Shown, given_options, with_options
from har_pipeline.core.options import check_options, option, seed_option


@dataclass(frozen=True, kw_only=True)
class Oven:
    """Settings of an oven."""

    heat: int = option(180, "Degrees.", min=50, max=300, panel="Heat")
    share: float | None = option(None, "Share of fan air.", above=0, below=1)
    mode: Literal["top", "fan"] = option("fan", "Where heat comes from.")
    minutes_s: float = option(60.0, "Time.", min=1, name="minutes")
    seed: int = seed_option()
    # No option of the command line.
    name: str = "oven"

    def __post_init__(self) -> None:
        check_options(self)
        if self.mode == "top" and self.share is not None:
            raise ValueError("share belongs to the fan")


@dataclass(frozen=True, kw_only=True)
class Tray:
    """What is in the oven."""

    level: int = option(2, "Level.", min=1)
    tray: str = option("flat", "Kind.")
    seed: int = seed_option()


def made() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @with_options
    def bake(
        *,
        ctx: typer.Context,
        oven: Annotated[Oven, Shown(without=("minutes_s",), help={"heat": "Hotter."})],
        tray: Tray = Tray(level=3),
        loud: bool = False,
    ) -> None:
        typer.echo(f"{oven} {tray} {loud} {given_options(ctx, ['heat', 'share'])}")

    return app


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(made(), list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_fields_become_options_and_come_back_as_configs() -> None:
    assert run() == f"{Oven()} {Tray(level=3)} False []\n"
    output = run("--heat", "200", "--share", "0.5", "--tray", "deep", "--seed", "4", "--loud")
    assert (
        output
        == f"{Oven(heat=200, share=0.5, seed=4)} {Tray(level=3, tray='deep', seed=4)} True ['--heat', '--share']\n"
    )


def test_a_command_shows_what_it_takes() -> None:
    callback = made().registered_commands[0].callback
    assert callback is not None
    parameters = inspect.signature(callback).parameters
    # Shared fields stand where the last config has them.
    assert list(parameters) == ["ctx", "heat", "share", "mode", "level", "tray", "seed", "loud"]
    infos = {name: get_args(one.annotation)[1] for name, one in parameters.items() if get_args(one.annotation)}
    assert infos["heat"].help == "Hotter."
    assert (infos["heat"].min, infos["heat"].max, infos["heat"].rich_help_panel) == (50, 300, "Heat")
    assert infos["share"].help == "Share of fan air. Above 0 and below 1."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--heat", "20"), "'--heat'"),
        (("--share", "1"), "--share must be above 0 and below 1, not 1.0"),
        (("--mode", "grill"), "'--mode'"),
        (("--mode", "top", "--share", "0.5"), "--share belongs to the fan"),
    ],
)
def test_what_the_config_refuses_is_a_usage_error(arguments: tuple[str, ...], says: str) -> None:
    assert says in " ".join(run(*arguments, code=2).replace("│", " ").split())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"heat": 20}, "heat must be at least 50 and at most 300, not 20"),
        ({"heat": 99.5}, "heat must be a whole number, not 99.5"),
        ({"share": float("nan")}, "share must be above 0 and below 1, not nan"),
        ({"mode": "grill"}, r"mode must be one of \('top', 'fan'\), not 'grill'"),
    ],
)
def test_a_config_checks_itself(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Oven(**values)  # type: ignore[arg-type]


def test_help_shows_words_in_brackets() -> None:
    app = typer.Typer()

    @app.command(cls=Command)
    def main(rows: Annotated[str, typer.Option(help="Rows offsets[v] to its end.")] = "") -> None:
        """Needs `pip install 'har-pipeline[onnx]'`."""

    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert "har-pipeline[onnx]" in shown
    assert "offsets[v]" in shown
