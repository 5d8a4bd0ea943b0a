"""`har models`, `har extract` and `har flow`: stage one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from har_pipeline.cli.options import (
    AsJson,
    DecoderChoice,
    Device,
    Dtype,
    Precision,
    Root,
    Seed,
    StreamChoice,
    Workers,
    parse_shard,
)
from har_pipeline.cli.output import note, print_json
from har_pipeline.cli.progress import extraction_bar
from har_pipeline.core.records import ClipSpec, Crops, Padding, Sampling
from har_pipeline.video.flow.spec import FlowMethod

if TYPE_CHECKING:
    from har_pipeline.features.extract import ExtractSummary


FRAMES_OF_A_FRAME_NET = 40


def models(as_json: AsJson = False) -> None:
    """List the nets, their layers and feature dimensions, weights and licences."""
    from har_pipeline.models.extractors import describe_nets

    rows = describe_nets()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        listed = ", ".join(
            f"{k} {v:,}{' (default)' if k == row['default_layer'] else ''}" for k, v in row["layers"].items()
        )
        typer.echo(f"{row['net']}  weights {row['weights']!r}, {row['stream']}  ({row['source']})")
        typer.echo(f"  input {row['input']}, {row['gmacs_per_clip']} GMAC a clip, {row['preprocess']}")
        typer.echo(f"  default clips: {row['clips']}; frames {row['resize']}")
        typer.echo(f"  layers: {listed}")
        typer.echo(f"  trained on {row['trained_on']}; licence {row['licence']}")
        typer.echo(f"  from {row['url']}, sha256 {row['sha256'] or 'not published'}\n")
    typer.echo("Besides these: --weights PATH (a local file) and --weights random (for tests).")


def clips_from(default: ClipSpec, changes: dict[str, Any]) -> ClipSpec:
    """Return a net's own clips with what the user gave; None means not given.

    Raises: typer.BadParameter if that makes no sense together.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    sampling = given.get("sampling", default.sampling)
    if sampling == "dense":
        if "num_clips" in given:
            raise typer.BadParameter("dense sampling takes every clip: leave --num-clips out, or use --sampling sparse")
        given["num_clips"] = None
    elif default.num_clips is None and "num_clips" not in given:
        if default.clip_len > 1:
            raise typer.BadParameter(f"{sampling} sampling needs --num-clips")
        given["num_clips"] = FRAMES_OF_A_FRAME_NET
    try:
        return dataclasses.replace(default, **given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def extract(
    manifest: Annotated[Path, typer.Argument(help="Manifest CSV; make one with `har manifest build`.")],
    store: Annotated[Path, typer.Argument(help="The feature store, a folder such as store.zarr.")],
    extractor: Annotated[
        list[str] | None,
        typer.Option(help="Net, see `har models`; efficientnet_lite0 if not given. Several share one decoding pass."),
    ] = None,
    stream: Annotated[StreamChoice, typer.Option(help="rgb, or flow: optical flow, computed on the way.")] = (
        StreamChoice.rgb
    ),
    layer: Annotated[str | None, typer.Option(help="Layer of the net; its default if not given.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Name from `har models`, a file, or `random` (tests only).")
    ] = None,
    mean_cube: Annotated[
        Path | None, typer.Option(help="c3d: subtract this mean cube (.npy) instead of means.")
    ] = None,
    sampling: Annotated[
        Sampling | None,
        typer.Option(
            help="Which clips; the net's own if not given. first: the first ones; uniform: spread over the video; dense: "
            "all; sparse: some of the dense ones; segments: the middle of equal parts (TSN)."
        ),
    ] = None,
    num_clips: Annotated[int | None, typer.Option(help="Clips per video (frames, for frame nets).", min=1)] = None,
    clip_len: Annotated[int | None, typer.Option(help="Frames per clip.", min=1)] = None,
    clip_stride: Annotated[int | None, typer.Option(help="Frames between the starts of two clips.", min=1)] = None,
    frame_interval: Annotated[int | None, typer.Option(help="Frames from one of a clip to its next.", min=1)] = None,
    padding: Annotated[
        Padding | None, typer.Option(help="What follows the last frame: that frame again, or the video's start.")
    ] = None,
    segment_seed: Annotated[
        int | None,
        typer.Option(help="Random places in the segments, as in TSN's training, drawn with this seed.", min=0),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frame rate to resample to, by frame number; as filmed if not given.")
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(help="stretch-224, short256-center224, stretch-340x256-ten224; the net's default if not given."),
    ] = None,
    crops: Annotated[
        Crops | None, typer.Option(help="Crops whose features are averaged: ten = corners, centre, mirrors.")
    ] = None,
    flow_method: Annotated[FlowMethod, typer.Option(help="How flow is computed.")] = "tvl1",
    flow_bound: Annotated[float, typer.Option(help="Flow is clipped to +- so many px per frame.", min=0.1)] = 20.0,
    flow_cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps flow for other nets and later jobs.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips per batch; by device if not given.", min=1)] = None,
    decoder: Annotated[
        DecoderChoice, typer.Option(help="auto: PyAV; decord is a cross-check, PyAV takes over where decord is wrong.")
    ] = DecoderChoice.auto,
    time_limit: Annotated[float, typer.Option(help="Seconds that decoding one video may take.", min=0.001)] = 600.0,
    shard: Annotated[
        str, typer.Option(help="k/n: do only the k-th of n parts, for several machines on one store.")
    ] = "1/1",
    retry_failed: Annotated[bool, typer.Option(help="Try videos again that failed before.")] = False,
    replace_changed: Annotated[
        bool, typer.Option(help="Make features anew that STORE has of another file than the manifest names.")
    ] = False,
    root: Root = None,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = None,
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic of the net; auto: bf16 where it is fast and close, fp32 with --dtype float32."),
    ] = (Precision.auto),
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored features.")] = Dtype.float16,
    as_json: AsJson = False,
) -> None:
    """Turn the videos of a manifest into features in a store. Run it again to go on after an interruption.

    A video that cannot be read is listed with its reason and remembered in the store; the others go on, and the exit
    code is 1. Several processes or machines may write one store at the same time.
    """
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.features.extract import ExtractOptions, extract_many
    from har_pipeline.features.store import FeatureStore
    from har_pipeline.models.extractors import build_extractor
    from har_pipeline.video.flow.spec import FlowSpec
    from har_pipeline.video.preprocess import with_crops

    shard_parts = parse_shard(shard)
    records = read_manifest(manifest, root=root, check_files=False)
    names = extractor or ["efficientnet_lite0"]
    # Who asks for exact storage wants exact arithmetic too.
    arithmetic = "fp32" if precision == "auto" and dtype == "float32" else precision.value
    if len(names) > 1 and (layer or weights not in (None, "random")):
        raise typer.BadParameter("--layer and --weights FILE belong to one net: give one --extractor, or none of them")
    wanted = []
    for name in names:
        net = build_extractor(
            name,
            layer=layer,
            stream=stream.value,
            weights=weights,
            device=device,
            precision=arithmetic,
            seed=seed,
            mean_cube=mean_cube,
        )
        if net.weights.startswith("random"):
            note(f"WARNING: {name}: random weights: these features are for tests, they mean nothing")
        changes = {
            "sampling": sampling,
            "num_clips": num_clips,
            "clip_len": clip_len,
            "clip_stride": clip_stride,
            "frame_interval": frame_interval,
            "padding": padding,
            "segment_seed": segment_seed,
        }
        mode = resize or net.input.resize
        try:
            options = ExtractOptions(
                clips=clips_from(net.input.clips, changes),
                fps=fps,
                resize=with_crops(mode, crops) if crops else mode,
                flow=FlowSpec(method=flow_method, bound_px=flow_bound) if stream == "flow" else None,
                dtype=dtype.value,
                workers=workers,
                batch_size=batch_size,
                decoder=decoder.value,
                time_limit_s=time_limit,
                shard=shard_parts,
                retry_failed=retry_failed,
                replace_changed=replace_changed,
                flow_cache=flow_cache,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        wanted.append((net, options))
    try:
        with extraction_bar() as update:
            summaries = extract_many(records, FeatureStore(store, create=True), wanted, update)
    except KeyboardInterrupt:
        note("interrupted: what is done is kept; run the same command again to go on")
        raise typer.Exit(130) from None
    for summary in summaries:
        _report(summary)
    if as_json:
        rows = [dataclasses.asdict(summary) for summary in summaries]
        print_json(rows if len(rows) > 1 else rows[0])
    else:
        for summary in summaries:
            _print_summary(summary)
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summaries[0].stages.items())
        typer.echo(f"{summaries[0].seconds:.1f} s in all: {stages}; bound by {summaries[0].bound_by}")
    if any(summary.failed or summary.failed_before for summary in summaries):
        raise typer.Exit(1)


def _report(summary: ExtractSummary) -> None:
    for video_id, notes in summary.notes.items():
        note(f"note: {video_id}: {'; '.join(notes)}")
    for video_id, reason in summary.failed.items():
        note(f"failed: {video_id}: {reason}")
    for video_id, reason in summary.failed_before.items():
        note(f"failed in an earlier run: {video_id}: {reason} (try again with --retry-failed)")


def _print_summary(summary: ExtractSummary) -> None:
    failures = len(summary.failed) + len(summary.failed_before)
    rate = summary.clips / summary.seconds if summary.seconds else 0.0
    padded = f"{summary.padded} shorter than their clips and padded; " if summary.padded else ""
    typer.echo(
        f"{summary.feature_set}: {summary.done} videos done, {summary.already} were there, {failures} failed, "
        f"of {summary.total}; {padded}{summary.clips} clips, {rate:.1f} clips/s, {summary.device} {summary.precision}"
    )


def flow(
    video: Annotated[Path, typer.Argument(help="Video file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Video to write, such as flow.mp4.")],
    method: Annotated[FlowMethod, typer.Option(help="How flow is computed.")] = "tvl1",
    bound: Annotated[float, typer.Option(help="Flow is clipped to +- so many px per frame.", min=0.1)] = 20.0,
    max_px: Annotated[float, typer.Option(help="Flow of so many px per frame has full colour.", min=0.1)] = 10.0,
    short_side: Annotated[int | None, typer.Option(help="Scale frames to this shorter side first, px.", min=32)] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Render a video's optical flow in the usual colours: hue is the direction, saturation the speed."""
    from har_pipeline.models.device import pick_device
    from har_pipeline.video.flow.render import write_flow_video
    from har_pipeline.video.flow.spec import FlowSpec

    if out.exists() and out.samefile(video):
        raise typer.BadParameter(f"{out} is the video itself: give the flow another name")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"{out}: there is no folder {out.parent}")
    spec = FlowSpec(method=method, bound_px=bound)
    count = write_flow_video(video, out, spec, device=str(pick_device(device)), short_side=short_side, max_px=max_px)
    if as_json:
        print_json({"video": str(video), "out": str(out), "frames": count, "flow": spec.describe()})
    else:
        typer.echo(f"{out}: {count} frames of flow, {spec.describe()}")
