"""`har predict`: the answers of a trained run, for files, or while a video is under way."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli.options import AsJson, Device, Workers
from har_pipeline.cli.output import note, print_json
from har_pipeline.cli.progress import extraction_bar, video_bar
from har_pipeline.core.errors import RunError, VideoError

if TYPE_CHECKING:
    from har_pipeline.inference.predict import Prediction


def predict(
    run: Annotated[Path, typer.Option(help="Run folder that `har train` or `har train-video` wrote.")],
    videos: Annotated[
        list[Path] | None, typer.Argument(help="Video files; depth files or folders where the run reads depth.")
    ] = None,
    live: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|CAMERA",
            help="Decide after every 8 frames of a file, a depth folder, or a camera by its number, such as 0.",
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(help="Of --live: weigh the last so many decisions only; 26 with a camera, else all.", min=1),
    ] = None,
    top: Annotated[int, typer.Option(help="Classes to show.", min=1)] = 3,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="The net's weights file, where the run was trained with one; once for each stream of the run."
        ),
    ] = None,
    mean_cube: Annotated[Path | None, typer.Option(help="c3d's mean cube, where the run was trained with one.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw frames and bars into this PNG.")] = None,
    device: Device = "auto",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Classify videos with a trained run: the best classes of each, with bars.

    With --live a stateful network of `har train-video` tells what it thinks so far after every window, as frames come
    (--json: a line of JSON for each); no class while a depth video has shown background only.

    Examples: har predict --run run clip1.avi clip2.avi
    har predict --run run --live MDepth-folder
    """
    if (live is None) == (not videos):
        raise typer.BadParameter("give video files, or --live with one file or camera")
    _need_single_run(run)
    if live is not None:
        if weights or mean_cube or picture or workers:
            raise typer.BadParameter("--weights, --mean-cube, --picture and --workers do not go with --live")
        _predict_live(live, run, top, horizon, device, as_json)
        return
    if horizon is not None:
        raise typer.BadParameter("--horizon belongs to --live")
    classes, predictions = _predict_files(videos or [], run, top, weights, mean_cube, device, workers)
    if as_json:
        print_json(
            [{"video": str(p.path), "top": _rows(p.top), "error": p.error, "notes": p.notes} for p in predictions]
        )
    else:
        for prediction in predictions:
            if prediction.error is None:
                typer.echo(str(prediction.path))
                _print_bars(prediction.top, classes)
    if picture is not None:
        from har_pipeline.inference.predict import save_picture

        save_picture(picture, predictions)
        note(f"written: {picture}")
    for prediction in predictions:
        for text in prediction.notes:
            note(f"NOTE: {prediction.path}: {text}")
        if prediction.error is not None:
            note(f"failed: {prediction.error}")
    if any(prediction.error for prediction in predictions):
        sys.exit(1)


def _need_single_run(run: Path) -> None:
    from har_pipeline.evaluation.plan import no_single_run_error
    from har_pipeline.evaluation.run_folder import RUN_JSON

    if not (run / RUN_JSON).exists():
        raise no_single_run_error(run, "har predict answers by one")


def _predict_files(
    videos: list[Path],
    run: Path,
    top: int,
    weights: list[str] | None,
    mean_cube: Path | None,
    device: str,
    workers: int | None,
) -> tuple[Sequence[str], list[Prediction]]:
    from har_pipeline.evaluation.run_folder import VIDEO, read_run

    if read_run(run).kind == VIDEO:
        from har_pipeline.inference.predict import predict_raw

        if weights or mean_cube:
            raise RunError(f"{run} holds all of its network's weights: leave --weights and --mean-cube out")
        with video_bar() as show:
            raw, predictions = predict_raw(
                videos,
                run,
                top=top,
                device=device,
                workers=workers,
                on_progress=lambda state: show("frames", state.finished, state.total),
            )
        return raw.classes, predictions
    from har_pipeline.inference.predict import predict_videos

    with extraction_bar() as update:
        loaded, predictions = predict_videos(
            videos,
            run,
            top=top,
            weights=weights,
            mean_cube=mean_cube,
            device=device,
            workers=workers,
            on_progress=update,
        )
    if loaded.random_weights:
        note("WARNING: the features of this run come from random weights: its answers mean nothing")
    return loaded.classes, predictions


def _predict_live(source: str, run: Path, top: int, horizon: int | None, device: str, as_json: bool) -> None:
    from har_pipeline.inference.live import CAMERA_HORIZON, StatefulRecogniser, decide_live
    from har_pipeline.inference.predict import top_k
    from har_pipeline.video.camera import live_frames

    camera = source.isdigit() and not Path(source).exists()
    recogniser = StatefulRecogniser(run, horizon=horizon or (CAMERA_HORIZON if camera else None), device=device)
    classes = recogniser.run.classes
    width = max(len(label) for label in classes)
    notes: list[str] = []

    def on_note(text: str) -> None:
        notes.append(text)
        note(f"NOTE: {source}: {text}")

    try:
        for decision in decide_live(recogniser, live_frames(source, recogniser.stream, on_note)):
            known = decision.seen_foreground
            best = top_k(classes, decision.probabilities, top) if known else []
            now = top_k(classes, decision.latest, 1) if known else []
            if as_json:
                row = {"frames": decision.frames, "so_far": _rows(best), "this_window": next(iter(_rows(now)), None)}
                typer.echo(json.dumps({**row, "notes": notes}))
            elif known:
                shown = "   ".join(f"{label.ljust(width)} {probability:6.1%}" for label, probability in best)
                typer.echo(f"frame {decision.frames:5d}  so far: {shown}   this window: {now[0][0]} {now[0][1]:.1%}")
            else:
                typer.echo(f"frame {decision.frames:5d}  no foreground yet, all depth values are 0: no class")
    except KeyboardInterrupt:
        note("stopped")
        return
    if not recogniser.windows:
        raise RunError(f"{source}: fewer than the {recogniser.run.network.clip_len} frames of one window: no decision")
    if not recogniser.seen_foreground:
        raise VideoError(f"{source}: no window has any foreground: all depth values are 0")


def _rows(best: Sequence[tuple[str, float]]) -> list[dict[str, str | float]]:
    return [{"label": label, "probability": probability} for label, probability in best]


def _print_bars(best: Sequence[tuple[str, float]], classes: Sequence[str]) -> None:
    width = max(len(label) for label in classes)
    for label, probability in best:
        typer.echo(f"  {label.ljust(width)}  {probability:6.1%}  {'█' * round(30 * probability)}")
