"""`har sweep`: training over values of options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli.options import AsJson, Column, Device, NumFolds, Protocol, Root, Seed, TestFraction
from har_pipeline.cli.output import note, print_table
from har_pipeline.cli.progress import sweep_table
from har_pipeline.cli.split_options import chosen_splits
from har_pipeline.training.configs import TrainConfig

if TYPE_CHECKING:
    from har_pipeline.training.sweep import Axis
    from har_pipeline.training.sweep_table import Choice, PointSummary


DEFAULTS = TrainConfig()


SWEPT = "Swept: one value, or several parted by commas"


def sweep(
    ctx: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="Manifest CSV.")],
    store: Annotated[Path, typer.Argument(help="Feature store that `har extract` wrote, or a pack of it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("sweep"),
    units: Annotated[str | None, typer.Option(help="Recurrent units.", rich_help_panel=SWEPT)] = None,
    num_steps: Annotated[
        str | None, typer.Option(help="Clips taken of each video, evenly (Lakhal's T).", rich_help_panel=SWEPT)
    ] = None,
    num_layers: Annotated[str | None, typer.Option(help="Recurrent layers.", rich_help_panel=SWEPT)] = None,
    epochs: Annotated[str | None, typer.Option(help="Epochs of training.", rich_help_panel=SWEPT)] = None,
    pca: Annotated[
        str | None,
        typer.Option(
            help="PCA dimensions; fitted on each split's training videos, kept in STORE.", rich_help_panel=SWEPT
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="As of `har train`: res_lstm,stacked_lstm = with, without skips.", rich_help_panel=SWEPT),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Feature sets, or the starts of their names; needed if there are several.", rich_help_panel=SWEPT
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="NAME=VALUES of another option of `har train`, as in dropout=0,0.5.", rich_help_panel=SWEPT
        ),
    ] = None,
    protocol: Protocol = "holdout",
    split: Annotated[str, typer.Option(help="Number of the split, or `all` for every fold.")] = "0",
    split_file: Annotated[
        Path | None, typer.Option(help="A split from `har splits write` instead of a protocol.")
    ] = None,
    num_folds: NumFolds = 5,
    test_fraction: TestFraction = 0.3,
    column: Column = "split",
    val_fraction: Annotated[
        float,
        typer.Option(
            help="Share of the training subjects that the best values are chosen by; 0: none are.", min=0, max=0.9
        ),
    ] = 0.2,
    repeats: Annotated[int, typer.Option(help="Train with so many seeds from --seed on.", min=1)] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Training processes; by default one per core, or one with a GPU.", min=1)
    ] = None,
    allow_missing: Annotated[bool, typer.Option(help="Leave out videos that have no features.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Train runs again that are there.")] = False,
    root: Root = None,
    seed: Seed = DEFAULTS.seed,
    device: Device = DEFAULTS.device,
    as_json: AsJson = False,
) -> None:
    """Train a head for every combination of values: OUT/sweep.csv (a row per run), sweep.png, sweep.json.

    The same command goes on with an interrupted sweep. Values are chosen by validation accuracy, never by the test videos.
    With --val-fraction 0 all training videos are trained on, as in the papers, and nothing is chosen.

    Orozco 2020, figure 4, units of the LSTM:

    har sweep kth.csv kth.zarr --protocol kth_original --units 40,120,200,280,320,360,400 --repeats 3 -o units

    Lakhal 2018, table 1, time steps T, and figure 3, depth x PCA dimension with and without skips:

    har sweep hmdb51.csv hmdb51.zarr --protocol hmdb51 --num-steps 5,15,25,35 --units 1024 -o steps

    har sweep hmdb51.csv hmdb51.zarr --protocol hmdb51 --head res_lstm,stacked_lstm --num-layers 2,3,4
    --pca 256,512,1024,2048 --num-steps 25 -o depth
    """
    import dataclasses

    from har_pipeline.datasets.manifests import manifest_sha256, read_manifest
    from har_pipeline.features.pack import open_features
    from har_pipeline.training.sweep import parse_axis, plan_points, run_sweep
    from har_pipeline.training.sweep_table import SUMMARY, write_sweep

    given = {
        "head": head,
        "features": features,
        "num_layers": num_layers,
        "pca": pca,
        "num_steps": num_steps,
        "units": units,
        "epochs": epochs,
    }
    axes = [parse_axis(name, text) for name, text in given.items() if text is not None]
    axes += [_axis_of(text) for text in option or ()]
    points = plan_points(axes, dataclasses.replace(DEFAULTS, seed=seed, device=device), "", out)
    records = read_manifest(manifest, root=root, check_files=False)
    sha256 = manifest_sha256(manifest)
    chosen = chosen_splits(
        records,
        split_file,
        protocol,
        split,
        seed=seed,
        val_fraction=val_fraction,
        num_folds=num_folds,
        test_fraction=test_fraction,
        column=column,
        sha256=sha256,
        ctx=ctx,
    )
    with sweep_table(points, len(chosen) * repeats) as on_done:
        result = run_sweep(
            open_features(store),
            records,
            chosen,
            points,
            repeats=repeats,
            folds=split == "all" and split_file is None,
            workers=workers,
            overwrite=overwrite,
            allow_missing=allow_missing,
            on_done=on_done,
        )
    first, last = chosen[0], chosen[-1]
    numbers = f"split {first.index}" if len(chosen) == 1 else f"splits {first.index} to {last.index}"
    summaries, choices = write_sweep(out, result, title=f"{first.protocol}, {numbers}")
    for text in dict.fromkeys(text for made in result.runs.values() for one in made for text in one.summary.notes):
        note(f"NOTE: {text}")
    if as_json:
        typer.echo((out / SUMMARY).read_text(encoding="utf-8"), nl=False)
    else:
        _print(summaries, choices, out)
    for name, why in result.failed.items():
        note(f"failed: {name}: {why}")
    if result.failed:
        raise typer.Exit(1)


def _axis_of(text: str) -> Axis:
    from har_pipeline.training.sweep import parse_axis

    name, equals, values = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--set {text!r}: write NAME=VALUE or NAME=VALUE,VALUE")
    return parse_axis(name.strip().replace("-", "_"), values)


def _print(summaries: Sequence[PointSummary], choices: Sequence[Choice], out: Path) -> None:
    rows = []
    for one in summaries:
        spread = "" if one.sd is None else f" ± {one.sd:.1%}"
        validation = "" if one.val_accuracy is None else f"{one.val_accuracy:.1%}"
        of_point = [value for _, value in one.values]
        measures = [validation, f"{one.accuracy:.1%}{spread}", f"{one.mean_class_accuracy:.1%}"]
        rows.append([*of_point, one.runs, *measures, f"{one.parameters:,}", f"{one.seconds:.1f}"])
    names = [name for name, _ in summaries[0].values]
    print_table([*names, "runs", "validation", "test", "mean class", "parameters", "seconds"], rows)
    if not choices:
        typer.echo(
            "No values are chosen: there are no validation videos (--val-fraction), and test videos do not choose."
        )
    for choice in choices:
        values = ", ".join(f"{name} {value}" for name, value in choice.values)
        typer.echo(
            f"split {choice.split}: {values} chosen by its validation accuracy {choice.val_accuracy:.1%}; "
            f"test video accuracy {choice.accuracy:.1%}"
        )
    if len(choices) > 1:
        mean = sum(choice.accuracy for choice in choices) / len(choices)
        typer.echo(f"mean test video accuracy of what each split chose: {mean:.1%}")
    typer.echo(f"written: {out}/sweep.csv, sweep.png, sweep.json")
