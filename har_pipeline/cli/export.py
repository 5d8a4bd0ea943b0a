"""`har export`: a trained run as an ONNX file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.cli.options import AsJson
from har_pipeline.cli.output import note, print_json, say


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of `har train`, or of `har train-video --model convnet3d`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="ONNX file to write, such as model.onnx.")],
    with_extractor: Annotated[
        bool, typer.Option("--with-extractor", help="Export the net that makes the features as well, as one model.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights file, or folder of hf:, of the extractor, if the run was trained with one."),
    ] = None,
    mean_cube: Annotated[Path | None, typer.Option(help="Mean cube of c3d, if the run was trained with one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run as an ONNX file, for programs without torch, after comparing it with the run to 1e-4.

    Of a head: features (videos, steps, D) float32 and lengths (videos) become probabilities (videos, K). With its extractor:
    clips (videos, clips, T, H, W, 3) uint8 in the place of the features. Classes, the feature spec and the options are in the
    file's metadata. Needs `pip install 'har-pipeline[onnx]'`.

    Example: har export run -o model.onnx --with-extractor
    """
    if out.suffix.lower() != ".onnx":
        raise typer.BadParameter(f"{out}: give a name that ends in .onnx, as programs that read it expect")
    from har_pipeline.evaluation.plan import require_single_run

    require_single_run(run, "har export needs one")
    from har_pipeline.inference.export import export_onnx
    from har_pipeline.inference.load import load_run

    loaded = load_run(run)
    made = export_onnx(loaded, out, with_extractor=with_extractor, weights=weights, mean_cube=mean_cube)
    if loaded.random_weights:
        note("WARNING: the features of this run come from random weights: its predictions mean nothing")
    if as_json:
        print_json(dataclasses.asdict(made))
        return
    inputs = "; ".join(f"{name} ({', '.join(axes[:-1])}) {axes[-1]}" for name, axes in made.inputs.items())
    say(f"{made.path}: {inputs} -> probabilities (videos, {len(made.classes)}) float32")
    say(f"{made.size / 2**20:,.1f} MiB; ONNX Runtime's probabilities are within {made.difference:.1g} of the run's")
