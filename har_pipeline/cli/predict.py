"""`har predict`: the classes of files, or of a video while it is running, by a trained run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from har_pipeline.cli.options import AsJson, Device, Workers
from har_pipeline.cli.output import note, print_json, say
from har_pipeline.cli.progress import video_bar
from har_pipeline.core.errors import RunError, VideoError
from har_pipeline.core.kinds import is_video_name

if TYPE_CHECKING:
    from har_pipeline.inference.live import Decision, StatefulRecogniser
    from har_pipeline.inference.live_heads import HeadRecogniser
    from har_pipeline.inference.load import HeadRun, NetworkRun
    from har_pipeline.inference.predict import Prediction


LiveSource = Annotated[
    str | None,
    typer.Option(
        metavar="CAMERA|URL|FILE",
        help="Decide while frames come, from a camera by its number such as 0, a URL such as rtsp://..., a file or a depth "
        "folder.",
    ),
]
Horizon = Annotated[
    int | None,
    typer.Option(
        help="Number of latest decisions of a network that count with --live; default: 26 with a camera, else all.",
        min=1,
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE|STREAM=FILE",
        help="Weights file, or folder of hf:, of an extractor that is neither published nor where it was used last; several "
        "are told apart by their hash, or by the stream or the feature set named before the =.",
    ),
]
Given = Annotated[
    list[str] | None,
    typer.Argument(
        help="Video files, folders of videos, or patterns such as 'clips/*.mp4'; depth files or folders if the run reads depth."
    ),
]
# Endings of patterns that a shell may not have expanded.
WILD = re.compile(r"[*?\[]")
# Share by which a window may differ from the one that was asked for without a word.
NEAR = 0.1


def predict(
    run: Annotated[
        list[Path],
        typer.Option(
            help="Run folder of `har train` or `har train-video`, of all folds and repeats of a job (their mean), or of "
            "`har fuse`. Several runs are fused."
        ),
    ],
    videos: Given = None,
    live: LiveSource = None,
    horizon: Horizon = None,
    realtime: Annotated[
        bool,
        typer.Option("--realtime", help="With --live, read a file at its own rate and drop frames, as of a camera."),
    ] = False,
    top: Annotated[int, typer.Option(help="Classes to show.", min=1)] = 3,
    rule: Annotated[
        Literal["sum", "product"], typer.Option(help="How several runs are fused, as by `har fuse`.")
    ] = "product",
    weights: Weights = None,
    mean_cube: Annotated[
        Path | None, typer.Option(help="Mean cube of c3d, if the run needs one that is not where it was used last.")
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Classify windows of this length that slide over each video; with --live, what a head decides on.",
            min=0.04,
        ),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="From one window to the next. Default: half a window.", min=0.02),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Also write a CSV file: a row for each video, with all classes.")
    ] = None,
    segments: Annotated[
        Path | None,
        typer.Option(
            help="With --window, also write a CSV file of what happens when: video, start_s, end_s, label, probability; and "
            "its timeline beside it (PNG)."
        ),
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="With --window, draw the probabilities over time into this PNG.")
    ] = None,
    annotate: Annotated[
        Path | None,
        typer.Option(
            help="Also write the video with its best classes, with --window those of each moment, and a timeline: a file such "
            "as out.mp4, of several videos a folder."
        ),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw frames and bars into this PNG.")] = None,
    device: Device = "auto",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Classify videos with trained runs: the best classes of each, with bars.

    With --window, a long video with several actions is cut into segments: each moment has the mean of the windows that hold
    it, and neighbours with the same best class are joined.
    With --live, as frames come (--json: a line of JSON for each decision), a head on one net of colour frames decides on the
    last seconds, a stateful network of `har train-video` after every 8 frames on all so far; a depth video has no class until
    there is foreground. Frames of a camera or URL that come too fast are dropped and counted.

    Examples: har predict clip1.avi clips/ --run run
    har predict match.mp4 --run rgb --run flow --window 4 --segments what.csv --annotate match_seen.mp4
    har predict --run run --live 0 --window 3
    """
    if (live is None) == (not videos):
        raise typer.BadParameter("give video files, or --live with one file or camera")
    if live is not None and (picture or workers or hop or csv or segments or timeline or annotate):
        raise typer.BadParameter(
            "--picture, --workers, --hop, --csv, --segments, --timeline and --annotate do not go with --live"
        )
    if live is None and (horizon is not None or realtime):
        raise typer.BadParameter(f"{'--realtime' if realtime else '--horizon'} belongs to --live")
    if window is None and (hop or segments or timeline):
        raise typer.BadParameter("--hop, --segments and --timeline need --window SECONDS")
    if window is not None and hop is not None and hop > window:
        raise typer.BadParameter(f"--hop {hop:g} must not be longer than --window {window:g}")
    if live is not None:
        if len(run) > 1:
            raise typer.BadParameter("--live takes one --run")
        from har_pipeline.evaluation.plan import require_single_run

        require_single_run(run[0], "har predict --live needs one")
        how = Live(horizon, window, realtime, tuple(weights or ()), mean_cube, device)
        _predict_live(live, run[0], how, top, as_json)
        return
    outputs = Outputs(csv=csv, segments=segments, timeline=timeline, annotate=annotate, picture=picture)
    served = Served(rule, top, tuple(weights or ()), mean_cube, window, hop or (window and window / 2), device, workers)
    _predict_files(videos or [], run, served, outputs, as_json)


@dataclass(frozen=True, slots=True)
class Served:
    """How files are classified, as the options of the same names say."""

    rule: Literal["sum", "product"]
    top: int
    weights: tuple[str, ...]
    mean_cube: Path | None
    window: float | None
    hop: float | None
    device: str
    workers: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The files to write."""

    csv: Path | None
    segments: Path | None
    timeline: Path | None
    annotate: Path | None
    picture: Path | None


def _predict_files(
    given: Sequence[str],
    run: Sequence[Path],
    how: Served,
    outputs: Outputs,
    as_json: bool,
) -> None:
    from har_pipeline.evaluation.members import FUSION_JSON, run_folders
    from har_pipeline.evaluation.plan import no_run_error
    from har_pipeline.evaluation.run_folder import recover_run

    for folder in run:
        recover_run(folder)
        if not run_folders(folder) and not (folder / FUSION_JSON).exists():
            raise no_run_error(folder)
    named = [(text, path) for text in given for path in _expanded(text)]
    found = [path for _, path in named]
    if not any(path.exists() for path in found):
        for text, path in named:
            if "://" in text:
                note(f"failed: {text}: a URL is read with --live")
                continue
            note(f"failed: {path}: the file does not exist{', and none matches' if WILD.search(str(path)) else ''}")
        raise typer.Exit(1)
    from har_pipeline.inference.ensemble import load_classifier, notes_of, runs_of
    from har_pipeline.inference.predict import predict as predict_files
    from har_pipeline.inference.timeline import Windows

    classifier = load_classifier(run, how.rule)
    if not any(one.spec.stream == "depth" for one in runs_of(classifier)):
        found = [path for one in found for path in _videos_of(one)]
    elif outputs.annotate is not None:
        raise RunError(f"{run[0]} reads depth: --annotate is for colour videos, --picture draws depth")
    _check_annotate(outputs.annotate, found)
    with video_bar("windows" if how.window else "videos") as show:
        predictions = predict_files(
            found,
            classifier,
            windows=Windows(length_s=how.window, hop_s=how.hop) if how.window and how.hop else None,
            top=how.top,
            weights=how.weights,
            mean_cube=how.mean_cube,
            device=how.device,
            workers=how.workers,
            on_progress=lambda done, total: show("predict", done, total),
        )
    if classifier.random_weights:
        note("WARNING: the features of this run come from random weights: its predictions mean nothing")
    for text in notes_of(classifier):
        note(f"NOTE: {text}")
    _print_predictions(predictions, classifier.classes, as_json)
    _write(predictions, classifier.classes, outputs, how.top)
    for prediction in predictions:
        for text in prediction.notes:
            note(f"NOTE: {prediction.path}: {text}")
        if prediction.error is not None:
            note(f"failed: {prediction.error}")
    if any(prediction.error for prediction in predictions):
        raise typer.Exit(1)


def _expanded(text: str) -> list[Path]:
    """Return the files that a pattern matches, sorted, or the path itself."""
    path = Path(text).expanduser()
    if path.exists() or not WILD.search(text):
        return [path]
    import glob

    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))] or [path]


def _videos_of(path: Path) -> list[Path]:
    """Return the videos below a folder; any other path itself, and a folder without any, which fails."""
    if not path.is_dir():
        return [path]
    from har_pipeline.datasets.folders import videos_below

    return [path / found.relative_to(path.resolve()) for found in videos_below(path)] or [path]


def _check_annotate(annotate: Path | None, videos: Sequence[Path]) -> None:
    if annotate is not None and (len(videos) > 1) == bool(annotate.suffix) and not annotate.is_dir():
        wanted = "a folder, for several videos" if len(videos) > 1 else "a file such as out.mp4, for one video"
        raise typer.BadParameter(f"--annotate {annotate}: give {wanted}")
    if annotate is not None and len(videos) == 1 and not annotate.is_dir() and not is_video_name(annotate.name):
        raise typer.BadParameter(f"--annotate {annotate}: give a video a name that ends in .mp4 or .avi")


def _print_predictions(predictions: Sequence[Prediction], classes: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json([_json_of(one) for one in predictions])
        return
    width = max(len(label) for label in classes)
    for prediction in predictions:
        if prediction.error is None:
            say(str(prediction.path))
            for label, probability in prediction.top:
                say(f"  {label.ljust(width)}  {probability:6.1%}  {'█' * round(30 * probability)}")
            for one in prediction.timeline.segments() if prediction.timeline else ():
                say(f"  {one.start_s:8.2f} s to {one.end_s:8.2f} s  {one.label.ljust(width)}  {one.probability:6.1%}")


def _json_of(prediction: Prediction) -> dict[str, Any]:
    row = {
        "video": str(prediction.path),
        "top": _rows(prediction.top),
        "error": prediction.error,
        "notes": prediction.notes,
    }
    if prediction.timeline is not None:
        row["segments"] = [dataclasses.asdict(one) for one in prediction.timeline.segments()]
    return row


def _write(predictions: Sequence[Prediction], classes: tuple[str, ...], outputs: Outputs, top: int) -> None:
    """Write the files that are asked for."""
    from har_pipeline.inference.predict import save_picture, save_timeline, write_predictions
    from har_pipeline.inference.timeline import write_segments

    written = []
    if outputs.csv is not None:
        write_predictions(outputs.csv, predictions, classes)
        written.append(outputs.csv)
    timelines = [(one.path, one.timeline) for one in predictions if one.timeline is not None]
    drawn = outputs.timeline
    if outputs.segments is not None:
        write_segments(outputs.segments, timelines)
        drawn = drawn or outputs.segments.with_suffix(".png")
        written.append(outputs.segments)
    if drawn is not None and timelines:
        save_timeline(drawn, predictions)
        written.append(drawn)
    if outputs.picture is not None:
        save_picture(outputs.picture, predictions)
        written.append(outputs.picture)
    if outputs.annotate is not None:
        written += _write_annotated(predictions, classes, outputs.annotate, top)
    for path in written:
        note(f"written: {path}")


def _write_annotated(
    predictions: Sequence[Prediction], classes: tuple[str, ...], annotate: Path, top: int
) -> list[Path]:
    from har_pipeline.inference.annotate import write_annotated

    folder = not annotate.suffix or annotate.is_dir()
    written: list[Path] = []
    for prediction in predictions:
        if prediction.error is None:
            names = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
            choices = (annotate / f"{prediction.path.stem}{name}.mp4" for name in names)
            path = next(one for one in choices if one not in written) if folder else annotate
            with video_bar("frames") as show:
                tell = functools.partial(show, f"annotate {path.name}")
                write_annotated(path, prediction, classes, top=top, on_frame=tell)
            written.append(path)
    return written


@dataclass(frozen=True, slots=True)
class Live:
    """How to decide while frames come."""

    horizon: int | None
    window: float | None
    realtime: bool
    weights: tuple[str, ...]
    mean_cube: Path | None
    device: str


def _counted(frames: Any, came: list[int]) -> Generator[Any, None, None]:
    """Yield the frames; came[0] is how many there were so far."""
    with contextlib.closing(frames):
        for frame in frames:
            came[0] += 1
            yield frame


def _predict_live(source: str, run: Path, how: Live, top: int, as_json: bool) -> None:
    from har_pipeline.video.camera import is_camera

    camera = is_camera(source)
    if not camera and not Path(source).expanduser().exists():
        raise VideoError(f"{source}: does not exist")
    from har_pipeline.inference.live import decide_live
    from har_pipeline.inference.load import load_run
    from har_pipeline.video.camera import live_frames, opened, paced

    loaded = load_run(run)
    stream: Literal["depth", "rgb"] = "depth" if loaded.spec.stream == "depth" else "rgb"
    notes: list[str] = []
    rates: list[float] = []

    def on_note(text: str) -> None:
        notes.append(text)
        note(f"NOTE: {source}: {text}")

    frames = opened(live_frames(source, stream, on_note, rates.append))
    recogniser, sees = _recogniser(loaded, camera, rates[0] if rates else 0.0, how)
    if loaded.random_weights:
        note("WARNING: the features of this run come from random weights: its predictions mean nothing")
    if how.realtime and not camera:
        frames = paced(frames, rates[0])
    came: list[int] = [0]
    frames = _counted(frames, came)
    for decision in decide_live(recogniser, frames, drop=camera or how.realtime):
        _print_decision(decision, loaded.classes, sees, top, notes, as_json)
    if not recogniser.windows:
        if came[0] >= recogniser.window_frames:
            raise RunError(
                f"{source}: {came[0]} frames came faster than they can be taken, and so many were dropped that no window of "
                f"{recogniser.window_frames} frames was full: no decision; for a video file, download it first"
            )
        raise RunError(f"{source}: fewer than the {recogniser.window_frames} frames of one window: no decision")
    if not recogniser.seen_foreground:
        raise VideoError(f"{source}: no window has any foreground: all depth values are 0")


def _recogniser(
    run: HeadRun | NetworkRun, camera: bool, fps: float, how: Live
) -> tuple[HeadRecogniser | StatefulRecogniser, str]:
    """Return what decides, and in words on what."""
    from har_pipeline.inference.live import CAMERA_HORIZON, StatefulRecogniser
    from har_pipeline.inference.live_heads import HeadRecogniser
    from har_pipeline.inference.load import HeadRun

    if isinstance(run, HeadRun):
        if how.horizon is not None:
            raise typer.BadParameter("--horizon is for networks of `har train-video`; a head takes --window SECONDS")
        head = HeadRecogniser(
            run, fps=fps, window_s=how.window, weights=how.weights, mean_cube=how.mean_cube, device=how.device
        )
        if how.window is not None and abs(head.window_s / how.window - 1) > NEAR:
            note(f"NOTE: windows of {head.window_s:.3g} s, the nearest to {how.window:g} s that the run's clips allow")
        return head, f"last {head.window_s:.3g} s"
    if how.window or how.weights or how.mean_cube:
        raise typer.BadParameter("--window, --weights and --mean-cube are for heads of `har train`")
    horizon = how.horizon or (CAMERA_HORIZON if camera else None)
    return StatefulRecogniser(run, horizon=horizon, device=how.device), "so far"


def _print_decision(
    decision: Decision, classes: Sequence[str], sees: str, top: int, notes: Sequence[str], as_json: bool
) -> None:
    from har_pipeline.inference.predict import top_k

    known = decision.seen_foreground
    best = top_k(classes, decision.probabilities, top) if known else []
    now = top_k(classes, decision.latest, 1) if known else []
    speed = f"{1000 * decision.latency_s:.0f} ms  {decision.frames_per_s:.1f} frames/s  {decision.dropped} dropped"
    if as_json:
        row = {"frames": decision.frames, "so_far": _rows(best), "this_window": next(iter(_rows(now)), None)}
        row |= {
            "latency_ms": round(1000 * decision.latency_s, 2),
            "frames_per_s": round(decision.frames_per_s, 2),
            "dropped": decision.dropped,
        }
        typer.echo(json.dumps({**row, "notes": notes}))
    elif known:
        width = max(len(label) for label in classes)
        shown = "   ".join(f"{label.ljust(width)} {probability:6.1%}" for label, probability in best)
        window = f"   this window: {now[0][0]} {now[0][1]:.1%}" if sees == "so far" else ""
        say(f"frame {decision.frames:5d}  {sees}: {shown}{window}   {speed}")
    else:
        typer.echo(f"frame {decision.frames:5d}  no foreground yet, all depth values are 0: no class")


def _rows(best: Sequence[tuple[str, float]]) -> list[dict[str, str | float]]:
    return [{"label": label, "probability": probability} for label, probability in best]
