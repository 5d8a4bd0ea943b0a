"""`har evaluate`: accuracies of trained runs, their speed, and the cost of live decisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from har_pipeline.cli.options import AsJson, Device, Root, given_options
from har_pipeline.cli.output import note, print_json, print_table, say
from har_pipeline.cli.progress import video_bar
from har_pipeline.core.text import counted

if TYPE_CHECKING:
    from har_pipeline.core.records import VideoRecord
    from har_pipeline.evaluation.categories import GroupResult
    from har_pipeline.evaluation.evaluate import Evaluation
    from har_pipeline.evaluation.metrics import Measures
    from har_pipeline.inference.cost import LiveCost, VideoTimes

INTERVALS = """\
In brackets: 95 % intervals. Of shares of videos Wilson's; of the mean class accuracy that of the mean of Jeffreys' posteriors
of the classes, which few videos in a class draw towards 50 %."""


def evaluate(
    ctx: typer.Context,
    run: Annotated[
        Path, typer.Argument(help="Run folder, folder of folds or repeats of `har train`, or result of `har fuse`.")
    ],
    part: Annotated[Literal["test", "val"], typer.Option(help="Videos to report on.")] = "test",
    groups: Annotated[
        str, typer.Option(help="Also report coarse categories: ucf101, hmdb51, or a CSV file `class,group`.")
    ] = "",
    best_and_worst: Annotated[
        bool, typer.Option(help="Show the ten best and worst classes; always shown with more than 20 classes.")
    ] = False,
    time: Annotated[
        bool, typer.Option(help="Measure seconds per video of a run of `har train-video`; needs --manifest.")
    ] = False,
    live: Annotated[
        bool,
        typer.Option(
            help="Measure the accuracy of a stateful run of `har train-video` when frames are cropped by past frames only, "
            "as with a live camera; needs --manifest."
        ),
    ] = False,
    manifest: Annotated[Path | None, typer.Option(help="Manifest with the video files, for --time and --live.")] = None,
    root: Root = None,
    time_videos: Annotated[int, typer.Option(help="Number of random test videos for --time.", min=1)] = 100,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results. Default: the run's, which otherwise stays as it is."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report accuracy with 95 % confidence intervals, per class, and the most confident mistakes; write them as files.

    Files: the confusion matrix (PNG, CSV), per_class.csv, mistakes.csv (every video classified wrong), evaluation.json.

    --time adds the mean seconds per video, one at a time: from the file, and of the network alone (timing.json).
    --live adds the accuracy of decisions that use past frames only, on the same videos (live.json).
    If either cannot read a file, that video is left out and the exit code is 1.
    """
    from har_pipeline.evaluation.categories import read_groups
    from har_pipeline.evaluation.evaluate import evaluate as evaluate_folder

    _note_unused(ctx, time=time, live=live)
    records = _records(run, "--time" if time else "--live", manifest, root) if time or live else []
    folder = out or run
    result = evaluate_folder(run, part=part, grouping=read_groups(groups) if groups else None, out=out)
    times = _time(run, records, time_videos, device, folder) if time else None
    cost = _live(run, records, part, device, folder) if live else None
    if as_json:
        more = {"timing": times.to_dict()} if times else {}
        print_json({**result.to_dict(), **more, **({"live": cost.to_dict()} if cost else {})})
    else:
        for text in result.notes:
            note(f"NOTE: {text}")
        _print_result(result, folder if part == "test" else folder / part, best_and_worst)
        if times is not None:
            _print_times(times, folder)
        if cost is not None:
            _print_live(cost)
    if (times and times.failed) or (cost and cost.failed):
        raise typer.Exit(1)


def _note_unused(ctx: typer.Context, *, time: bool, live: bool) -> None:
    names = ["time_videos"] * (not time) + ["manifest", "root", "device"] * (not time and not live)
    if unused := given_options(ctx, names):
        note(f"NOTE: without --time{'' if live else ' or --live'}, without effect: {', '.join(unused)}")


def _records(run: Path, option: str, manifest: Path | None, root: Path | None) -> list[VideoRecord]:
    """Return the manifest's rows, for an option that reads the video files of a single run."""
    from har_pipeline.evaluation.plan import require_single_run

    if manifest is None:
        raise typer.BadParameter(f"{option} reads the video files: name their manifest with --manifest")
    require_single_run(run, f"{option} measures one")
    from har_pipeline.datasets.manifests import read_manifest

    return read_manifest(manifest, root=root, check_files=False)


def _time(run: Path, records: list[VideoRecord], videos: int, device: str, folder: Path) -> VideoTimes:
    from har_pipeline.core.files import write_json
    from har_pipeline.inference.cost import time_videos

    with video_bar() as update:
        times = time_videos(
            run, records, videos=videos, device=device, on_video=lambda done, total: update("time", done, total)
        )
    write_json(folder / "timing.json", times.to_dict())
    for video_id, reason in times.failed.items():
        note(f"not timed: {video_id}: {reason}")
    return times


def _live(run: Path, records: list[VideoRecord], part: str, device: str, folder: Path) -> LiveCost:
    from har_pipeline.core.files import write_json
    from har_pipeline.inference.cost import measure_live_cost

    with video_bar() as update:
        cost = measure_live_cost(
            run, records, part=part, device=device, on_video=lambda done, total: update("live", done, total)
        )
    for video_id, reason in cost.failed.items():
        note(f"not decided live: {video_id}: {reason}")
    path = (folder if part == "test" else folder / part) / "live.json"
    write_json(path, cost.to_dict())
    note(f"written: {path}")
    return cost


def _print_times(times: VideoTimes, folder: Path) -> None:

    videos = f"{counted(times.videos, 'video')} of {times.mean_frames:.0f} frames on average"
    typer.echo(f"\n{videos}, one at a time; {times.device}, {times.precision}")
    rows = [
        ["from the file", f"{times.whole_s:.3f}", f"{times.whole_median_s:.3f}"],
        ["network alone", f"{times.network_s:.3f}", f"{times.network_median_s:.3f}"],
    ]
    print_table(["seconds per video", "mean", "median"], rows)
    say(f"written: {folder}/timing.json")


def _print_live(cost: LiveCost) -> None:

    found = cost.comparison
    typer.echo(f"\nlive decisions on {counted(found.num_videos, 'video')} (McNemar: {found.test.describe_p()})")
    rows = [
        ["the run's own, by the whole video", found.first_top1.describe(), found.test.first_only],
        ["live, by the frames so far", found.second_top1.describe(), found.test.second_only],
    ]
    print_table(["decisions", "video accuracy", "only these are right"], rows)
    typer.echo(
        f"live decisions lower the accuracy by {100 * (found.first_top1.value - found.second_top1.value):.1f} points"
    )


def _print_result(result: Evaluation, folder: Path, best_and_worst: bool) -> None:
    one = {"run": "", "folds": "split", "repeats": "repeat"}[result.kind]
    if result.members:
        _print_members(result, one)
    if result.measures is not None:
        if result.members:
            typer.echo(f"\nall {result.measures.part} videos of these splits pooled:")
        _print_measures(result.measures, best_and_worst)
    if result.per_group:
        typer.echo("" if result.measures else f"\nmean over {one}s by group; intervals for the videos of one {one}:")
        _print_groups(result.per_group)
    _print_mistakes(result)
    typer.echo(f"\n{INTERVALS}")
    written = [f"{result.kind}.json"] if result.members else []
    if (folder / "training.png").exists():
        written.append("training.png")
    if result.measures is not None:
        written += ["confusion.png", "confusion.csv", "per_class.csv", "best_and_worst.csv", "mistakes.csv"]
        written.append("evaluation.json")
    more = f", and the files of each {one} in its folder" if result.members else ""
    typer.echo("")
    say(f"written: {folder}/{', '.join(written)}{more}")


def _print_mistakes(result: Evaluation) -> None:
    from har_pipeline.evaluation.metrics import EXTREMES

    found = result.mistakes
    if not found:
        typer.echo("\nno video was classified wrong")
        return
    shown = found[:EXTREMES]
    of = "" if len(found) == len(shown) else f" of {len(found)}"
    typer.echo(f"\nthe most confident mistakes ({len(shown)}{of}):")
    # Only what tells them apart; runs of one split have one fold.
    seeds = len({one.seed for one in found}) > 1
    rows: list[list[object]] = [
        [one.video_id, one.label, one.predicted, f"{one.probability:.1%}", *[one.seed] * seeds] for one in shown
    ]
    print_table(["video_id", "true class", "predicted", "probability", *["seed"] * seeds], rows)


def _print_members(result: Evaluation, one: str) -> None:

    rows: list[list[object]] = []
    for number, member in result.members.items():
        if member.measures is not None:
            found = member.measures
            rows.append([number, found.num_videos, found.top1.describe(), found.mean_class.describe()])
        else:  # folds that share videos have means only
            rows.append([number, "", f"{member.mean_top1:.1%}", f"{member.mean_class:.1%}"])
    pooled = ", folds pooled" if result.pooled_top1 is not None else ""
    print_table(
        [
            "split" if result.kind == "folds" else "seed",
            "videos",
            f"video accuracy{pooled}",
            f"mean class accuracy{pooled}",
        ],
        rows,
    )
    of_folds = any(member.kind == "folds" for member in result.members.values())
    means = f"mean over {counted(len(rows), one)}{', of each over its folds' if of_folds else ''}"
    accuracies = f"video accuracy {result.mean_top1:.1%}{_sd(result.sd_top1)}"
    typer.echo(f"{means}: {accuracies}, mean class accuracy {result.mean_class:.1%}{_sd(result.sd_class)}")
    if result.pooled_top1 is not None:
        typer.echo(f"all test videos of a repeat pooled: {result.pooled_top1:.1%}{_sd(result.pooled_sd)}")
    if result.kind == "repeats" and result.top1 is not None:
        typer.echo(f"95 % interval of the mean over repeats, for the test videos of one: {result.top1.describe()}")


def _sd(value: float | None) -> str:
    return "" if value is None else f" (sd {value:.1%})"


def _print_measures(measures: Measures, best_and_worst: bool) -> None:
    from har_pipeline.evaluation.metrics import EXTREMES

    videos = counted(measures.num_videos, f"{measures.part} video")
    typer.echo(f"{videos}, {counted(len(measures.classes), 'class', 'classes')}")
    typer.echo(f"video accuracy top-1   {measures.top1.describe()}")
    if measures.top5 is not None:
        typer.echo(f"video accuracy top-5   {measures.top5.describe()}")
    typer.echo(f"mean class accuracy    {measures.mean_class.describe()}\n")
    rows = []
    for result in measures.per_class:
        accuracy = result.accuracy.describe() if result.accuracy else "no test videos"
        confused = f"{result.confused_with} ({result.confused_videos})" if result.confused_with else ""
        rows.append([result.label, result.videos, accuracy, confused])
    print_table(["class", "videos", "accuracy", "most confused with"], rows)
    if best_and_worst or len(measures.classes) > 2 * EXTREMES:
        _print_extremes(measures)


def _print_extremes(measures: Measures) -> None:
    from har_pipeline.evaluation.metrics import extremes

    found = extremes(measures)
    if found is None:
        return
    rows: list[list[object]] = []
    for place, (best, worst) in enumerate(zip(found.best, found.worst, strict=True), start=1):
        assert best.accuracy is not None
        assert worst.accuracy is not None
        high, low = f"{best.accuracy.value:.2%}", f"{worst.accuracy.value:.2%}"
        rows.append([place, best.label, high, worst.label, low, worst.confused_with])
    rows.append(["mean", "", f"{found.best_mean:.2%}", "", f"{found.worst_mean:.2%}", ""])
    typer.echo("")
    print_table(["", "best", "accuracy", "worst", "accuracy", "most confused with"], rows)


def _print_groups(results: Sequence[GroupResult]) -> None:
    rows = []
    for result in results:
        accuracy = result.accuracy.describe() if result.accuracy else "no test videos"
        within = f"{result.in_group.value:.1%}" if result.in_group else ""
        rows.append([result.name, result.classes, result.videos, accuracy, within])
    print_table(["group", "classes", "videos", "accuracy", "of the right group"], rows)
