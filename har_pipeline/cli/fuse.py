"""`har fuse` and `har compare`: several runs on the same videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from har_pipeline.cli.options import AsJson, check_folder
from har_pipeline.cli.output import note, print_json, print_table
from har_pipeline.core.errors import first_few
from har_pipeline.core.text import counted

if TYPE_CHECKING:
    from har_pipeline.evaluation.compare import Comparison
    from har_pipeline.evaluation.fusion_table import FusionTable
    from har_pipeline.evaluation.members import Member


Rule = Literal["sum", "product", "weighted", "learned"]


def fuse(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two or more: run folders, folders of folds or repeats, results of `har fuse`."),
    ],
    weights: Annotated[
        str, typer.Option(help="Weights of the rule `weighted`, one per run, such as 1.5,1 for flow and RGB.")
    ] = "",
    learn_weights: Annotated[
        bool, typer.Option("--learn-weights", help="Add the rule `learned`: weights fitted on the validation videos.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First fit the temperature of each run on its validation videos.")
    ] = False,
    rule: Annotated[
        Rule, typer.Option(help="Rule whose scores are written. Choose it before you look at the table.")
    ] = "product",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("fusion"),
    as_json: AsJson = False,
) -> None:
    """Fuse the class probabilities of several runs, joined by video id, and test every rule against each run alone.

    Writes fusion.json, fusion.csv and scores.csv of the chosen rule, which `har evaluate` and `har fuse` read again.
    """
    check_folder(out)
    if len(runs) < 2:
        raise typer.BadParameter("give two runs or more")
    given = _numbers(weights) if weights else None
    if given and len(given) != len(runs):
        raise typer.BadParameter(f"{len(given)} weights for {len(runs)} runs")
    members = _load(runs)
    # After the paths are known to be runs: this imports scipy.
    from har_pipeline.evaluation.fusion_table import fuse as fuse_members
    from har_pipeline.evaluation.fusion_table import write_fusion

    table, scores = fuse_members(
        members,
        weights=given,
        learn=learn_weights or rule == "learned",
        calibrated=calibrate,
        chosen=rule,
    )
    write_fusion(out, table, scores, members)
    some, every = (" in some repeat", " of every repeat") if len(table.seeds) > 1 else ("", "")
    _note_all(
        table.missing, f"no scores{some} for {{}} that other runs have, left out{every}", table.notes, "test video"
    )
    if as_json:
        print_json(table.to_dict())
    else:
        _print_fusion(table, out)


def _load(paths: list[Path]) -> list[Member]:
    from har_pipeline.evaluation.members import load_members
    from har_pipeline.evaluation.plan import unfinished

    if len({path.resolve() for path in paths}) < len(paths):
        raise typer.BadParameter("the same run is given twice")
    members = load_members(paths)
    for path in paths:
        for text in unfinished(path):
            note(f"NOTE: {path}: {text}")
    return members


def _note_all(missing: Mapping[str, Sequence[str]], text: str, notes: Sequence[str], noun: str) -> None:
    """Print which videos of each run are left out (text: with a place for their number), and the notes."""

    for name, ids in missing.items():
        if ids:
            note(f"{name}: {text.format(counted(len(ids), noun))}: {first_few(ids)}")
    for line in notes:
        note(f"NOTE: {line}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--weights {text!r}: give numbers, as in 1.5,1") from None


def _print_fusion(table: FusionTable, out: Path) -> None:

    repeats = f", {len(table.seeds)} repeats" if len(table.seeds) > 1 else ""
    count = f"{counted(table.num_videos, 'test video')}, {counted(len(table.folds), 'fold')}{repeats}"
    typer.echo(f"{count}; top-1 with 95 % interval; the last columns compare the best rule with each line")
    paired_header = ["only best rule right", "only this right", "McNemar"]
    if table.num_rows > table.num_videos:
        paired_header = ["best rule more often right", "this more often right", "sign test"]
    rows = []
    for row in table.rows:
        test = row.against_best
        name = row.name + (" (best rule)" if row.name == table.best else "")
        sd = [] if len(table.seeds) == 1 else ["" if row.sd is None else f"{100 * row.sd:.1f}"]
        nll = "" if row.nll is None else f"{row.nll:.3f}"
        paired = [test.first_only, test.second_only, test.describe_p()] if test else ["", "", ""]
        rows.append([name, row.kind, row.top1.describe(), *sd, nll, *paired])
    header = ["what", "kind", "video accuracy", *(["sd of repeats"] if len(table.seeds) > 1 else []), "NLL / nats"]
    print_table([*header, *paired_header], rows)
    for fold, values in table.learned_weights.items():
        typer.echo(f"learned weights, {fold}: {', '.join(f'{value:.2f}' for value in values)}")
    for fold, values in table.temperatures.items():
        typer.echo(f"temperatures, {fold}: {', '.join(f'{value:.2f}' for value in values)}")
    typer.echo(f"\n{table.verdict}")
    typer.echo(f"written: {out}/fusion.json, fusion.csv, scores.csv ({table.chosen})")


def compare(
    first: Annotated[Path, typer.Argument(help="A run, as `har fuse` takes it.")],
    second: Annotated[Path, typer.Argument(help="Another run on the same videos, compared with the first.")],
    groups: Annotated[
        str, typer.Option(help="Order classes by coarse categories: ucf101, hmdb51, or a CSV file `class,group`.")
    ] = "",
    part: Annotated[Literal["test", "val"], typer.Option(help="Videos to report on.")] = "test",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("comparison"),
    as_json: AsJson = False,
) -> None:
    """Compare two runs class by class: gains, the difference of their confusion matrices (PNG, CSV), McNemar's test."""
    from har_pipeline.evaluation.categories import read_groups

    check_folder(out)
    grouping = read_groups(groups) if groups else None
    one, two = _load([first, second])
    from har_pipeline.evaluation.compare import compare_members, write_comparison

    comparison = compare_members(one, two, grouping=grouping, part=part)
    write_comparison(comparison, out)
    text = "not all scores of {} of the other run, left out of every repeat"
    _note_all(comparison.missing, text, comparison.notes, "video")
    if as_json:
        print_json(comparison.to_dict())
    else:
        _print_comparison(comparison, out)


def _print_comparison(comparison: Comparison, out: Path) -> None:

    first, second = comparison.runs
    test = comparison.test
    repeated = comparison.num_rows > comparison.num_videos
    more = f" ({comparison.num_rows} rows: a video counts in each fold and repeat)" if repeated else ""
    count = counted(comparison.num_videos, f"{comparison.part} video")
    typer.echo(f"{count}{more}; video accuracy top-1 with 95 % interval")
    print_table(
        ["run", "video accuracy", "videos more often right" if repeated else "videos only this run has right"],
        [
            [first, comparison.first_top1.describe(), test.first_only],
            [second, comparison.second_top1.describe(), test.second_only],
        ],
    )
    typer.echo(f"{'sign test' if repeated else 'McNemar'}: {test.describe_p()}\n")
    changed = sorted((row for row in comparison.per_class if row.gain), key=lambda row: -row.gain)
    rows = [
        [row.label, row.videos, f"{row.first:.1%}", f"{row.second:.1%}", f"{100 * row.gain:+.1f}"]
        for row in (*changed, *comparison.per_group)
    ]
    if rows:
        print_table(["class or group", "videos", first, second, "gain / points"], rows)
    else:
        typer.echo("all classes have the same accuracy in both runs")
    better, same = sum(row.gain > 0 for row in changed), len(comparison.per_class) - len(changed)
    typer.echo(f"\n{counted(better, 'class', 'classes')} better, {len(changed) - better} worse, {same} unchanged")
    typer.echo(f"written: {out}/difference.png, difference.csv, class_gains.png, class_gains.csv, comparison.json")
