"""`har sweep`: training over values of options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from har_pipeline.cli import options
from har_pipeline.cli.options import with_options
from har_pipeline.cli.output import note, print_table
from har_pipeline.cli.progress import sweep_table
from har_pipeline.cli.split_options import chosen_splits
from har_pipeline.core.errors import first_few
from har_pipeline.core.options import option, options_of
from har_pipeline.core.signals import goes_on_when_repeated
from har_pipeline.datasets.splits import SplitChoice
from har_pipeline.training.axes import FEATURES, NOT_SWEPT, parse_axis
from har_pipeline.training.options import TrainConfig

if TYPE_CHECKING:
    from har_pipeline.training.sweep import SweepRuns
    from har_pipeline.training.sweep_table import Choice, PointSummary

SWEPT = "Swept: one value, or several separated by commas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """The values of the options that are swept most, as text; a later one varies faster in the table."""

    head: str | None = option(
        None, "Heads, as of `har train`; res_lstm,stacked_lstm = with and without skips.", panel=SWEPT
    )
    features: str | None = option(None, "Feature sets, or prefixes of their names.", panel=SWEPT)
    num_layers: str | None = option(None, "Recurrent layers.", panel=SWEPT)
    pca: str | None = option(
        None, "PCA dimensions; fitted on each split's training videos and kept in STORE.", panel=SWEPT
    )
    num_steps: str | None = option(None, "Clips to use of each video, evenly spaced (T in Lakhal 2018).", panel=SWEPT)
    units: str | None = option(None, "Units of each recurrent layer.", panel=SWEPT)
    epochs: str | None = option(None, "Training epochs.", panel=SWEPT)

    def given(self, others: Sequence[str]) -> list[tuple[str, str]]:
        """Return (option, values) of every swept option; others: NAME=VALUES of `--set`."""
        named = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        found = [(name, values) for name, values in named if values is not None]
        for text in others:
            name, equals, values = text.partition("=")
            if not equals:
                raise typer.BadParameter(f"--set {text!r}: write NAME=VALUE or NAME=VALUE,VALUE")
            found.append((name.strip().replace("-", "_"), values))
        return found


class Command(options.Command):
    """`har sweep`, which tells how an option of `har train` is swept that it has not by itself."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments."""
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:  # Typer has no public name for that of an unknown option
            name = str(getattr(error, "option_name", "")).removeprefix("--").replace("-", "_").removeprefix("no_")
            if name not in options_of(TrainConfig) or name in NOT_SWEPT:
                raise
            raise typer.BadParameter(
                f"--{name.replace('_', '-')} is swept as --set {name}=VALUE,VALUE", ctx=getattr(error, "ctx", None)
            ) from error


@with_options
def sweep(
    *,
    ctx: typer.Context,
    manifest: options.Manifest,
    store: options.StoreOrPack,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("sweep"),
    swept: Swept,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUES of any other option of `har train`, such as dropout=0,0.5.",
            rich_help_panel=SWEPT,
        ),
    ] = None,
    split: SplitChoice,
    repeats: options.Repeats = 1,
    workers: Annotated[
        int | None, typer.Option(help="Training processes. Default: one per core, or one with a GPU.", min=1)
    ] = None,
    allow_missing: options.AllowMissing = False,
    overwrite: options.Overwrite = False,
    root: options.Root = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Train a head for every combination of values: OUT/sweep.csv (a row per run), sweep.png, sweep.json.

    Run again to continue an interrupted sweep. Values are chosen by validation accuracy, never by the test videos.
    With --val-fraction 0 all training videos are trained on, as in the papers, and nothing is chosen.

    Orozco 2020, figure 4, units of the LSTM:

    har sweep kth.csv kth.zarr --protocol kth_original --val-fraction 0 --units 40,120,200,280,320,360,400
    --set output=sigmoid --set standardise=false -o units

    Lakhal 2018, table 1, time steps T, and figure 3, depth x PCA dimension with and without skips:

    har sweep hmdb51.csv hmdb51.zarr --protocol hmdb51 --val-fraction 0 --num-steps 5,15,25,35 --units 1024
    --set standardise=false -o steps

    har sweep hmdb51.csv hmdb51.zarr --protocol hmdb51 --val-fraction 0 --head res_lstm,stacked_lstm --num-layers 2,3,4
    --pca 256,512,1024,2048 --num-steps 25 --set standardise=false -o depth
    """
    from har_pipeline.datasets.manifests import read_manifest

    options.check_folder(out)
    axes = [parse_axis(name, values) for name, values in swept.given(others or ())]
    records = read_manifest(manifest, root=root, check_files=False)
    from har_pipeline.features.pack import open_features

    opened = open_features(store)
    for prefix in next((axis.values for axis in axes if axis.name == FEATURES), ("",)):
        opened.resolve(str(prefix))
    chosen = chosen_splits(ctx, manifest, records, split.with_validation(True))

    from har_pipeline.training.sweep import plan_points, run_sweep
    from har_pipeline.training.sweep_table import SUMMARY, write_sweep

    points = plan_points(axes, TrainConfig(seed=split.seed, device=device), "", out)
    specs = {point.feature_set: opened.spec(opened.resolve(point.feature_set)) for point in points}
    _note_scaling([point.config.for_features([specs[point.feature_set]]) for point in points])
    goes_on_when_repeated()
    with sweep_table(points, len(chosen) * repeats) as on_done:
        result = run_sweep(
            opened,
            records,
            chosen,
            points,
            repeats=repeats,
            folds=split.every,
            workers=workers,
            overwrite=overwrite,
            allow_missing=allow_missing,
            origin=options.run_origin(ctx, manifest, root),
            on_done=on_done,
        )
    first, last = chosen[0], chosen[-1]
    numbers = f"split {first.index}" if len(chosen) == 1 else f"splits {first.index} to {last.index}"
    summaries, choices = write_sweep(out, result, title=f"{first.protocol}, {numbers}")
    _note_runs(result)
    if as_json:
        typer.echo((out / SUMMARY).read_text(encoding="utf-8"), nl=False)
    else:
        _print(summaries, choices, out)
    for name, why in result.failed.items():
        note(f"failed: {name}: {why}")
    if result.failed:
        raise typer.Exit(1)


def _note_scaling(configs: Sequence[TrainConfig]) -> None:
    """Say where heads are compared of which some scale their features by default and others do not."""
    left = [config for config in configs if config.standardise is None]
    scaled, plain = (dict.fromkeys(c.head for c in left if c.scales_features == way) for way in (True, False))
    if scaled and plain:
        note(
            f"NOTE: features are scaled for {', '.join(scaled)} and plain for {', '.join(plain)}, the default of each; "
            "--set standardise=false: plain for all"
        )


def _note_runs(result: SweepRuns) -> None:
    """Say what the runs note, and of which points where it is not all of them."""
    told: dict[str, dict[str, None]] = {}
    for point, made in result.runs.items():
        for text in (text for one in made for text in one.summary.notes):
            told.setdefault(text, {})[point.folder.name] = None
    for text, points in told.items():
        of_points = "" if len(points) == len(result.runs) else f"{first_few(list(points))}: "
        note(f"NOTE: {of_points}{text}")


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
            "no values chosen: choosing needs validation videos (--val-fraction above 0); test videos are never used for it"
        )
    for choice in choices:
        values = ", ".join(f"{name} {value}" for name, value in choice.values)
        typer.echo(
            f"split {choice.split}: {values} chosen by its validation accuracy {choice.val_accuracy:.1%}; "
            f"test video accuracy {choice.accuracy:.1%}"
        )
    if len(choices) > 1:
        mean = sum(choice.accuracy for choice in choices) / len(choices)
        typer.echo(f"mean test video accuracy of the chosen values: {mean:.1%}")
    typer.echo(f"written: {out}/sweep.csv, sweep.png, sweep.json")
