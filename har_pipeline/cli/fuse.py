"""`har fuse` and `har compare`: several runs on the same videos."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli.options import AsJson
from har_pipeline.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from har_pipeline.evaluation.compare import Comparison
    from har_pipeline.evaluation.fusion_table import Fusion


class Rule(StrEnum):
    """Rules whose scores can be written."""

    sum = "sum"
    product = "product"
    weighted = "weighted"
    learned = "learned"


def fuse(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two or more: run folders, folders of folds or repeats, results of `har fuse`."),
    ],
    weights: Annotated[
        str, typer.Option(help="Weights of the rule `weighted`, one per run, such as 1.5,1 for flow and RGB.")
    ] = "",
    learn_weights: Annotated[
        bool, typer.Option("--learn-weights", help="Add the rule `learned`: weights that suit the validation videos.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Scale each run's temperature on its validation videos first.")
    ] = False,
    rule: Annotated[
        Rule, typer.Option(help="The rule whose scores are written. Name it before you look at the table.")
    ] = Rule.product,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("fusion"),
    as_json: AsJson = False,
) -> None:
    """Fuse the class probabilities of several runs, joined by video id, and test every rule against each run alone.

    Writes fusion.json, fusion.csv and scores.csv of the chosen rule, which `har evaluate` and `har fuse` read again.
    """
    from har_pipeline.evaluation.fusion_table import fusion_table, load_members, write_fusion
    from har_pipeline.evaluation.metrics import counted

    members = load_members(runs)
    _note_unfinished(runs)
    table, scores = fusion_table(
        members,
        weights=_numbers(weights) if weights else None,
        learn=learn_weights or rule == Rule.learned,
        calibrated=calibrate,
        chosen=rule.value,
    )
    write_fusion(out, table, scores, members)
    for name, ids in table.missing.items():
        if ids:
            some, every = (" in some repeat", " of every repeat") if len(table.seeds) > 1 else ("", "")
            shown = ", ".join(ids[:5])
            videos = counted(len(ids), "test video")
            note(f"{name}: no scores{some} for {videos} that other runs have, left out{every}: {shown}")
    for text in table.notes:
        note(f"NOTE: {text}")
    if as_json:
        print_json(table.to_dict())
    else:
        _print_fusion(table, out)


def _note_unfinished(runs: list[Path]) -> None:
    from har_pipeline.evaluation.aggregate import unfinished

    for run in runs:
        for text in unfinished(run):
            note(f"NOTE: {run}: {text}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--weights {text!r}: give numbers, as in 1.5,1") from None


def _print_fusion(table: Fusion, out: Path) -> None:
    from har_pipeline.evaluation.metrics import counted

    repeats = f", {len(table.seeds)} repeats" if len(table.seeds) > 1 else ""
    count = f"{counted(table.num_videos, 'test video')}, {counted(len(table.folds), 'fold')}{repeats}"
    typer.echo(f"{count}; top-1 with 95 % interval")
    rows = []
    for row in table.rows:
        test = row.against_best
        paired = f"+{test.first_only} -{test.second_only}, {test.describe_p()}" if test else ""
        rows.append(
            [
                row.name + (" (best rule)" if row.name == table.best else ""),
                row.kind,
                row.top1.describe(),
                "" if row.sd is None else f"{100 * row.sd:.1f}",
                "" if row.nll is None else f"{row.nll:.3f}",
                paired,
            ]
        )
    repeated = table.num_rows > table.num_videos
    test_name = "more often right, less often; sign test" if repeated else "gained, lost; McNemar"
    versus = f"best rule against it: videos {test_name}"
    header = ["what", "kind", "video accuracy", "sd of repeats", "NLL / nats", versus]
    if len(table.seeds) == 1:
        header, rows = [*header[:3], *header[4:]], [[*row[:3], *row[4:]] for row in rows]
    print_table(header, rows)
    for fold, values in table.learned_weights.items():
        typer.echo(f"learned weights, {fold}: {', '.join(f'{value:.2f}' for value in values)}")
    for fold, values in table.temperatures.items():
        typer.echo(f"temperatures, {fold}: {', '.join(f'{value:.2f}' for value in values)}")
    typer.echo(f"\n{table.verdict}")
    typer.echo(f"written: {out}/fusion.json, fusion.csv, scores.csv ({table.chosen})")


def compare(
    first: Annotated[Path, typer.Argument(help="A run, as `har fuse` takes it.")],
    second: Annotated[Path, typer.Argument(help="Another run on the same videos: what it gains over the first.")],
    groups: Annotated[
        str, typer.Option(help="Order classes by coarse categories: ucf101, hmdb51, or a CSV file `class,group`.")
    ] = "",
    part: Annotated[str, typer.Option(help="test, or val.")] = "test",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("comparison"),
    as_json: AsJson = False,
) -> None:
    """Compare two runs class by class: gains, the difference of their confusion matrices (PNG, CSV), McNemar's test."""
    from har_pipeline.evaluation.categories import read_groups
    from har_pipeline.evaluation.compare import compare_members, write_comparison
    from har_pipeline.evaluation.fusion_table import load_members
    from har_pipeline.evaluation.metrics import counted

    grouping = read_groups(groups) if groups else None
    one, two = load_members([first, second])
    _note_unfinished([first, second])
    comparison = compare_members(one, two, grouping=grouping, part=part)
    write_comparison(comparison, out)
    for name, ids in comparison.missing.items():
        if ids:
            shown = ", ".join(ids[:5])
            videos = counted(len(ids), "video")
            note(f"{name}: not all scores of {videos} of the other run, left out of every repeat: {shown}")
    for text in comparison.notes:
        note(f"NOTE: {text}")
    if as_json:
        print_json(comparison.to_dict())
    else:
        _print_comparison(comparison, out)


def _print_comparison(comparison: Comparison, out: Path) -> None:
    from har_pipeline.evaluation.metrics import counted

    first, second = comparison.runs
    test = comparison.test
    repeated = comparison.num_rows > comparison.num_videos
    more = f" ({comparison.num_rows} rows: a video counts in each fold and repeat)" if repeated else ""
    right, only = ("more often right under", "") if repeated else ("right under", " only")
    count = counted(comparison.num_videos, f"{comparison.part} video")
    typer.echo(f"{count}{more}; video accuracy top-1 with 95 % interval")
    print_table(
        ["run", "video accuracy"],
        [[first, comparison.first_top1.describe()], [second, comparison.second_top1.describe()]],
    )
    typer.echo(
        f"{'sign test' if repeated else 'McNemar'}: {counted(test.second_only, 'video')} {right} {second}{only}, "
        f"{test.first_only} {right} {first}{only}, {test.describe_p()}\n"
    )
    changed = sorted((row for row in comparison.per_class if row.gain), key=lambda row: -row.gain)
    same = len(comparison.per_class) - len(changed)
    rows = [
        [row.label, row.videos, f"{row.first:.1%}", f"{row.second:.1%}", f"{100 * row.gain:+.1f}"]
        for row in (*changed, *comparison.per_group)
    ]
    if rows:
        print_table(["class or group", "videos", first, second, "gain / points"], rows)
    else:
        typer.echo("no class has another accuracy under the second run than under the first")
    better = sum(row.gain > 0 for row in changed)
    typer.echo(f"\n{counted(better, 'class', 'classes')} better, {len(changed) - better} worse, {same} as before")
    typer.echo(f"written: {out}/difference.png, difference.csv, class_gains.png, class_gains.csv, comparison.json")
