"""`har card`: a model card of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.cli.output import say


def card(
    run: Annotated[
        Path, typer.Argument(help="Run folder of `har train` or `har train-video`, or of its folds or repeats.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Markdown file to write, such as CARD.md. Default: print it.")
    ] = None,
) -> None:
    """Describe a trained run in a model card, plain Markdown: what it reads, its classes, data, results, limits and use.

    Results have 95 % intervals; weights and their licences, options, seed and versions are named. Nothing is computed.

    Example: har card run -o run/CARD.md
    """
    from har_pipeline.core.files import write_text
    from har_pipeline.report.card import model_card

    text = model_card(run)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    say(f"written: {out}")
