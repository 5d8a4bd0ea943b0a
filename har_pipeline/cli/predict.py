"""`har predict`: the classes of files, or of a video while it is running, by a trained run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli.options import AsJson, Device, Workers
from har_pipeline.cli.output import note, print_json, say
from har_pipeline.cli.progress import video_bar
from har_pipeline.core.errors import RunError, VideoError

if TYPE_CHECKING:
    from har_pipeline.inference.live import Decision
    from har_pipeline.inference.predict import Prediction


LiveSource = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|CAMERA",
        help="Decide after every 8 frames of a file, a depth folder, or a camera by its number, such as 0.",
    ),
]
Horizon = Annotated[
    int | None,
    typer.Option(help="Number of latest decisions that count with --live; default: 26 with a camera, else all.", min=1),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(help="Weights file of the extractor, if the run was trained with one; once per stream of the run."),
]


def predict(
    run: Annotated[Path, typer.Option(help="Run folder of `har train` or `har train-video`.")],
    videos: Annotated[
        list[Path] | None, typer.Argument(help="Video files; depth files or folders if the run reads depth.")
    ] = None,
    live: LiveSource = None,
    horizon: Horizon = None,
    top: Annotated[int, typer.Option(help="Classes to show.", min=1)] = 3,
    weights: Weights = None,
    mean_cube: Annotated[Path | None, typer.Option(help="Mean cube of c3d, if the run was trained with one.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw frames and bars into this PNG.")] = None,
    device: Device = "auto",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Classify videos with a trained run: the best classes of each, with bars.

    With --live a stateful network of `har train-video` decides after every window, as frames come (--json: a line of JSON
    for each); a depth video has no class until there is foreground.

    Examples: har predict --run run clip1.avi clip2.avi
    har predict --run run --live MDepth-folder
    """
    if (live is None) == (not videos):
        raise typer.BadParameter("give video files, or --live with one file or camera")
    if live is not None and (weights or mean_cube or picture or workers):
        raise typer.BadParameter("--weights, --mean-cube, --picture and --workers do not go with --live")
    if live is None and horizon is not None:
        raise typer.BadParameter("--horizon belongs to --live")
    from har_pipeline.evaluation.plan import require_single_run
    from har_pipeline.evaluation.run_folder import read_run

    require_single_run(run, "har predict needs one")
    folders = read_run(run).spec.stream == "depth"
    if videos and not any(path.is_file() or (folders and path.is_dir()) for path in videos):
        for path in videos:
            note(f"failed: {path}: {'is a folder, not a video file' if path.is_dir() else 'the file does not exist'}")
        raise typer.Exit(1)
    if live is not None:
        _predict_live(live, run, top, horizon, device, as_json)
        return
    from har_pipeline.inference.load import load_run
    from har_pipeline.inference.predict import predict as predict_files

    loaded = load_run(run)
    with video_bar() as show:
        predictions = predict_files(
            videos or [],
            loaded,
            top=top,
            weights=weights,
            mean_cube=mean_cube,
            device=device,
            workers=workers,
            on_progress=lambda done, total: show("predict", done, total),
        )
    if loaded.random_weights:
        note("WARNING: the features of this run come from random weights: its predictions mean nothing")
    _report(predictions, loaded.classes, picture, as_json)


def _report(predictions: Sequence[Prediction], classes: Sequence[str], picture: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(
            [{"video": str(p.path), "top": _rows(p.top), "error": p.error, "notes": p.notes} for p in predictions]
        )
    else:
        width = max(len(label) for label in classes)
        for prediction in predictions:
            if prediction.error is None:
                say(str(prediction.path))
                for label, probability in prediction.top:
                    say(f"  {label.ljust(width)}  {probability:6.1%}  {'█' * round(30 * probability)}")
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
        raise typer.Exit(1)


def _predict_live(source: str, run: Path, top: int, horizon: int | None, device: str, as_json: bool) -> None:
    file = Path(source).expanduser()
    camera = source.isdigit() and not file.exists()
    if not camera and not file.exists():
        raise VideoError(f"{source}: does not exist")
    from har_pipeline.inference.live import CAMERA_HORIZON, StatefulRecogniser, decide_live
    from har_pipeline.video.camera import live_frames

    recogniser = StatefulRecogniser(run, horizon=horizon or (CAMERA_HORIZON if camera else None), device=device)
    notes: list[str] = []

    def on_note(text: str) -> None:
        notes.append(text)
        note(f"NOTE: {source}: {text}")

    for decision in decide_live(recogniser, live_frames(source, recogniser.stream, on_note)):
        _print_decision(decision, recogniser.run.classes, top, notes, as_json)
    if not recogniser.windows:
        raise RunError(f"{source}: fewer than the {recogniser.window_frames} frames of one window: no decision")
    if not recogniser.seen_foreground:
        raise VideoError(f"{source}: no window has any foreground: all depth values are 0")


def _print_decision(decision: Decision, classes: Sequence[str], top: int, notes: Sequence[str], as_json: bool) -> None:
    from har_pipeline.inference.predict import top_k

    known = decision.seen_foreground
    best = top_k(classes, decision.probabilities, top) if known else []
    now = top_k(classes, decision.latest, 1) if known else []
    if as_json:
        row = {"frames": decision.frames, "so_far": _rows(best), "this_window": next(iter(_rows(now)), None)}
        typer.echo(json.dumps({**row, "notes": notes}))
    elif known:
        width = max(len(label) for label in classes)
        shown = "   ".join(f"{label.ljust(width)} {probability:6.1%}" for label, probability in best)
        say(f"frame {decision.frames:5d}  so far: {shown}   this window: {now[0][0]} {now[0][1]:.1%}")
    else:
        typer.echo(f"frame {decision.frames:5d}  no foreground yet, all depth values are 0: no class")


def _rows(best: Sequence[tuple[str, float]]) -> list[dict[str, str | float]]:
    return [{"label": label, "probability": probability} for label, probability in best]
