"""The pictures of `har features show`: a video's feature sequence, and a feature set in a plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import typer

from har_pipeline.cli.output import note, say
from har_pipeline.core.text import counted

if TYPE_CHECKING:
    from har_pipeline.features.reader import FeatureReader

SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(video: str | None, projection: str | None, manifest: Path | None, out: Path | None) -> None:
    """Check the options of the pictures. Raises: typer.BadParameter if they do not go together."""
    from har_pipeline.features.projection import ProjectionName

    if video is not None and projection is not None:
        raise typer.BadParameter("--video and --projection are two pictures: give one of them")
    if out is not None and video is None and projection is None:
        raise typer.BadParameter("--out is of a picture: give --video or --projection as well")
    if projection is not None and projection not in get_args(ProjectionName):
        raise typer.BadParameter(f"--projection {projection!r}: choose {' or '.join(get_args(ProjectionName))}")
    if projection is not None and manifest is None:
        raise typer.BadParameter("--projection takes the classes from a manifest: name it with --manifest")
    if manifest is not None and projection is None:
        raise typer.BadParameter("--manifest is for --projection")
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"{out}: a picture ends in {', '.join(SUFFIXES)}")


def draw_video(store: FeatureReader, feature_set: str, video_id: str, out: Path) -> None:
    """Draw the feature sequence of a video."""
    from har_pipeline.evaluation.plots import save_feature_sequence

    record = store.read(feature_set, video_id)
    length_s = record.num_frames / record.fps if record.fps > 0 else None
    features, title = record.features, f"{video_id} · {feature_set}"
    if (tokens := store.spec(feature_set).rows_per_clip) > 1:
        features = features.reshape(-1, tokens, features.shape[1]).mean(axis=1, dtype="float32")
        title += f" · mean of each clip's {tokens} tokens"
    save_feature_sequence(out, features, record.clip_times_s, title=title, length_s=length_s)
    say(f"written: {out}")


def draw_projection(store: FeatureReader, feature_set: str, manifest: Path, how: str, out: Path) -> None:
    """Draw the videos of a feature set that a manifest lists, coloured by their classes."""
    from har_pipeline.core.errors import StoreError
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.evaluation.plots import save_projection
    from har_pipeline.features.projection import project, video_means

    labels = {record.video_id: record.label for record in read_manifest(manifest, check_files=False)}
    there = store.video_ids(feature_set)
    ids = [video_id for video_id in there if video_id in labels]
    if not ids:
        raise StoreError(
            f"{manifest} lists none of the {len(there)} videos of {feature_set}: is it of another data set?"
        )
    for count, text in (
        (len(there) - len(ids), f"that {manifest} does not list"),
        (len(labels) - len(ids), f"of {manifest} that have no features"),
    ):
        if count:
            note(f"NOTE: {counted(count, 'video')} {text}: left out")
    found = project(video_means(store, feature_set, ids), "pca" if how == "pca" else "tsne")
    save_projection(
        out,
        found.points,
        [labels[video_id] for video_id in ids],
        axes_names=found.axes,
        title=f"{feature_set}\nmean over the steps of each of {len(ids)} videos, {found.method}",
    )
    say(f"written: {out}")
