"""`har report`: results as a page that opens from the disk."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from har_pipeline.cli.options import AsJson, Root
from har_pipeline.cli.output import note, print_json, say
from har_pipeline.cli.progress import video_bar
from har_pipeline.core.objects import StorePath, store_path

if TYPE_CHECKING:
    from har_pipeline.core.records import Moments
    from har_pipeline.evaluation.run_folder import RunRecord


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, folders of folds or repeats, results of `har fuse`, folders of `har sweep`."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder to write, or with --single-file a file. Default: report, report.html."
        ),
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Write one file that holds its pictures, instead of a folder.")
    ] = False,
    title: Annotated[str, typer.Option(help="Title of the page. Default: the names of the runs.")] = "",
    part: Annotated[Literal["test", "val"], typer.Option(help="Videos to report on.")] = "test",
    groups: Annotated[
        str, typer.Option(help="Order classes by coarse categories: ucf101, hmdb51, or a CSV file `class,group`.")
    ] = "",
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest with the video files, for pictures. Default: the one of the training.")
    ] = None,
    root: Root = None,
    store: Annotated[
        StorePath | None,
        typer.Option(
            parser=store_path, help="Feature store, for lengths and failures. Default: the one of the training."
        ),
    ] = None,
    videos: Annotated[
        int | None,
        typer.Option(
            help="Most videos shown of each run, mistakes first. Default: 24; of several runs 12 each.", min=0
        ),
    ] = None,
    clips: Annotated[bool, typer.Option(help="Keep short clips of the videos, which can be played.")] = True,
    as_json: AsJson = False,
) -> None:
    """Write a page of results that opens from the disk without a network: index.html in a folder, or one file.

    Accuracies with intervals, the confusion matrix, classes, mistaken videos, calibration, learning curves, how features and
    runs were made; of several runs also paired tests, gains by class, fusions and sweeps.
    """
    from har_pipeline.evaluation.categories import read_groups
    from har_pipeline.report.data import ReportSources, collect_results

    grouping = read_groups(groups) if groups else None
    records = {}
    if manifest is not None:
        from har_pipeline.datasets.manifests import read_manifest

        records = {record.video_id: record for record in read_manifest(manifest, root=root, check_files=False)}
    elif root is not None:
        raise typer.BadParameter("--root belongs to --manifest")
    with video_bar() as update:
        found = collect_results(
            runs,
            title=title,
            part=part,
            grouping=grouping,
            sources=ReportSources(records=records, store=store),
            at_most=videos,
            clips=clips,
            read_moments=functools.partial(_moments, store),
            on_video=lambda name, done, total: update(f"gallery of {name}", done, total),
        )
    from har_pipeline.report.page import write_report

    written = write_report(found, out or Path("report.html" if single_file else "report"), single_file=single_file)
    for name, why in found.left_out:
        note(f"NOTE: {name} is left out: {why}")
    for names, why in found.uncompared:
        note(f"NOTE: not compared: {names}: {why}")
    if as_json:
        print_json(found.to_dict())
        note(f"written: {written}")
    else:
        for one in found.results:
            interval = one.headline[0].interval
            say(f"{one.name}: video accuracy {interval.describe() if interval else f'{one.top1:.1%}'}")
        say(f"written: {written}")


def _moments(store: StorePath | None, run: RunRecord, video_ids: Sequence[str]) -> Mapping[str, Moments]:
    """Return the moments of a run's videos; loads torch when there are runs to show, not before."""
    from har_pipeline.inference.moments import moments_of

    return moments_of(run, video_ids, store)
