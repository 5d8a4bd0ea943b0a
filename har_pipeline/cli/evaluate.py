"""`har evaluate`: what a trained run is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli.options import AsJson, Device, Root, given_options
from har_pipeline.cli.output import note, print_json, print_table
from har_pipeline.cli.progress import video_bar

if TYPE_CHECKING:
    from har_pipeline.core.records import VideoRecord
    from har_pipeline.evaluation.aggregate import FoldsEvaluation, RepeatsEvaluation
    from har_pipeline.evaluation.categories import GroupResult
    from har_pipeline.evaluation.evaluate import Evaluation
    from har_pipeline.inference.cost import LiveCost, VideoTimes


def evaluate(
    ctx: typer.Context,
    run: Annotated[
        Path, typer.Argument(help="Run folder, a folder of folds or repeats of `har train`, or one of `har fuse`.")
    ],
    part: Annotated[str, typer.Option(help="test, or val.")] = "test",
    groups: Annotated[
        str, typer.Option(help="Also by coarse categories: ucf101, hmdb51, or a CSV file `class,group`.")
    ] = "",
    best_and_worst: Annotated[
        bool,
        typer.Option(help="Show the ten classes recognised best and worst; with more than 20 classes always."),
    ] = False,
    time: Annotated[
        bool, typer.Option(help="Of a run of `har train-video`: also measure seconds per video; needs --manifest.")
    ] = False,
    live: Annotated[
        bool,
        typer.Option(
            help="Of a stateful run of `har train-video`: also what the crop of a live camera, which knows the past only, "
            "costs in accuracy; needs --manifest."
        ),
    ] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="Of --time and --live: the manifest that names the videos' files.")
    ] = None,
    root: Root = None,
    time_videos: Annotated[int, typer.Option(help="Of --time: so many test videos, drawn at random.", min=1)] = 100,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Report accuracy with 95 % confidence intervals, per class, and write the confusion matrix (PNG and CSV).

    With --time also the mean seconds per video, one at a time: from the file on, and of the network alone (timing.json).
    With --live also the accuracy on the same videos of decisions that know the frames so far only (live.json).
    A file that either cannot read costs its video, and the exit code is 1.
    """
    if unread := _unread(ctx, time=time, live=live):
        note(f"NOTE: without --time{'' if live else ' or --live'}, without effect: {', '.join(unread)}")
    records = _records(run, "--time" if time else "--live", manifest, root) if time or live else []
    result = _measures(run, part, groups)
    times = _time(run, records, time_videos, device) if time else None
    cost = _live(run, records, part, device) if live else None
    if as_json:
        more = {"timing": times.to_dict()} if times else {}
        print_json({**result.to_dict(), **more, **({"live": cost.to_dict()} if cost else {})})
    else:
        for text in result.notes:
            note(f"NOTE: {text}")
        _print_result(result, run, best_and_worst)
        if times is not None:
            _print_times(times, run)
        if cost is not None:
            _print_live(cost)
    if (times and times.failed) or (cost and cost.failed):
        raise typer.Exit(1)


def _unread(ctx: typer.Context, *, time: bool, live: bool) -> list[str]:
    """Return the options given on the command line that change nothing, as they were written."""
    names = ["time_videos"] * (not time) + ["manifest", "root", "device"] * (not time and not live)
    return given_options(ctx, names)


def _print_result(result: Evaluation | FoldsEvaluation | RepeatsEvaluation, run: Path, best_and_worst: bool) -> None:
    from har_pipeline.evaluation.aggregate import FoldsEvaluation
    from har_pipeline.evaluation.evaluate import Evaluation

    if isinstance(result, Evaluation):
        _print_evaluation(result, run, best_and_worst)
    elif isinstance(result, FoldsEvaluation):
        _print_folds(result, run, best_and_worst)
    else:
        _print_repeats(result, run)


def _measures(run: Path, part: str, groups: str) -> Evaluation | FoldsEvaluation | RepeatsEvaluation:
    from har_pipeline.evaluation.aggregate import (
        evaluate_folds,
        evaluate_repeats,
        evaluate_scores_file,
        fold_folders,
        repeat_folders,
    )
    from har_pipeline.evaluation.categories import read_groups
    from har_pipeline.evaluation.evaluate import evaluate_run
    from har_pipeline.evaluation.plan import no_run_error

    grouping = read_groups(groups) if groups else None
    if (run / "run.json").exists():
        return evaluate_run(run, part=part, grouping=grouping)
    if (run / "fusion.json").exists():
        return evaluate_scores_file(run, part=part, grouping=grouping)
    if repeat_folders(run):
        return evaluate_repeats(run, part=part, grouping=grouping)
    if fold_folders(run):
        return evaluate_folds(run, part=part, grouping=grouping)
    raise no_run_error(run)


def _records(run: Path, option: str, manifest: Path | None, root: Path | None) -> list[VideoRecord]:
    """Return the rows with the videos' files, for an option that reads them of a single run."""
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.evaluation.plan import no_single_run_error

    if manifest is None:
        raise typer.BadParameter(f"{option} reads the videos' files: name their manifest with --manifest")
    if not (run / "run.json").exists():
        raise no_single_run_error(run, f"{option} measures one")
    return read_manifest(manifest, root=root, check_files=False)


def _time(run: Path, records: list[VideoRecord], videos: int, device: str) -> VideoTimes:
    from har_pipeline.core.files import write_json
    from har_pipeline.inference.cost import time_videos
    from har_pipeline.inference.load import load_video_run

    times = time_videos(load_video_run(run), records, videos=videos, device=device)
    write_json(run / "timing.json", times.to_dict())
    for video_id, reason in times.failed.items():
        note(f"not timed: {video_id}: {reason}")
    return times


def _live(run: Path, records: list[VideoRecord], part: str, device: str) -> LiveCost:
    from har_pipeline.inference.cost import measure_live_cost, write_live_cost

    with video_bar() as update:
        cost = measure_live_cost(
            run, records, part=part, device=device, on_video=lambda done, total: update("live", done, total)
        )
    for video_id, reason in cost.failed.items():
        note(f"not decided live: {video_id}: {reason}")
    note(f"written: {write_live_cost(cost, run if part == 'test' else run / part)}")
    return cost


def _print_times(times: VideoTimes, run: Path) -> None:
    from har_pipeline.evaluation.metrics import counted

    typer.echo(
        f"\nseconds per video: {times.whole_s:.3f} from the file on, {times.network_s:.3f} of the network alone "
        f"(mean of {counted(times.videos, 'video')} of {times.mean_frames:.0f} frames; {times.device}, {times.precision})"
    )
    typer.echo(f"written: {run}/timing.json")


def _print_live(cost: LiveCost) -> None:
    from har_pipeline.evaluation.metrics import counted

    found = cost.comparison
    points = 100 * (found.first_top1.value - found.second_top1.value)
    typer.echo(f"\nlive, by the frames so far   {found.second_top1.describe()}")
    typer.echo(f"the run's own scores         {found.first_top1.describe()}")
    typer.echo(
        f"deciding live costs {points:.1f} points on {counted(found.num_videos, 'video')}: right in the run's own scores "
        f"only: {found.test.first_only}, live only: {found.test.second_only} (McNemar's test: {found.test.describe_p()})"
    )


def _print_repeats(repeats: RepeatsEvaluation, run: Path) -> None:
    from har_pipeline.evaluation.aggregate import FoldsEvaluation, class_accuracy_of, top1_of, whole_of

    rows = []
    for seed, one in repeats.repeats.items():
        whole = whole_of(one)
        # Folds that share videos have means only.
        accuracy = whole.top1.describe() if whole else f"{top1_of(one):.1%}"
        rows.append([seed, accuracy, whole.mean_class.describe() if whole else f"{class_accuracy_of(one):.1%}"])
    of_folds = any(isinstance(one, FoldsEvaluation) for one in repeats.repeats.values())
    pooled = ", folds pooled" * (of_folds and repeats.pooled_top1 is not None)
    print_table(["seed", f"video accuracy{pooled}", f"mean class accuracy{pooled}"], rows)
    count = f"{len(rows)} repeats" if len(rows) > 1 else "1 repeat"
    count += ", of each over its folds" * of_folds
    typer.echo(
        f"mean over {count}: video accuracy {repeats.mean_top1:.1%}{_sd(repeats.sd_top1)}, "
        f"mean class accuracy {repeats.mean_class:.1%}{_sd(repeats.sd_class)}"
    )
    if repeats.pooled_top1 is not None:
        typer.echo(f"all test videos of a repeat pooled: {repeats.pooled_top1:.1%}{_sd(repeats.pooled_sd)}")
    if repeats.top1 is not None:
        typer.echo(f"95 % interval of the mean over repeats, for the test videos of one: {repeats.top1.describe()}")
    if repeats.per_group:
        typer.echo("\nmean over repeats by group; intervals for the videos of one repeat:")
        _print_groups(repeats.per_group)
    typer.echo(f"written: {run}/repeats.json, and the files of each repeat in its folder")


def _sd(value: float | None) -> str:
    return "" if value is None else f" (sd {value:.1%})"


def _print_folds(folds: FoldsEvaluation, run: Path, best_and_worst: bool) -> None:
    print_table(
        ["split", "videos", "video accuracy", "mean class accuracy"],
        [[i, e.num_videos, f"{e.top1.value:.1%}", f"{e.mean_class.value:.1%}"] for i, e in folds.folds.items()],
    )
    count = f"{len(folds.folds)} splits" if len(folds.folds) > 1 else "1 split"
    typer.echo(
        f"mean over {count}: video accuracy {folds.mean_top1:.1%}{_sd(folds.sd_top1)}, "
        f"mean class accuracy {folds.mean_class:.1%}"
    )
    if folds.pooled is not None:
        typer.echo("\nall test videos of these splits pooled:")
        _print_evaluation(folds.pooled, run, best_and_worst)
    elif folds.per_group:
        typer.echo("\nmean over splits by group; intervals for the videos of one split:")
        _print_groups(folds.per_group)


def _print_groups(results: Sequence[GroupResult]) -> None:
    rows = []
    for result in results:
        accuracy = result.accuracy.describe() if result.accuracy else "no test videos"
        within = f"{result.in_group.value:.1%}" if result.in_group else ""
        rows.append([result.name, result.classes, result.videos, accuracy, within])
    print_table(["group", "classes", "videos", "accuracy", "of the right group"], rows)


def _print_extremes(evaluation: Evaluation) -> None:
    from har_pipeline.evaluation.evaluate import extremes

    found = extremes(evaluation)
    if found is None:
        return
    rows: list[list[str | int]] = []
    for place, (best, worst) in enumerate(zip(found.best, found.worst, strict=True), start=1):
        assert best.accuracy is not None
        assert worst.accuracy is not None
        error = f" -> {worst.confused_with}" if worst.confused_with else ""
        rows.append(
            [place, f"{best.label} ({best.accuracy.value:.2%})", f"{worst.label}{error} ({worst.accuracy.value:.2%})"]
        )
    rows.append(["mean", f"{found.best_mean:.2%}", f"{found.worst_mean:.2%}"])
    typer.echo("")
    print_table(["", "recognised best", "recognised worst -> commonest error"], rows)


def _print_evaluation(evaluation: Evaluation, run: Path, best_and_worst: bool) -> None:
    from har_pipeline.evaluation.evaluate import EXTREMES
    from har_pipeline.evaluation.metrics import counted

    videos = counted(evaluation.num_videos, f"{evaluation.part} video")
    typer.echo(f"{videos}, {counted(len(evaluation.classes), 'class', 'classes')}")
    typer.echo(f"video accuracy top-1   {evaluation.top1.describe()}")
    if evaluation.top5 is not None:
        typer.echo(f"video accuracy top-5   {evaluation.top5.describe()}")
    typer.echo(f"mean class accuracy    {evaluation.mean_class.describe()}\n")
    rows = []
    for result in evaluation.per_class:
        accuracy = result.accuracy.describe() if result.accuracy else "no test videos"
        confused = f"{result.confused_with} ({result.confused_videos})" if result.confused_with else ""
        rows.append([result.label, result.videos, accuracy, confused])
    print_table(["class", "videos", "accuracy", "most confused with"], rows)
    if best_and_worst or len(evaluation.classes) > 2 * EXTREMES:
        _print_extremes(evaluation)
    if evaluation.per_group:
        typer.echo("")
        _print_groups(evaluation.per_group)
    curves = "training.png, " if (run / "training.png").exists() else ""
    typer.echo(
        f"\nwritten: {run}/{curves}confusion.png, confusion.csv, per_class.csv, best_and_worst.csv, evaluation.json"
    )
